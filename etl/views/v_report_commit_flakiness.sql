-- One row a check and environment of the last 30 days: what v_flaky_checks says of commits, by the environment.
-- commits: distinct ones with two or more decided executions in one run location. commit_flaky: those that passed and
-- failed there. For the report, no contract.
SELECT
    account_id,
    check_key,
    environment,
    SUM(had_the_chance) AS commits,
    SUM(is_flaky) AS commit_flaky
FROM (
    SELECT
        account_id,
        check_key,
        environment,
        commit_id,
        MAX(CASE WHEN passed + failed >= 2 THEN 1 ELSE 0 END) AS had_the_chance,
        MAX(CASE WHEN passed > 0 AND failed > 0 THEN 1 ELSE 0 END) AS is_flaky
    FROM (
        SELECT
            account_id,
            check_key,
            environment,
            run_location,
            commit_id,
            COUNT(CASE WHEN verdict = 'PASSED' THEN 1 END) AS passed,
            COUNT(CASE WHEN verdict = 'FAILED' THEN 1 END) AS failed
        FROM check_executions
        WHERE commit_id IS NOT NULL AND verdict IS NOT NULL AND NOT is_ambiguous
            -- The same twice, each for another index.
            AND UTC_DAY(started_at) >= DATE_AGO(29) AND UTC_DAY(started_at) <= DATE_AGO(0)
            AND started_at >= DAYS_AGO(29) AND started_at < DAYS_AGO(-1)
        GROUP BY account_id, check_key, environment, run_location, commit_id
    ) AS places
    GROUP BY account_id, check_key, environment, commit_id
) AS commits
GROUP BY account_id, check_key, environment
