-- Executions are decided or undecided, decided ones passed or failed, and no part is larger than its whole.
SELECT 'v_test_session_summary' AS view_name, CAST(test_session_id AS text) AS row_of
FROM {{ source('checkly', 'v_test_session_summary') }}
WHERE executions <> passed + failed + undecided OR retry_flaky > passed OR degraded > passed + failed
UNION ALL
SELECT 'v_check_daily', check_key
FROM {{ source('checkly', 'v_check_daily') }}
WHERE decided <> passed + failed OR decided > executions
    OR errored > failed OR retry_flaky > passed OR degraded > decided OR passed_duration_n > passed
UNION ALL
SELECT 'v_flaky_checks', check_key
FROM {{ source('checkly', 'v_flaky_checks') }}
WHERE decided > executions OR retry_flaky > decided
    OR commit_flaky > commits OR comparable > decided OR flips > comparable
UNION ALL
SELECT 'v_commit_flakiness', check_key
FROM {{ source('checkly', 'v_commit_flakiness') }}
WHERE is_commit_flaky <> (passed > 0 AND failed > 0)
