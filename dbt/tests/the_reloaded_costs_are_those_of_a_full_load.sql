-- retry_costs misses no test session and holds none as it was before. What was exported since the model was
-- built, or just before, is not due yet.
SELECT s.test_session_id, c.executions, v.executions AS executions_now
FROM {{ source('checkly', 'test_sessions') }} s
JOIN {{ source('checkly', 'v_test_session_summary') }} v ON v.test_session_id = s.test_session_id
LEFT JOIN {{ ref('retry_costs') }} c ON c.test_session_id = s.test_session_id
WHERE
    s.exported_at < (SELECT MAX(exported_at) - INTERVAL '1 hour' FROM {{ ref('retry_costs') }})
        AND c.exported_at IS DISTINCT FROM s.exported_at
    OR c.exported_at = s.exported_at
        AND (c.executions, c.retries) <> (v.executions, v.retries)
