{#- A rate is a share of something; null, never 0, where there is nothing to have a share of. -#}
{% test between_0_and_1(model, column_name) %}
SELECT {{ column_name }}
FROM {{ model }}
WHERE NOT {{ column_name }} BETWEEN 0 AND 1
{% endtest %}
