-- One row a check: an (account_id, check_key) that ever ran.
-- Names and type are those of its newest execution, project_id of the newest that has one, last_verdict of the
-- newest decided one; newest by started_at, test_session_id, execution_no. ambiguous counts the executions that may
-- be of another check of the same name: other views leave them out of comparisons.
SELECT
    account_id,
    check_key,
    check_id,
    check_name,
    check_type,
    project_id,
    first_started_at,
    last_started_at,
    last_verdict,
    ambiguous
FROM etl_live_checks
