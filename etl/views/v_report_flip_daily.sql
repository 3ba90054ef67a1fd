-- One row a check, UTC day of started_at, branch and environment: what v_flaky_checks says of flips, by the day.
-- comparable: decided executions that have one before them. flips: those with another status. For the report, no contract.
SELECT
    UTC_DAY(started_at) AS day,
    account_id,
    check_key,
    branch_name,
    environment,
    COUNT(previous_status) AS comparable,
    COUNT(CASE WHEN is_flip THEN 1 END) AS flips
FROM v_execution_history
GROUP BY UTC_DAY(started_at), account_id, check_key, branch_name, environment
