-- v_execution_history holds the decided executions and no others, and a flip is another status than the one before.
(
    SELECT test_session_id, execution_no FROM {{ source('checkly', 'check_executions') }} WHERE verdict IS NOT NULL
    EXCEPT
    SELECT test_session_id, execution_no FROM {{ source('checkly', 'v_execution_history') }}
)
UNION ALL
SELECT test_session_id, execution_no
FROM {{ source('checkly', 'v_execution_history') }}
WHERE verdict IS DISTINCT FROM status
    OR previous_started_at > started_at
    OR is_flip <> COALESCE(status <> previous_status, FALSE)
    OR is_new_failure <> (is_flip AND status = 'FAILED')
