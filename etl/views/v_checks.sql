-- One row a check: an (account_id, check_key) that ever ran.
-- Names and type are those of its newest execution, project_id of the newest that has one, last_verdict of the
-- newest decided one; newest by started_at, test_session_id, execution_no.
WITH checks AS (
    SELECT
        account_id,
        check_key,
        MIN(started_at) AS first_started_at,
        MAX(started_at) AS last_started_at,
        MAX(CASE WHEN verdict IS NOT NULL THEN started_at END) AS last_decided_at,
        MAX(CASE WHEN project_id IS NOT NULL THEN started_at END) AS last_in_project_at
    FROM check_executions
    GROUP BY account_id, check_key
)
-- The rows of one moment are few, and found by the index on started_at.
SELECT
    k.account_id,
    k.check_key,
    (
        SELECT e.check_id
        FROM check_executions e
        WHERE e.started_at = k.last_started_at AND e.check_key = k.check_key AND SAME(e.account_id, k.account_id)
        ORDER BY e.test_session_id DESC, e.execution_no DESC
        LIMIT 1
    ) AS check_id,
    (
        SELECT e.check_name
        FROM check_executions e
        WHERE e.started_at = k.last_started_at AND e.check_key = k.check_key AND SAME(e.account_id, k.account_id)
        ORDER BY e.test_session_id DESC, e.execution_no DESC
        LIMIT 1
    ) AS check_name,
    (
        SELECT e.check_type
        FROM check_executions e
        WHERE e.started_at = k.last_started_at AND e.check_key = k.check_key AND SAME(e.account_id, k.account_id)
        ORDER BY e.test_session_id DESC, e.execution_no DESC
        LIMIT 1
    ) AS check_type,
    (
        SELECT e.project_id
        FROM check_executions e
        WHERE e.started_at = k.last_in_project_at AND e.check_key = k.check_key AND SAME(e.account_id, k.account_id)
            AND e.project_id IS NOT NULL
        ORDER BY e.test_session_id DESC, e.execution_no DESC
        LIMIT 1
    ) AS project_id,
    k.first_started_at,
    k.last_started_at,
    (
        SELECT e.verdict
        FROM check_executions e
        WHERE e.started_at = k.last_decided_at AND e.check_key = k.check_key AND SAME(e.account_id, k.account_id)
            AND e.verdict IS NOT NULL
        ORDER BY e.test_session_id DESC, e.execution_no DESC
        LIMIT 1
    ) AS last_verdict
FROM checks k
