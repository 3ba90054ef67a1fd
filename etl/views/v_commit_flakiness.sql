-- One row a check and commit in an environment and run location: did the same code pass and fail?
-- is_commit_flaky: both passed and failed. Executions without a commit and ambiguous ones are left out, undecided
-- ones count as neither.
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
        k.check_hash,
        k.account_id,
        k.check_key,
        x.environment,
        x.run_location,
        x.commit_id,
        COUNT(CASE WHEN x.verdict = 'PASSED' THEN 1 END) AS passed,
        COUNT(CASE WHEN x.verdict = 'FAILED' THEN 1 END) AS failed,
        MIN(x.started_at) AS first_started_at,
        MAX(x.started_at) AS last_started_at
    FROM etl_checks k
    JOIN check_executions x ON CHECK_HASH(x.account_id, x.check_key) = k.check_hash
    WHERE x.commit_id IS NOT NULL AND NOT x.is_ambiguous
    GROUP BY k.check_hash, k.account_id, k.check_key, x.environment, x.run_location, x.commit_id
) AS e
LEFT JOIN etl_live_checks c ON c.check_hash = e.check_hash
