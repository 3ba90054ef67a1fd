-- One row a link from a result to an error group: where and when an error was seen.
-- started_at is the result's, else its session's. check_key and verdict are those of the execution that the result
-- belongs to; null for a result that the latest payload does not hold.
SELECT
    o.test_session_id,
    o.test_session_result_id,
    o.error_group_id,
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
FROM etl_rollup_error_occurrences o
JOIN etl_rollup_test_session_summary m ON m.test_session_id = o.test_session_id
JOIN error_groups g ON g.error_group_id = o.error_group_id
JOIN test_sessions s ON s.test_session_id = o.test_session_id
LEFT JOIN etl_checks k ON k.check_hash = o.check_hash
LEFT JOIN test_session_results r
    ON r.test_session_id = o.test_session_id AND r.test_session_result_id = o.test_session_result_id
LEFT JOIN check_executions e ON e.test_session_id = r.test_session_id AND e.execution_no = r.execution_no
UNION ALL
SELECT
    test_session_id,
    test_session_result_id,
    error_group_id,
    cleaned_error_message,
    account_id,
    check_key,
    check_name,
    branch_name,
    environment,
    run_location,
    commit_id,
    started_at,
    result_type,
    verdict
FROM etl_live_error_occurrences
