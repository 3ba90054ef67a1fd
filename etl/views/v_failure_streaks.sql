-- One row a streak of FAILED executions of a check on a branch, in an environment and run location.
-- recovered_…: of the first PASSED after it; null while the streak is open. time_to_fix_ms: recovered_at minus
-- first_failed_at, each floored to whole milliseconds. link: of the last failure. Undecided and ambiguous executions do
-- not count.
WITH streaks AS (
    SELECT
        r.check_hash,
        k.account_id,
        k.check_key,
        r.branch_name,
        r.environment,
        r.run_location,
        r.first_failed_at,
        r.last_failed_at,
        r.recovered_at,
        r.failures,
        r.time_to_fix_ms,
        r.first_failed_test_session_id,
        r.first_failed_commit_id,
        r.recovered_test_session_id,
        r.recovered_commit_id,
        r.link
    FROM etl_checks k
    JOIN etl_rollup_failure_streaks r ON r.check_hash = k.check_hash
    WHERE k.has_streaks
    UNION ALL
    SELECT
        check_hash,
        account_id,
        check_key,
        branch_name,
        environment,
        run_location,
        first_failed_at,
        last_failed_at,
        recovered_at,
        failures,
        time_to_fix_ms,
        first_failed_test_session_id,
        first_failed_commit_id,
        recovered_test_session_id,
        recovered_commit_id,
        link
    FROM etl_live_failure_streaks
)
SELECT
    s.account_id,
    s.check_key,
    s.branch_name,
    s.environment,
    s.run_location,
    c.check_name,
    c.check_type,
    s.first_failed_at,
    s.last_failed_at,
    s.recovered_at,
    s.failures,
    s.time_to_fix_ms,
    s.first_failed_test_session_id,
    s.first_failed_commit_id,
    s.recovered_test_session_id,
    s.recovered_commit_id,
    s.link
FROM streaks s
LEFT JOIN etl_live_checks c ON c.check_hash = s.check_hash
