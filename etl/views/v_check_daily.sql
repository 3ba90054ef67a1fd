-- One row a check, UTC day of started_at, branch, environment and run location.
-- passed, failed, errored (failed, and the run itself broke), retry_flaky and degraded count decided executions only.
-- Rates are null where nothing was decided. Percentiles are nearest-rank over the durations of PASSED executions.
WITH days AS (
    SELECT
        r.day,
        r.check_hash,
        r.account_id,
        r.check_key,
        r.branch_name,
        r.environment,
        r.run_location,
        r.executions,
        r.decided,
        r.passed,
        r.failed,
        r.errored,
        r.retry_flaky,
        r.degraded,
        r.retry_cost_ms,
        r.passed_duration_ms_sum,
        r.passed_duration_n,
        r.p50_duration_ms,
        r.p95_duration_ms
    FROM etl_rollup_check_daily r
    JOIN etl_days d ON d.day = r.day
    WHERE d.is_rolled_up AND d.day >= ROLLED_UP_SINCE()
    UNION ALL
    SELECT
        day,
        check_hash,
        account_id,
        check_key,
        branch_name,
        environment,
        run_location,
        executions,
        decided,
        passed,
        failed,
        errored,
        retry_flaky,
        degraded,
        retry_cost_ms,
        passed_duration_ms_sum,
        passed_duration_n,
        p50_duration_ms,
        p95_duration_ms
    FROM etl_live_check_daily
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
LEFT JOIN etl_live_checks c ON c.check_hash = d.check_hash
