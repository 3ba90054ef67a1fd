-- One row a row of v_flaky_checks, of the checks that are not rolled up for today. Internal.
WITH recent AS (
    SELECT
        k.check_hash,
        e.test_session_id,
        e.execution_no,
        e.history_key,
        e.environment,
        e.run_location,
        e.commit_id,
        e.verdict,
        e.is_retry_flaky,
        e.is_ambiguous,
        e.started_at
    FROM etl_checks k
    JOIN check_executions e ON CHECK_HASH(e.account_id, e.check_key) = k.check_hash
    WHERE IS_OPEN(k)
        -- The same twice, each for another index: that of days, and that of checks.
        AND UTC_DAY(e.started_at) >= DATE_AGO(29) AND UTC_DAY(e.started_at) <= DATE_AGO(0)
        AND e.started_at >= DAYS_AGO(29) AND e.started_at < DAYS_AGO(-1)
),
decided AS (
    SELECT
        recent.*,
        LAG(verdict) OVER (
            PARTITION BY history_key ORDER BY started_at, test_session_id, execution_no
        ) AS verdict_before
    FROM recent
    WHERE verdict IS NOT NULL AND NOT is_ambiguous
),
-- Materialized: what was looked up is counted twice.
compared AS MATERIALIZED (
    SELECT
        check_hash,
        verdict,
        COALESCE(verdict_before, (
            SELECT p.verdict
            FROM check_executions p
            WHERE p.history_key = decided.history_key AND p.started_at < DAYS_AGO(29)
                AND p.verdict IS NOT NULL AND NOT p.is_ambiguous
            ORDER BY p.started_at DESC, p.test_session_id DESC, p.execution_no DESC
            LIMIT 1
        )) AS verdict_before
    FROM decided
),
flips AS (
    SELECT
        check_hash,
        COUNT(verdict_before) AS comparable,
        COUNT(CASE WHEN verdict <> verdict_before THEN 1 END) AS flips
    FROM compared
    GROUP BY check_hash
),
commits_somewhere AS (
    SELECT
        check_hash,
        commit_id,
        MAX(CASE WHEN n >= 2 THEN 1 ELSE 0 END) AS had_the_chance,
        MAX(CASE WHEN passed > 0 AND failed > 0 THEN 1 ELSE 0 END) AS is_flaky
    FROM (
        SELECT
            check_hash,
            commit_id,
            COUNT(*) AS n,
            COUNT(CASE WHEN verdict = 'PASSED' THEN 1 END) AS passed,
            COUNT(CASE WHEN verdict = 'FAILED' THEN 1 END) AS failed
        FROM decided
        WHERE commit_id IS NOT NULL
        GROUP BY check_hash, commit_id, environment, run_location
    ) AS places
    GROUP BY check_hash, commit_id
),
commits AS (
    SELECT check_hash, SUM(had_the_chance) AS commits, SUM(is_flaky) AS commit_flaky
    FROM commits_somewhere
    GROUP BY check_hash
),
checks AS (
    SELECT
        check_hash,
        COUNT(*) AS executions,
        COUNT(verdict) AS decided,
        COUNT(CASE WHEN verdict IS NOT NULL AND is_retry_flaky THEN 1 END) AS retry_flaky,
        COUNT(CASE WHEN is_ambiguous THEN 1 END) AS ambiguous
    FROM recent
    GROUP BY check_hash
)
SELECT
    k.check_hash,
    k.executions,
    k.decided,
    k.retry_flaky,
    CAST(COALESCE(m.commits, 0) AS bigint) AS commits,
    CAST(COALESCE(m.commit_flaky, 0) AS bigint) AS commit_flaky,
    COALESCE(f.comparable, 0) AS comparable,
    COALESCE(f.flips, 0) AS flips,
    k.ambiguous
FROM checks k
LEFT JOIN flips f ON f.check_hash = k.check_hash
LEFT JOIN commits m ON m.check_hash = k.check_hash
