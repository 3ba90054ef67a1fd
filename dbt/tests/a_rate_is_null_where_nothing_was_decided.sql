-- A rate is its count over its sample: null, never 0, where the sample is empty.
SELECT 'v_test_session_summary' AS view_name, CAST(test_session_id AS text) AS row_of
FROM {{ source('checkly', 'v_test_session_summary') }}
WHERE pass_rate IS DISTINCT FROM CAST(passed AS double precision) / NULLIF(passed + failed, 0)
UNION ALL
SELECT 'v_check_daily', check_key
FROM {{ source('checkly', 'v_check_daily') }}
WHERE pass_rate IS DISTINCT FROM CAST(passed AS double precision) / NULLIF(decided, 0)
    OR retry_flaky_rate IS DISTINCT FROM CAST(retry_flaky AS double precision) / NULLIF(decided, 0)
UNION ALL
SELECT 'v_flaky_checks', check_key
FROM {{ source('checkly', 'v_flaky_checks') }}
WHERE retry_flaky_rate IS DISTINCT FROM CAST(retry_flaky AS double precision) / NULLIF(decided, 0)
    OR commit_flaky_rate IS DISTINCT FROM CAST(commit_flaky AS double precision) / NULLIF(commits, 0)
    OR flip_rate IS DISTINCT FROM CAST(flips AS double precision) / NULLIF(comparable, 0)
