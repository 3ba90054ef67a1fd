-- One row a check and commit in an environment and run location: did the same code pass and fail?
-- is_commit_flaky: both passed and failed. Executions without a commit are left out, undecided ones count as neither.
SELECT
    e.account_id,
    e.check_key,
    e.environment,
    e.run_location,
    e.commit_id,
    c.check_name,
    c.check_type,
    e.passed,
    e.failed,
    e.passed > 0 AND e.failed > 0 AS is_commit_flaky,
    e.first_started_at,
    e.last_started_at
FROM (
    SELECT
        account_id,
        check_key,
        environment,
        run_location,
        commit_id,
        COUNT(CASE WHEN verdict = 'PASSED' THEN 1 END) AS passed,
        COUNT(CASE WHEN verdict = 'FAILED' THEN 1 END) AS failed,
        MIN(started_at) AS first_started_at,
        MAX(started_at) AS last_started_at
    FROM check_executions
    WHERE commit_id IS NOT NULL
    GROUP BY account_id, check_key, environment, run_location, commit_id
) AS e
LEFT JOIN v_checks c ON c.check_key = e.check_key AND SAME(c.account_id, e.account_id)
