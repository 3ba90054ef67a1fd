-- The days of a check hold all of its executions, each of them once.
WITH executions AS (
    SELECT account_id, check_key, COUNT(*) AS n
    FROM {{ source('checkly', 'check_executions') }}
    GROUP BY account_id, check_key
),
days AS (
    SELECT account_id, check_key, SUM(executions) AS n
    FROM {{ source('checkly', 'v_check_daily') }}
    GROUP BY account_id, check_key
)
-- EXCEPT, because it takes two nulls for equal: an account may be unknown.
(SELECT * FROM executions EXCEPT SELECT * FROM days)
UNION ALL
(SELECT * FROM days EXCEPT SELECT * FROM executions)
