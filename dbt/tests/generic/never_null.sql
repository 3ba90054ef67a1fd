{#- None of these columns is null in any row. One test for all of them: a view is computed once, not once a column. -#}
{% test never_null(model, columns) %}
SELECT {{ columns | join(', ') }}
FROM {{ model }}
WHERE {{ columns | join(' IS NULL OR ') }} IS NULL
{% endtest %}
