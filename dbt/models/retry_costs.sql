{{
    config(
        materialized='incremental',
        incremental_strategy='delete+insert',
        unique_key='test_session_id',
        post_hook="DELETE FROM {{ this }} c WHERE NOT EXISTS ("
            "SELECT 1 FROM {{ source('checkly', 'test_sessions') }} s WHERE s.test_session_id = c.test_session_id)",
    )
}}
-- A row a test session, so that reloading one replaces all that was said of it. Numbers of executions are no stable
-- ids: a model of executions must delete those of a reloaded session first, also where none are left.
-- The hook above takes along what `checkly-etl forget` deleted.
SELECT
    s.test_session_id,
    s.account_id,
    s.github_repository,
    s.github_workflow,
    s.branch_name,
    s.environment,
    s.started_at,
    COUNT(e.execution_no) AS executions,
    COALESCE(SUM(e.retries), 0) AS retries,
    COALESCE(SUM(e.retry_cost_ms), 0) / 60000 AS retry_cost_minutes,
    s.exported_at
FROM {{ source('checkly', 'test_sessions') }} s
LEFT JOIN {{ source('checkly', 'check_executions') }} e ON e.test_session_id = s.test_session_id
{% if is_incremental() %}
-- An hour more than needed: rows become visible when they are committed, which is after the moment in exported_at.
WHERE s.exported_at > (SELECT COALESCE(MAX(exported_at), '-infinity') - INTERVAL '1 hour' FROM {{ this }})
{% endif %}
GROUP BY s.test_session_id
