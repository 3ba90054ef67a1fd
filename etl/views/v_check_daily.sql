-- One row a check, UTC day of started_at, branch, environment and run location.
-- passed, failed, errored (failed, and the run itself broke), retry_flaky and degraded count decided executions only.
-- Rates are null where nothing was decided. Percentiles are nearest-rank over the durations of PASSED executions.
WITH executions AS (
    SELECT
        UTC_DAY(started_at) AS day,
        history_key,
        account_id,
        check_key,
        branch_name,
        environment,
        run_location,
        verdict,
        has_errors,
        is_retry_flaky,
        is_degraded,
        retry_cost_ms,
        CASE WHEN verdict = 'PASSED' THEN duration_ms END AS passed_duration_ms
    FROM check_executions
),
ranked AS (
    SELECT
        executions.*,
        ROW_NUMBER() OVER by_duration AS duration_rank,
        COUNT(passed_duration_ms) OVER by_duration AS durations
    FROM executions
    -- history_key decides; what it is made of stands here so that a filter on it reaches the table.
    WINDOW by_duration AS (
        PARTITION BY day, history_key, account_id, check_key, branch_name, environment, run_location
        ORDER BY CASE WHEN passed_duration_ms IS NULL THEN 1 ELSE 0 END, passed_duration_ms
        ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING
    )
),
days AS (
    SELECT
        day,
        account_id,
        check_key,
        branch_name,
        environment,
        run_location,
        COUNT(*) AS executions,
        COUNT(verdict) AS decided,
        COUNT(CASE WHEN verdict = 'PASSED' THEN 1 END) AS passed,
        COUNT(CASE WHEN verdict = 'FAILED' THEN 1 END) AS failed,
        COUNT(CASE WHEN verdict = 'FAILED' AND has_errors THEN 1 END) AS errored,
        COUNT(CASE WHEN verdict IS NOT NULL AND is_retry_flaky THEN 1 END) AS retry_flaky,
        COUNT(CASE WHEN verdict IS NOT NULL AND is_degraded THEN 1 END) AS degraded,
        SUM(retry_cost_ms) AS retry_cost_ms,
        COALESCE(SUM(passed_duration_ms), CAST(0 AS double precision)) AS passed_duration_ms_sum,
        COUNT(passed_duration_ms) AS passed_duration_n,
        MAX(CASE WHEN duration_rank = (50 * durations + 99) / 100 THEN passed_duration_ms END) AS p50_duration_ms,
        MAX(CASE WHEN duration_rank = (95 * durations + 99) / 100 THEN passed_duration_ms END) AS p95_duration_ms
    FROM ranked
    GROUP BY day, history_key, account_id, check_key, branch_name, environment, run_location
)
SELECT
    d.day,
    d.account_id,
    d.check_key,
    d.branch_name,
    d.environment,
    d.run_location,
    c.check_name,
    c.check_type,
    c.project_id,
    d.executions,
    d.decided,
    d.passed,
    d.failed,
    d.errored,
    d.retry_flaky,
    d.degraded,
    CAST(d.passed AS double precision) / NULLIF(d.decided, 0) AS pass_rate,
    CAST(d.retry_flaky AS double precision) / NULLIF(d.decided, 0) AS retry_flaky_rate,
    d.retry_cost_ms,
    d.passed_duration_ms_sum,
    d.passed_duration_n,
    d.p50_duration_ms,
    d.p95_duration_ms
FROM days d
LEFT JOIN v_checks c ON c.check_key = d.check_key AND SAME(c.account_id, d.account_id)
