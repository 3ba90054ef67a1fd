-- One row an error group, UTC day, check, branch and environment: how often it was seen there.
-- Rows of v_error_occurrences are counted, ATTEMPT included; check_key is null outside of an execution. For the report,
-- no contract.
SELECT
    UTC_DAY(started_at) AS day,
    error_group_id,
    account_id,
    check_key,
    branch_name,
    environment,
    COUNT(*) AS occurrences
FROM v_error_occurrences
GROUP BY UTC_DAY(started_at), error_group_id, account_id, check_key, branch_name, environment
