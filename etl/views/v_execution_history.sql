-- One row a decided execution, beside the one before it of the same check, branch, environment and run location.
-- previous_…: of the decided execution before it by started_at, test_session_id, execution_no; null for the first.
-- is_flip: its status differs from the previous one. is_new_failure: FAILED after PASSED. Both false for the first.
SELECT
    h.*,
    COALESCE(h.status <> h.previous_status, FALSE) AS is_flip,
    COALESCE(h.status = 'FAILED' AND h.previous_status = 'PASSED', FALSE) AS is_new_failure
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
        LAG(e.status) OVER history AS previous_status,
        LAG(e.started_at) OVER history AS previous_started_at,
        LAG(e.commit_id) OVER history AS previous_commit_id
    FROM etl_checks k
    JOIN check_executions e ON CHECK_HASH(e.account_id, e.check_key) = k.check_hash
    WHERE e.verdict IS NOT NULL
    -- history_key decides; the others stand here so that a filter on them reaches the table.
    WINDOW history AS (
        PARTITION BY
            e.history_key, k.account_id, k.check_key, e.branch_name, e.environment, e.run_location, e.check_id
        ORDER BY e.started_at, e.test_session_id, e.execution_no
    )
) AS h
