-- One row a decided execution, beside the one before it of the same check, branch, environment and run location.
-- previous_…: of the decided execution before it by started_at, test_session_id, execution_no; null for the first.
-- is_flip: its verdict differs from the previous one. is_new_failure: FAILED after PASSED. Both false for the first.
-- Ambiguous executions are left out, so is_ambiguous is always false.
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
    e.is_ambiguous,
    e.duration_ms,
    e.retry_cost_ms,
    k.account_id,
    e.project_id,
    e.environment,
    e.branch_name,
    e.commit_id,
    p.status AS previous_status,
    p.started_at AS previous_started_at,
    p.commit_id AS previous_commit_id,
    COALESCE(e.verdict <> p.verdict, FALSE) AS is_flip,
    COALESCE(e.verdict = 'FAILED' AND p.verdict = 'PASSED', FALSE) AS is_new_failure
FROM etl_checks k
JOIN check_executions e ON CHECK_HASH(e.account_id, e.check_key) = k.check_hash
-- Looked up, not LAG(): so every filter reaches the table, that of a day, too.
LEFT JOIN check_executions p ON ROW_ID(p) = (
    SELECT ROW_ID(b)
    FROM check_executions b
    WHERE b.history_key = e.history_key AND b.verdict IS NOT NULL AND NOT b.is_ambiguous
        AND b.started_at <= e.started_at
        AND (b.started_at, b.test_session_id, b.execution_no) < (e.started_at, e.test_session_id, e.execution_no)
    ORDER BY b.started_at DESC, b.test_session_id DESC, b.execution_no DESC
    LIMIT 1
)
WHERE e.verdict IS NOT NULL AND NOT e.is_ambiguous
