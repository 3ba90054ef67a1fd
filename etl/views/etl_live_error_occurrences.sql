-- One row a row of v_error_occurrences, of the test sessions for which it is not stored. Internal.
SELECT
    k.check_hash,
    l.test_session_id,
    l.test_session_result_id,
    l.error_group_id,
    g.cleaned_error_message,
    s.account_id,
    k.check_key,
    r.check_name,
    s.branch_name,
    s.environment,
    r.run_location,
    s.commit_id,
    COALESCE(r.started_at, s.started_at) AS started_at,
    r.result_type,
    e.verdict
FROM test_session_result_error_groups l
JOIN error_groups g ON g.error_group_id = l.error_group_id
JOIN test_sessions s ON s.test_session_id = l.test_session_id
LEFT JOIN test_session_results r
    ON r.test_session_id = l.test_session_id AND r.test_session_result_id = l.test_session_result_id
LEFT JOIN check_executions e ON e.test_session_id = r.test_session_id AND e.execution_no = r.execution_no
LEFT JOIN etl_checks k ON k.check_hash = CHECK_HASH(e.account_id, e.check_key)
WHERE NOT EXISTS (
    SELECT 1 FROM etl_rollup_test_session_summary m WHERE m.test_session_id = l.test_session_id
)
