-- One row a streak of FAILED executions of a check on a branch, in an environment and run location.
-- recovered_…: of the first PASSED after it; null while the streak is open. time_to_fix_ms: recovered_at minus
-- first_failed_at, each floored to whole milliseconds. link: of the last failure. Undecided executions do not count.
WITH history AS (
    SELECT
        k.check_hash,
        k.account_id,
        k.check_key,
        e.history_key,
        e.branch_name,
        e.environment,
        e.run_location,
        e.verdict,
        e.started_at,
        e.test_session_id,
        e.commit_id,
        e.link,
        LAG(e.verdict) OVER in_order AS verdict_before,
        LEAD(e.verdict) OVER in_order AS verdict_after,
        LEAD(e.started_at) OVER in_order AS started_after,
        LEAD(e.test_session_id) OVER in_order AS session_after,
        LEAD(e.commit_id) OVER in_order AS commit_after,
        ROW_NUMBER() OVER in_order AS position
    FROM etl_checks k
    JOIN check_executions e ON CHECK_HASH(e.account_id, e.check_key) = k.check_hash
    WHERE e.verdict IS NOT NULL
    WINDOW in_order AS (
        PARTITION BY e.history_key, k.account_id, k.check_key, e.branch_name, e.environment, e.run_location
        ORDER BY e.started_at, e.test_session_id, e.execution_no
    )
),
-- The first and the last failure of each streak, which may be the same: a long streak costs no more than a short one.
ends AS (
    SELECT
        history.*,
        COALESCE(verdict_before <> 'FAILED', TRUE) AS is_first,
        COALESCE(verdict_after <> 'FAILED', TRUE) AS is_last
    FROM history
    WHERE verdict = 'FAILED'
        AND (COALESCE(verdict_before <> 'FAILED', TRUE) OR COALESCE(verdict_after <> 'FAILED', TRUE))
),
streaks AS (
    SELECT
        ends.*,
        CASE WHEN is_last THEN started_at ELSE LEAD(started_at) OVER by_position END AS last_failed_at,
        CASE WHEN is_last THEN position ELSE LEAD(position) OVER by_position END AS last_position,
        CASE WHEN is_last THEN link ELSE LEAD(link) OVER by_position END AS last_link,
        CASE WHEN is_last THEN started_after ELSE LEAD(started_after) OVER by_position END AS recovered_at,
        CASE WHEN is_last THEN session_after ELSE LEAD(session_after) OVER by_position END AS recovered_session,
        CASE WHEN is_last THEN commit_after ELSE LEAD(commit_after) OVER by_position END AS recovered_commit
    FROM ends
    WINDOW by_position AS (
        PARTITION BY history_key, account_id, check_key, branch_name, environment, run_location ORDER BY position
    )
)
SELECT
    s.account_id,
    s.check_key,
    s.branch_name,
    s.environment,
    s.run_location,
    c.check_name,
    c.check_type,
    s.started_at AS first_failed_at,
    s.last_failed_at,
    s.recovered_at,
    s.last_position - s.position + 1 AS failures,
    WHOLE_MS(s.recovered_at) - WHOLE_MS(s.started_at) AS time_to_fix_ms,
    s.test_session_id AS first_failed_test_session_id,
    s.commit_id AS first_failed_commit_id,
    s.recovered_session AS recovered_test_session_id,
    s.recovered_commit AS recovered_commit_id,
    s.last_link AS link
FROM streaks s
LEFT JOIN etl_live_checks c ON c.check_hash = s.check_hash
WHERE s.is_first
