-- One row a row of v_failure_streaks, of the checks whose history is not rolled up. Internal.
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
    WHERE e.verdict IS NOT NULL AND NOT e.is_ambiguous AND (k.has_streaks IS NULL OR NOT k.has_streaks)
    WINDOW in_order AS (
        PARTITION BY
            e.history_key, k.check_hash, k.account_id, k.check_key, e.branch_name, e.environment, e.run_location
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
        PARTITION BY history_key, check_hash, account_id, check_key, branch_name, environment, run_location
        ORDER BY position
    )
)
SELECT
    check_hash,
    account_id,
    check_key,
    branch_name,
    environment,
    run_location,
    started_at AS first_failed_at,
    last_failed_at,
    recovered_at,
    last_position - position + 1 AS failures,
    WHOLE_MS(recovered_at) - WHOLE_MS(started_at) AS time_to_fix_ms,
    test_session_id AS first_failed_test_session_id,
    commit_id AS first_failed_commit_id,
    recovered_session AS recovered_test_session_id,
    recovered_commit AS recovered_commit_id,
    last_link AS link
FROM streaks
WHERE is_first
