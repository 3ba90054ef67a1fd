-- One row a check, with its short key. What was rolled up is read, the rest is looked up. Internal: see v_checks.
SELECT
    k.check_hash,
    k.account_id,
    k.check_key,
    CASE WHEN k.rolled_up_for >= ROLLED_UP_SINCE() THEN k.check_id ELSE (
        SELECT e.check_id
        FROM check_executions e
        WHERE CHECK_HASH(e.account_id, e.check_key) = k.check_hash
        ORDER BY e.started_at DESC, e.test_session_id DESC, e.execution_no DESC
        LIMIT 1
    ) END AS check_id,
    CASE WHEN k.rolled_up_for >= ROLLED_UP_SINCE() THEN k.check_name ELSE (
        SELECT e.check_name
        FROM check_executions e
        WHERE CHECK_HASH(e.account_id, e.check_key) = k.check_hash
        ORDER BY e.started_at DESC, e.test_session_id DESC, e.execution_no DESC
        LIMIT 1
    ) END AS check_name,
    CASE WHEN k.rolled_up_for >= ROLLED_UP_SINCE() THEN k.check_type ELSE (
        SELECT e.check_type
        FROM check_executions e
        WHERE CHECK_HASH(e.account_id, e.check_key) = k.check_hash
        ORDER BY e.started_at DESC, e.test_session_id DESC, e.execution_no DESC
        LIMIT 1
    ) END AS check_type,
    CASE WHEN k.rolled_up_for >= ROLLED_UP_SINCE() THEN k.project_id ELSE (
        SELECT e.project_id
        FROM check_executions e
        WHERE CHECK_HASH(e.account_id, e.check_key) = k.check_hash AND e.project_id IS NOT NULL
        ORDER BY e.started_at DESC, e.test_session_id DESC, e.execution_no DESC
        LIMIT 1
    ) END AS project_id,
    CASE WHEN k.rolled_up_for >= ROLLED_UP_SINCE() THEN k.first_started_at ELSE (
        SELECT e.started_at
        FROM check_executions e
        WHERE CHECK_HASH(e.account_id, e.check_key) = k.check_hash
        ORDER BY e.started_at
        LIMIT 1
    ) END AS first_started_at,
    CASE WHEN k.rolled_up_for >= ROLLED_UP_SINCE() THEN k.last_started_at ELSE (
        SELECT e.started_at
        FROM check_executions e
        WHERE CHECK_HASH(e.account_id, e.check_key) = k.check_hash
        ORDER BY e.started_at DESC
        LIMIT 1
    ) END AS last_started_at,
    CASE WHEN k.rolled_up_for >= ROLLED_UP_SINCE() THEN k.last_verdict ELSE (
        SELECT e.verdict
        FROM check_executions e
        WHERE CHECK_HASH(e.account_id, e.check_key) = k.check_hash AND e.verdict IS NOT NULL
        ORDER BY e.started_at DESC, e.test_session_id DESC, e.execution_no DESC
        LIMIT 1
    ) END AS last_verdict,
    CASE WHEN k.rolled_up_for >= ROLLED_UP_SINCE() THEN k.ambiguous ELSE (
        SELECT COUNT(*)
        FROM check_executions e
        WHERE CHECK_HASH(e.account_id, e.check_key) = k.check_hash AND e.is_ambiguous
    ) END AS ambiguous
FROM etl_checks k
-- Executions may be gone: their check did not run.
WHERE k.rolled_up_for >= ROLLED_UP_SINCE()
    OR EXISTS (SELECT 1 FROM check_executions e WHERE CHECK_HASH(e.account_id, e.check_key) = k.check_hash)
