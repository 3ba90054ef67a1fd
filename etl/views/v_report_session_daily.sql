-- One row a UTC day of started_at, account, branch, environment and verdict: its test sessions.
-- The verdict is that of v_test_session_summary. For the report, no contract.
SELECT
    UTC_DAY(started_at) AS day,
    account_id,
    branch_name,
    environment,
    verdict,
    COUNT(*) AS test_sessions
FROM v_test_session_summary
GROUP BY UTC_DAY(started_at), account_id, branch_name, environment, verdict
