-- Results and executions name each other: a result's execution is there, so is the result that stands for an
-- execution, and `retries` counts its ATTEMPT rows. Passed on a retry means: passed, and there was one.
SELECT r.test_session_id, r.execution_no, 'a result without its execution' AS problem
FROM {{ source('checkly', 'test_session_results') }} r
LEFT JOIN {{ source('checkly', 'check_executions') }} e
    ON e.test_session_id = r.test_session_id AND e.execution_no = r.execution_no
WHERE r.execution_no IS NOT NULL AND e.execution_no IS NULL
UNION ALL
SELECT e.test_session_id, e.execution_no, 'an execution without its result'
FROM {{ source('checkly', 'check_executions') }} e
LEFT JOIN {{ source('checkly', 'test_session_results') }} r
    ON r.test_session_id = e.test_session_id AND r.test_session_result_id = e.test_session_result_id
WHERE r.execution_no IS DISTINCT FROM e.execution_no
UNION ALL
SELECT e.test_session_id, e.execution_no, 'another number of retries'
FROM {{ source('checkly', 'check_executions') }} e
LEFT JOIN (
    SELECT test_session_id, execution_no, COUNT(*) AS n
    FROM {{ source('checkly', 'test_session_results') }}
    WHERE result_type = 'ATTEMPT'
    GROUP BY test_session_id, execution_no
) a ON a.test_session_id = e.test_session_id AND a.execution_no = e.execution_no
WHERE e.retries <> COALESCE(a.n, 0)
UNION ALL
SELECT test_session_id, execution_no, 'retry flaky, but not passed on a retry'
FROM {{ source('checkly', 'check_executions') }}
WHERE is_retry_flaky AND (verdict IS DISTINCT FROM 'PASSED' OR retries = 0)
