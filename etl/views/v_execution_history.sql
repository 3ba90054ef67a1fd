-- One row a decided execution, beside the one before it of the same check, branch, environment and run location.
-- previous_…: of the decided execution before it by started_at, test_session_id, execution_no; null for the first.
-- is_flip: its status differs from the previous one. is_new_failure: FAILED after PASSED. Both false for the first.
SELECT
    h.*,
    COALESCE(h.status <> h.previous_status, FALSE) AS is_flip,
    COALESCE(h.status = 'FAILED' AND h.previous_status = 'PASSED', FALSE) AS is_new_failure
FROM (
    SELECT
        e.*,
        LAG(status) OVER history AS previous_status,
        LAG(started_at) OVER history AS previous_started_at,
        LAG(commit_id) OVER history AS previous_commit_id
    FROM check_executions e
    WHERE verdict IS NOT NULL
    -- history_key decides; the others stand here so that a filter on them reaches the table.
    WINDOW history AS (
        PARTITION BY history_key, account_id, check_key, branch_name, environment, run_location, check_id
        ORDER BY started_at, test_session_id, execution_no
    )
) AS h
