-- One row a decided execution, beside the one before it of the same check, branch, environment and run location.
-- previous_…: of the decided execution before it by started_at, test_session_id, execution_no; null for the first.
-- is_flip: its status differs from the previous one. is_new_failure: FAILED after PASSED. Both false for the first.
SELECT
    h.*,
    COALESCE(h.status <> h.previous_status, FALSE) AS is_flip,
    COALESCE(h.status = 'FAILED' AND h.previous_status = 'PASSED', FALSE) AS is_new_failure
-- Looked up, not LAG(): so every filter reaches the table, that of a day, too.
FROM (
    SELECT
        e.test_session_id,
        e.execution_no,
        k.check_key,
        e.history_key,
        e.grouped_by,
        e.test_session_result_id,
        e.link,
        e.check_id,
        e.check_name,
        e.check_type,
        e.run_location,
        e.status,
        e.verdict,
        e.retries,
        e.is_retry_flaky,
        e.is_degraded,
        e.has_errors,
        e.started_at,
        e.stopped_at,
        e.duration_ms,
        e.retry_cost_ms,
        k.account_id,
        e.project_id,
        e.environment,
        e.branch_name,
        e.commit_id,
        (
            SELECT p.status
            FROM check_executions p
            WHERE p.history_key = e.history_key AND p.verdict IS NOT NULL AND p.started_at <= e.started_at
                AND (p.started_at, p.test_session_id, p.execution_no) < (e.started_at, e.test_session_id, e.execution_no)
            ORDER BY p.started_at DESC, p.test_session_id DESC, p.execution_no DESC
            LIMIT 1
        ) AS previous_status,
        (
            SELECT p.started_at
            FROM check_executions p
            WHERE p.history_key = e.history_key AND p.verdict IS NOT NULL AND p.started_at <= e.started_at
                AND (p.started_at, p.test_session_id, p.execution_no) < (e.started_at, e.test_session_id, e.execution_no)
            ORDER BY p.started_at DESC, p.test_session_id DESC, p.execution_no DESC
            LIMIT 1
        ) AS previous_started_at,
        (
            SELECT p.commit_id
            FROM check_executions p
            WHERE p.history_key = e.history_key AND p.verdict IS NOT NULL AND p.started_at <= e.started_at
                AND (p.started_at, p.test_session_id, p.execution_no) < (e.started_at, e.test_session_id, e.execution_no)
            ORDER BY p.started_at DESC, p.test_session_id DESC, p.execution_no DESC
            LIMIT 1
        ) AS previous_commit_id
    FROM etl_checks k
    JOIN check_executions e ON CHECK_HASH(e.account_id, e.check_key) = k.check_hash
    WHERE e.verdict IS NOT NULL
) AS h
