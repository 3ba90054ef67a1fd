-- One row a check that ran in the last 30 days: three meanings of flaky, each with its sample size.
-- retry: passed after a failed attempt, of decided. commit: passed and failed on one commit in one environment and run
-- location, of the commits that had the chance (two decided there). flip: another status than the execution before it,
-- of those that have one before (comparable; that one may be older than 30 days).
WITH recent AS (
    SELECT
        test_session_id,
        execution_no,
        history_key,
        account_id,
        check_key,
        environment,
        run_location,
        commit_id,
        verdict,
        is_retry_flaky,
        started_at
    FROM check_executions
    WHERE started_at >= DAYS_AGO(29) AND started_at < DAYS_AGO(-1)
),
decided AS (
    SELECT
        recent.*,
        LAG(verdict) OVER (
            PARTITION BY history_key, account_id, check_key ORDER BY started_at, test_session_id, execution_no
        ) AS verdict_before
    FROM recent
    WHERE verdict IS NOT NULL
),
compared AS (
    SELECT
        account_id,
        check_key,
        verdict,
        COALESCE(verdict_before, (
            SELECT p.verdict
            FROM check_executions p
            WHERE p.history_key = decided.history_key AND p.started_at < DAYS_AGO(29) AND p.verdict IS NOT NULL
            ORDER BY p.started_at DESC, p.test_session_id DESC, p.execution_no DESC
            LIMIT 1
        )) AS verdict_before
    FROM decided
),
flips AS (
    SELECT
        account_id,
        check_key,
        COUNT(verdict_before) AS comparable,
        COUNT(CASE WHEN verdict <> verdict_before THEN 1 END) AS flips
    FROM compared
    GROUP BY account_id, check_key
),
commits_somewhere AS (
    SELECT
        account_id,
        check_key,
        commit_id,
        MAX(CASE WHEN n >= 2 THEN 1 ELSE 0 END) AS had_the_chance,
        MAX(CASE WHEN passed > 0 AND failed > 0 THEN 1 ELSE 0 END) AS is_flaky
    FROM (
        SELECT
            account_id,
            check_key,
            commit_id,
            COUNT(*) AS n,
            COUNT(CASE WHEN verdict = 'PASSED' THEN 1 END) AS passed,
            COUNT(CASE WHEN verdict = 'FAILED' THEN 1 END) AS failed
        FROM decided
        WHERE commit_id IS NOT NULL
        GROUP BY account_id, check_key, commit_id, environment, run_location
    ) AS places
    GROUP BY account_id, check_key, commit_id
),
commits AS (
    SELECT account_id, check_key, SUM(had_the_chance) AS commits, SUM(is_flaky) AS commit_flaky
    FROM commits_somewhere
    GROUP BY account_id, check_key
),
checks AS (
    SELECT
        account_id,
        check_key,
        COUNT(*) AS executions,
        COUNT(verdict) AS decided,
        COUNT(CASE WHEN verdict IS NOT NULL AND is_retry_flaky THEN 1 END) AS retry_flaky
    FROM recent
    GROUP BY account_id, check_key
)
SELECT
    k.account_id,
    k.check_key,
    c.check_name,
    c.check_type,
    k.executions,
    k.decided,
    k.retry_flaky,
    CAST(k.retry_flaky AS double precision) / NULLIF(k.decided, 0) AS retry_flaky_rate,
    CAST(COALESCE(m.commits, 0) AS bigint) AS commits,
    CAST(COALESCE(m.commit_flaky, 0) AS bigint) AS commit_flaky,
    CAST(m.commit_flaky AS double precision) / NULLIF(m.commits, 0) AS commit_flaky_rate,
    COALESCE(f.comparable, 0) AS comparable,
    COALESCE(f.flips, 0) AS flips,
    CAST(f.flips AS double precision) / NULLIF(f.comparable, 0) AS flip_rate
FROM checks k
LEFT JOIN flips f ON f.check_key = k.check_key AND SAME(f.account_id, k.account_id)
LEFT JOIN commits m ON m.check_key = k.check_key AND SAME(m.account_id, k.account_id)
LEFT JOIN v_checks c ON c.check_key = k.check_key AND SAME(c.account_id, k.account_id)
