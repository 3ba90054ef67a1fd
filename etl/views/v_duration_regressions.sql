-- One row a check in an environment and run location that passed in the last 14 days, all branches: did it get slower?
-- recent_p95_duration_ms over the last 7 days; baseline_p95_duration_ms: the highest p95 of any one day of the 7 before.
-- Percentiles are nearest-rank over the durations of PASSED executions (but ambiguous ones); _n counts those. ratio:
-- recent / baseline.
WITH counted AS (
    SELECT
        r.check_hash,
        r.environment,
        r.run_location,
        r.recent_p95_duration_ms,
        r.baseline_p95_duration_ms,
        r.recent_n,
        r.baseline_n,
        r.baseline_days
    FROM etl_rollup_duration_regressions r
    JOIN etl_checks k ON k.check_hash = r.check_hash
    WHERE k.rolled_up_for = DATE_AGO(0)
    UNION ALL
    SELECT
        check_hash,
        environment,
        run_location,
        recent_p95_duration_ms,
        baseline_p95_duration_ms,
        recent_n,
        baseline_n,
        baseline_days
    FROM etl_live_duration_regressions
)
SELECT
    c.account_id,
    c.check_key,
    n.environment,
    n.run_location,
    c.check_name,
    c.check_type,
    n.recent_p95_duration_ms,
    n.baseline_p95_duration_ms,
    n.recent_n,
    n.baseline_n,
    n.baseline_days,
    n.recent_p95_duration_ms / NULLIF(n.baseline_p95_duration_ms, 0) AS ratio
FROM counted n
JOIN etl_live_checks c ON c.check_hash = n.check_hash
