-- One row a test session, with what its executions came to.
-- passed, failed, retry_flaky and degraded count decided executions (a FINAL with PASSED or FAILED) only.
-- pass_rate is null where nothing was decided. verdict: FAILED if any execution failed, else the session's status.
SELECT
    n.test_session_id,
    n.account_id,
    n.project_id,
    n.name,
    n.provider,
    n.status,
    n.environment,
    n.branch_name,
    n.commit_id,
    n.started_at,
    n.link,
    n.executions,
    n.passed,
    n.failed,
    n.undecided,
    n.retry_flaky,
    n.degraded,
    n.retries,
    (SELECT COUNT(*) FROM test_session_error_groups g WHERE g.test_session_id = n.test_session_id) AS error_groups,
    n.retry_cost_ms,
    MS_BETWEEN(n.started_at, n.stopped_at) AS duration_ms,
    CAST(n.passed AS double precision) / NULLIF(n.passed + n.failed, 0) AS pass_rate,
    CASE WHEN n.failed > 0 THEN 'FAILED' ELSE n.status END AS verdict
FROM (
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
        r.executions,
        r.passed,
        r.failed,
        r.undecided,
        r.retry_flaky,
        r.degraded,
        r.retries,
        r.retry_cost_ms
    FROM test_sessions s
    JOIN etl_rollup_test_session_summary r ON r.test_session_id = s.test_session_id
    UNION ALL
    SELECT
        test_session_id,
        account_id,
        project_id,
        name,
        provider,
        status,
        environment,
        branch_name,
        commit_id,
        started_at,
        stopped_at,
        link,
        executions,
        passed,
        failed,
        undecided,
        retry_flaky,
        degraded,
        retries,
        retry_cost_ms
    FROM etl_live_test_session_summary
) AS n
