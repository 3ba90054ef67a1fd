-- Every test session has its summary, which counts what check_executions holds of it: 0 where that is nothing.
SELECT s.test_session_id, v.executions, e.n
FROM {{ source('checkly', 'test_sessions') }} s
LEFT JOIN {{ source('checkly', 'v_test_session_summary') }} v ON v.test_session_id = s.test_session_id
LEFT JOIN (
    SELECT test_session_id, COUNT(*) AS n FROM {{ source('checkly', 'check_executions') }} GROUP BY test_session_id
) e ON e.test_session_id = s.test_session_id
WHERE v.executions IS DISTINCT FROM COALESCE(e.n, 0)
