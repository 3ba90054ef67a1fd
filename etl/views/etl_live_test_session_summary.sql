-- One row a test session for which it is not stored: what v_test_session_summary counts. Internal.
SELECT
    s.test_session_id,
    s.account_id,
    s.project_id,
    s.name,
    s.provider,
    s.status,
    s.environment,
    s.branch_name,
    s.commit_id,
    s.started_at,
    s.stopped_at,
    s.link,
    COUNT(e.execution_no) AS executions,
    COUNT(CASE WHEN e.verdict = 'PASSED' THEN 1 END) AS passed,
    COUNT(CASE WHEN e.verdict = 'FAILED' THEN 1 END) AS failed,
    COUNT(CASE WHEN e.verdict IS NULL THEN e.execution_no END) AS undecided,
    COUNT(CASE WHEN e.is_retry_flaky AND e.verdict IS NOT NULL THEN 1 END) AS retry_flaky,
    COUNT(CASE WHEN e.is_degraded AND e.verdict IS NOT NULL THEN 1 END) AS degraded,
    CAST(COALESCE(SUM(e.retries), 0) AS bigint) AS retries,
    COALESCE(SUM(e.retry_cost_ms), CAST(0 AS double precision)) AS retry_cost_ms
FROM test_sessions s
LEFT JOIN check_executions e ON e.test_session_id = s.test_session_id
WHERE NOT EXISTS (
    SELECT 1 FROM etl_rollup_test_session_summary r WHERE r.test_session_id = s.test_session_id
)
GROUP BY
    s.test_session_id,
    s.account_id,
    s.project_id,
    s.name,
    s.provider,
    s.status,
    s.environment,
    s.branch_name,
    s.commit_id,
    s.started_at,
    s.stopped_at,
    s.link
