-- One row a check that ran in the last 30 days: three meanings of flaky, each with its sample size.
-- retry: passed after a failed attempt, of decided. commit: passed and failed on one commit in one environment and run
-- location, of the commits that had the chance (two decided there). flip: another verdict than the execution before it,
-- of those that have one before (comparable; that one may be older than 30 days). ambiguous: executions that may be of
-- another check of the same name; they are not compared, so commits and flips leave them out.
WITH counted AS (
    SELECT
        r.check_hash,
        r.executions,
        r.decided,
        r.retry_flaky,
        r.commits,
        r.commit_flaky,
        r.comparable,
        r.flips,
        r.ambiguous
    FROM etl_rollup_flaky_checks r
    JOIN etl_checks k ON k.check_hash = r.check_hash
    WHERE k.rolled_up_for = DATE_AGO(0)
    UNION ALL
    SELECT
        check_hash,
        executions,
        decided,
        retry_flaky,
        commits,
        commit_flaky,
        comparable,
        flips,
        ambiguous
    FROM etl_live_flaky_checks
)
SELECT
    c.account_id,
    c.check_key,
    c.check_name,
    c.check_type,
    n.executions,
    n.decided,
    n.retry_flaky,
    CAST(n.retry_flaky AS double precision) / NULLIF(n.decided, 0) AS retry_flaky_rate,
    n.commits,
    n.commit_flaky,
    CAST(n.commit_flaky AS double precision) / NULLIF(n.commits, 0) AS commit_flaky_rate,
    n.comparable,
    n.flips,
    CAST(n.flips AS double precision) / NULLIF(n.comparable, 0) AS flip_rate,
    n.ambiguous
FROM counted n
JOIN etl_live_checks c ON c.check_hash = n.check_hash
