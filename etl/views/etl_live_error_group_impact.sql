-- One row an error group that is not rolled up for today: what v_error_group_impact counts. Internal.
WITH occurrences AS (
    SELECT
        g.error_group_id,
        o.test_session_id,
        CHECK_HASH(o.account_id, o.check_key) AS check_hash,
        o.branch_name,
        o.environment,
        o.started_at,
        CASE WHEN o.started_at < DAYS_AGO(6) THEN o.started_at END AS before_at,
        CASE WHEN o.started_at >= DAYS_AGO(6) AND o.started_at < DAYS_AGO(-1) THEN o.started_at END AS recent_at
    FROM error_groups g
    LEFT JOIN v_error_occurrences o ON o.error_group_id = g.error_group_id
    WHERE IS_OPEN_GROUP(g)
),
impact AS (
    SELECT
        error_group_id,
        COUNT(test_session_id) AS occurrences,
        COUNT(DISTINCT test_session_id) AS test_sessions,
        COUNT(DISTINCT check_hash) AS checks,
        COUNT(DISTINCT branch_name) AS branches,
        COUNT(DISTINCT environment) AS environments,
        MIN(started_at) AS first_observed_at,
        MAX(started_at) AS last_observed_at,
        COUNT(recent_at) AS occurrences_7d,
        MIN(recent_at) AS recent_at,
        MAX(before_at) AS before_at
    FROM occurrences
    GROUP BY error_group_id
)
SELECT
    error_group_id,
    DATE_AGO(0) AS rolled_up_for,
    occurrences,
    test_sessions,
    checks,
    branches,
    environments,
    first_observed_at,
    last_observed_at,
    occurrences_7d,
    COALESCE(first_observed_at >= DAYS_AGO(6) AND first_observed_at < DAYS_AGO(-1), FALSE) AS is_new,
    -- Within the seven days there is no room for seven days without: only the first of them can end such a time.
    COALESCE(recent_at >= SECONDS_AFTER(before_at, 604800), FALSE) AS is_regression
FROM impact
