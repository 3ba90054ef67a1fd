-- One row a check in an environment and run location that passed in the last 14 days, all branches: did it get slower?
-- recent_p95_duration_ms over the last 7 days; baseline_p95_duration_ms: the highest p95 of any one day of the 7 before.
-- Percentiles are nearest-rank over the durations of PASSED executions; _n counts those. ratio: recent / baseline.
WITH durations AS (
    SELECT
        e.account_id,
        e.check_key,
        e.environment,
        e.run_location,
        e.duration_ms,
        -- The last seven days are one period, each day before is one of its own.
        CASE WHEN e.started_at >= DAYS_AGO(6) THEN 'recent' ELSE UTC_DAY_TEXT(e.started_at) END AS period
    FROM check_executions e
    WHERE e.verdict = 'PASSED' AND e.duration_ms IS NOT NULL
        AND e.started_at >= DAYS_AGO(13) AND e.started_at < DAYS_AGO(-1)
),
ranked AS (
    SELECT
        durations.*,
        ROW_NUMBER() OVER by_duration AS duration_rank,
        COUNT(*) OVER by_duration AS n
    FROM durations
    WINDOW by_duration AS (
        PARTITION BY account_id, check_key, environment, run_location, period
        ORDER BY duration_ms
        ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING
    )
),
periods AS (
    SELECT
        account_id,
        check_key,
        environment,
        run_location,
        period,
        COUNT(*) AS n,
        MAX(CASE WHEN duration_rank = (95 * n + 99) / 100 THEN duration_ms END) AS p95_duration_ms
    FROM ranked
    GROUP BY account_id, check_key, environment, run_location, period
),
checks AS (
    SELECT
        account_id,
        check_key,
        environment,
        run_location,
        MAX(CASE WHEN period = 'recent' THEN p95_duration_ms END) AS recent_p95_duration_ms,
        MAX(CASE WHEN period <> 'recent' THEN p95_duration_ms END) AS baseline_p95_duration_ms,
        COALESCE(SUM(CASE WHEN period = 'recent' THEN n END), 0) AS recent_n,
        COALESCE(SUM(CASE WHEN period <> 'recent' THEN n END), 0) AS baseline_n,
        COUNT(CASE WHEN period <> 'recent' THEN 1 END) AS baseline_days
    FROM periods
    GROUP BY account_id, check_key, environment, run_location
)
SELECT
    k.account_id,
    k.check_key,
    k.environment,
    k.run_location,
    c.check_name,
    c.check_type,
    k.recent_p95_duration_ms,
    k.baseline_p95_duration_ms,
    CAST(k.recent_n AS bigint) AS recent_n,
    CAST(k.baseline_n AS bigint) AS baseline_n,
    k.baseline_days,
    k.recent_p95_duration_ms / NULLIF(k.baseline_p95_duration_ms, 0) AS ratio
FROM checks k
LEFT JOIN v_checks c ON c.check_key = k.check_key AND SAME(c.account_id, k.account_id)
