-- One row an account that has settings, work or test sessions here (null: ids not yet assigned to one).
-- due: queued and available now; scheduled: queued for later. hours_until_loss: until Checkly deletes the oldest
-- test session that is known and not exported; negative when it is too late, null when there is none.
WITH accounts AS (
    SELECT account_id FROM etl_accounts
    UNION
    SELECT account_id FROM etl_queue
    UNION
    SELECT account_id FROM test_sessions
),
work AS (
    SELECT
        account_id,
        COUNT(CASE WHEN state = 'queued' AND available_at <= CURRENT_MOMENT() THEN 1 END) AS due,
        COUNT(CASE WHEN state = 'queued' AND available_at > CURRENT_MOMENT() THEN 1 END) AS scheduled,
        COUNT(CASE WHEN state = 'leased' THEN 1 END) AS leased,
        COUNT(CASE WHEN state = 'dead' THEN 1 END) AS dead,
        MIN(CASE WHEN state = 'queued' AND available_at <= CURRENT_MOMENT() THEN available_at END) AS oldest_due_at
    FROM etl_queue
    GROUP BY account_id
),
unexported AS (
    SELECT q.account_id, MIN(q.session_created_at) AS oldest_created_at
    FROM etl_queue q
    WHERE q.state <> 'discarded'
        -- What Checkly has deleted already cannot be lost again.
        AND NOT (q.state = 'dead' AND COALESCE(q.error_kind, '') = 'not_found')
        AND NOT EXISTS (SELECT 1 FROM test_sessions s WHERE s.test_session_id = q.test_session_id)
    GROUP BY q.account_id
),
losses AS (
    SELECT u.account_id, SECONDS_AFTER(u.oldest_created_at, a.retention) AS lost_at
    FROM unexported u
    JOIN etl_accounts a ON a.account_id = u.account_id
),
exported AS (
    SELECT account_id, MAX(started_at) AS newest_started_at FROM test_sessions GROUP BY account_id
)
SELECT
    accounts.account_id,
    a.last_success_at,
    exported.newest_started_at,
    COALESCE(work.due, 0) AS due,
    COALESCE(work.scheduled, 0) AS scheduled,
    COALESCE(work.leased, 0) AS leased,
    COALESCE(work.dead, 0) AS dead,
    work.oldest_due_at,
    HOURS_UNTIL(losses.lost_at) AS hours_until_loss
FROM accounts
LEFT JOIN etl_accounts a ON a.account_id = accounts.account_id
-- Nulls do not join: an id that is not assigned yet must still be counted.
LEFT JOIN work ON COALESCE(CAST(work.account_id AS text), '') = COALESCE(CAST(accounts.account_id AS text), '')
LEFT JOIN exported
    ON COALESCE(CAST(exported.account_id AS text), '') = COALESCE(CAST(accounts.account_id AS text), '')
LEFT JOIN losses ON losses.account_id = accounts.account_id
