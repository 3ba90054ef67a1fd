-- A streak begins, fails for the last time, recovers: in this order. While it is open nothing of the recovery is there.
SELECT account_id, check_key, first_failed_at, last_failed_at, recovered_at, failures, time_to_fix_ms
FROM {{ source('checkly', 'v_failure_streaks') }}
WHERE failures < 1
    OR last_failed_at < first_failed_at
    OR recovered_at < last_failed_at
    OR time_to_fix_ms < 0
    OR (time_to_fix_ms IS NULL) <> (recovered_at IS NULL)
    OR (recovered_test_session_id IS NULL) <> (recovered_at IS NULL)
