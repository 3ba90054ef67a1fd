-- One row a test session, with what its executions came to.
-- passed, failed, retry_flaky and degraded count decided executions (a FINAL with PASSED or FAILED) only.
-- pass_rate is null where nothing was decided. verdict: FAILED if any execution failed, else the session's status.
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
    s.link,
    COUNT(e.execution_no) AS executions,
    COUNT(CASE WHEN e.verdict = 'PASSED' THEN 1 END) AS passed,
    COUNT(CASE WHEN e.verdict = 'FAILED' THEN 1 END) AS failed,
    COUNT(CASE WHEN e.verdict IS NULL THEN e.execution_no END) AS undecided,
    COUNT(CASE WHEN e.is_retry_flaky THEN 1 END) AS retry_flaky,
    COUNT(CASE WHEN e.is_degraded AND e.verdict IS NOT NULL THEN 1 END) AS degraded,
    COALESCE(SUM(e.retries), 0) AS retries,
    (SELECT COUNT(*) FROM test_session_error_groups g WHERE g.test_session_id = s.test_session_id) AS error_groups,
    COALESCE(SUM(e.retry_cost_ms), CAST(0 AS double precision)) AS retry_cost_ms,
    MS_BETWEEN(s.started_at, s.stopped_at) AS duration_ms,
    CAST(COUNT(CASE WHEN e.verdict = 'PASSED' THEN 1 END) AS double precision)
        / NULLIF(COUNT(e.verdict), 0) AS pass_rate,
    CASE WHEN COUNT(CASE WHEN e.verdict = 'FAILED' THEN 1 END) > 0 THEN 'FAILED' ELSE s.status END AS verdict
FROM test_sessions s
LEFT JOIN check_executions e ON e.test_session_id = s.test_session_id
GROUP BY s.test_session_id
