-- One row a row of v_duration_regressions, of the checks that are not rolled up for today. Internal.
WITH durations AS (
    SELECT
        k.check_hash,
        e.environment,
        e.run_location,
        e.duration_ms,
        -- The last seven days are one period, each day before is one of its own.
        CASE WHEN e.started_at >= DAYS_AGO(6) THEN 'recent' ELSE UTC_DAY_TEXT(e.started_at) END AS period
    FROM etl_checks k
    JOIN check_executions e ON CHECK_HASH(e.account_id, e.check_key) = k.check_hash
    WHERE IS_OPEN(k)
        AND e.verdict = 'PASSED' AND e.duration_ms IS NOT NULL AND NOT e.is_ambiguous
        -- The same twice, each for another index: that of days, and that of checks.
        AND UTC_DAY(e.started_at) >= DATE_AGO(13) AND UTC_DAY(e.started_at) <= DATE_AGO(0)
        AND e.started_at >= DAYS_AGO(13) AND e.started_at < DAYS_AGO(-1)
),
ranked AS (
    SELECT
        durations.*,
        ROW_NUMBER() OVER by_duration AS duration_rank,
        COUNT(*) OVER by_duration AS n
    FROM durations
    WINDOW by_duration AS (
        PARTITION BY check_hash, environment, run_location, period
        ORDER BY duration_ms
        ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING
    )
),
periods AS (
    SELECT
        check_hash,
        environment,
        run_location,
        period,
        COUNT(*) AS n,
        MAX(CASE WHEN duration_rank = (95 * n + 99) / 100 THEN duration_ms END) AS p95_duration_ms
    FROM ranked
    GROUP BY check_hash, environment, run_location, period
)
SELECT
    check_hash,
    environment,
    run_location,
    MAX(CASE WHEN period = 'recent' THEN p95_duration_ms END) AS recent_p95_duration_ms,
    MAX(CASE WHEN period <> 'recent' THEN p95_duration_ms END) AS baseline_p95_duration_ms,
    CAST(COALESCE(SUM(CASE WHEN period = 'recent' THEN n END), 0) AS bigint) AS recent_n,
    CAST(COALESCE(SUM(CASE WHEN period <> 'recent' THEN n END), 0) AS bigint) AS baseline_n,
    COUNT(CASE WHEN period <> 'recent' THEN 1 END) AS baseline_days
FROM periods
GROUP BY check_hash, environment, run_location
