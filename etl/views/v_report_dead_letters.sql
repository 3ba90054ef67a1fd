-- One row a dead letter: a test session that could not be exported, and why. For the report, no contract.
SELECT
    test_session_id,
    account_id,
    error_kind,
    last_error,
    last_error_at,
    session_created_at
FROM etl_queue
WHERE state = 'dead'
