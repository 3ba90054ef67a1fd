-- One row a row of v_check_daily, of the days that are not rolled up. Internal.
WITH executions AS (
    SELECT
        UTC_DAY(e.started_at) AS day,
        k.check_hash,
        k.account_id,
        k.check_key,
        e.history_key,
        e.branch_name,
        e.environment,
        e.run_location,
        e.verdict,
        e.has_errors,
        e.is_retry_flaky,
        e.is_degraded,
        e.retry_cost_ms,
        CASE WHEN e.verdict = 'PASSED' THEN e.duration_ms END AS passed_duration_ms
    FROM etl_checks k
    JOIN check_executions e ON CHECK_HASH(e.account_id, e.check_key) = k.check_hash
    WHERE UTC_DAY(e.started_at) < ROLLED_UP_SINCE()
    UNION ALL
    SELECT
        d.day,
        k.check_hash,
        k.account_id,
        k.check_key,
        e.history_key,
        e.branch_name,
        e.environment,
        e.run_location,
        e.verdict,
        e.has_errors,
        e.is_retry_flaky,
        e.is_degraded,
        e.retry_cost_ms,
        CASE WHEN e.verdict = 'PASSED' THEN e.duration_ms END AS passed_duration_ms
    FROM etl_days d
    JOIN check_executions e ON UTC_DAY(e.started_at) = d.day
    JOIN etl_checks k ON k.check_hash = CHECK_HASH(e.account_id, e.check_key)
    WHERE NOT d.is_rolled_up AND d.day >= ROLLED_UP_SINCE()
),
ranked AS (
    SELECT
        executions.*,
        ROW_NUMBER() OVER by_duration AS duration_rank,
        COUNT(passed_duration_ms) OVER by_duration AS durations
    FROM executions
    -- history_key decides; what it is made of stands here so that a filter on it reaches the table.
    WINDOW by_duration AS (
        PARTITION BY day, history_key, check_hash, account_id, check_key, branch_name, environment, run_location
        ORDER BY CASE WHEN passed_duration_ms IS NULL THEN 1 ELSE 0 END, passed_duration_ms
        ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING
    )
),
-- Windows to the end, and no GROUP BY: SQLite hands no filter through one to a window below.
summed AS (
    SELECT
        day,
        check_hash,
        account_id,
        check_key,
        branch_name,
        environment,
        run_location,
        duration_rank,
        COUNT(*) OVER whole AS executions,
        COUNT(verdict) OVER whole AS decided,
        COUNT(CASE WHEN verdict = 'PASSED' THEN 1 END) OVER whole AS passed,
        COUNT(CASE WHEN verdict = 'FAILED' THEN 1 END) OVER whole AS failed,
        COUNT(CASE WHEN verdict = 'FAILED' AND has_errors THEN 1 END) OVER whole AS errored,
        COUNT(CASE WHEN verdict IS NOT NULL AND is_retry_flaky THEN 1 END) OVER whole AS retry_flaky,
        COUNT(CASE WHEN verdict IS NOT NULL AND is_degraded THEN 1 END) OVER whole AS degraded,
        SUM(retry_cost_ms) OVER whole AS retry_cost_ms,
        COALESCE(SUM(passed_duration_ms) OVER whole, CAST(0 AS double precision)) AS passed_duration_ms_sum,
        COUNT(passed_duration_ms) OVER whole AS passed_duration_n,
        MAX(CASE WHEN duration_rank = (50 * durations + 99) / 100 THEN passed_duration_ms END) OVER whole AS p50_duration_ms,
        MAX(CASE WHEN duration_rank = (95 * durations + 99) / 100 THEN passed_duration_ms END) OVER whole AS p95_duration_ms
    FROM ranked
    WINDOW whole AS (
        PARTITION BY day, history_key, check_hash, account_id, check_key, branch_name, environment, run_location
    )
)
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
FROM summed
WHERE duration_rank = 1
