-- One row an account that has settings, work or test sessions here: how much of what is known of it is exported.
-- unexported: test sessions in the queue, dead letters included, of which there is no row yet. coverage: exported ones,
-- of those and the unexported; null where nothing is known. failed_runs: runs that failed since the account's last
-- success. For the report, no contract.
WITH accounts AS (
    SELECT account_id FROM etl_accounts
    UNION
    SELECT account_id FROM etl_queue
    UNION
    SELECT account_id FROM test_sessions
),
exported AS (
    SELECT account_id, COUNT(*) AS test_sessions, MIN(started_at) AS oldest_started_at
    FROM test_sessions
    GROUP BY account_id
),
unexported AS (
    SELECT q.account_id, COUNT(*) AS unexported
    FROM etl_queue q
    WHERE q.state <> 'discarded'
        AND NOT EXISTS (SELECT 1 FROM test_sessions s WHERE s.test_session_id = q.test_session_id)
    GROUP BY q.account_id
)
SELECT
    accounts.account_id,
    a.name AS account_name,
    COALESCE(e.test_sessions, 0) AS test_sessions,
    COALESCE(u.unexported, 0) AS unexported,
    CAST(COALESCE(e.test_sessions, 0) AS double precision)
        / NULLIF(COALESCE(e.test_sessions, 0) + COALESCE(u.unexported, 0), 0) AS coverage,
    e.oldest_started_at,
    (
        SELECT COUNT(*)
        FROM etl_runs r
        WHERE r.outcome = 'failed' AND (a.last_success_at IS NULL OR r.started_at > a.last_success_at)
    ) AS failed_runs
FROM accounts
LEFT JOIN etl_accounts a ON a.account_id = accounts.account_id
-- Nulls do not join: an id that is not assigned yet must still be counted.
LEFT JOIN exported e ON COALESCE(CAST(e.account_id AS text), '') = COALESCE(CAST(accounts.account_id AS text), '')
LEFT JOIN unexported u ON COALESCE(CAST(u.account_id AS text), '') = COALESCE(CAST(accounts.account_id AS text), '')
