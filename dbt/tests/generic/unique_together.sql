{#- No two rows agree in all of these columns. Two nulls agree: an account may be unknown. -#}
{% test unique_together(model, columns) %}
SELECT {{ columns | join(', ') }}, COUNT(*) AS n
FROM {{ model }}
GROUP BY {{ columns | join(', ') }}
HAVING COUNT(*) > 1
{% endtest %}
