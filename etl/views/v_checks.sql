-- One row a check: an (account_id, check_key) that ever ran.
-- Names and type are those of its newest execution, project_id of the newest that has one, last_verdict of the
-- newest decided one.
SELECT
    account_id,
    check_key,
    check_id,
    check_name,
    check_type,
    last_project_id AS project_id,
    first_started_at,
    started_at AS last_started_at,
    last_verdict
FROM (
    SELECT
        account_id,
        check_key,
        check_id,
        check_name,
        check_type,
        started_at,
        MIN(started_at) OVER (PARTITION BY account_id, check_key) AS first_started_at,
        FIRST_VALUE(project_id) OVER (
            PARTITION BY account_id, check_key
            ORDER BY CASE WHEN project_id IS NULL THEN 1 ELSE 0 END,
                started_at DESC, test_session_id DESC, execution_no DESC
        ) AS last_project_id,
        FIRST_VALUE(verdict) OVER (
            PARTITION BY account_id, check_key
            ORDER BY CASE WHEN verdict IS NULL THEN 1 ELSE 0 END,
                started_at DESC, test_session_id DESC, execution_no DESC
        ) AS last_verdict,
        ROW_NUMBER() OVER (
            PARTITION BY account_id, check_key
            ORDER BY started_at DESC, test_session_id DESC, execution_no DESC
        ) AS nth_newest
    FROM check_executions
) AS ranked
WHERE nth_newest = 1
