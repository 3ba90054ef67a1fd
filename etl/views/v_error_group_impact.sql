-- One row an error group, with what it hit. Occurrences are linked result rows, ATTEMPT included.
-- is_new: first observed in the last 7 days. is_regression: seen in the last 7 days, after 7 or more days without.
WITH occurrences AS (
    SELECT
        o.*,
        LAG(o.started_at) OVER (PARTITION BY o.error_group_id ORDER BY o.started_at) AS seen_before
    FROM v_error_occurrences o
),
impact AS (
    SELECT
        error_group_id,
        COUNT(*) AS occurrences,
        COUNT(DISTINCT test_session_id) AS test_sessions,
        -- A check is an account's.
        COUNT(DISTINCT COALESCE(CAST(account_id AS text), '') || ' ' || check_key) AS checks,
        COUNT(DISTINCT branch_name) AS branches,
        COUNT(DISTINCT environment) AS environments,
        MIN(started_at) AS first_observed_at,
        MAX(started_at) AS last_observed_at,
        COUNT(CASE WHEN started_at >= DAYS_AGO(6) AND started_at < DAYS_AGO(-1) THEN 1 END) AS occurrences_7d,
        MAX(
            CASE
                WHEN started_at >= DAYS_AGO(6) AND started_at < DAYS_AGO(-1)
                    AND started_at >= SECONDS_AFTER(seen_before, 604800) THEN 1
                ELSE 0
            END
        ) AS regressions
    FROM occurrences
    GROUP BY error_group_id
)
SELECT
    g.error_group_id,
    g.account_id,
    g.cleaned_error_message,
    COALESCE(i.occurrences, 0) AS occurrences,
    COALESCE(i.test_sessions, 0) AS test_sessions,
    COALESCE(i.checks, 0) AS checks,
    COALESCE(i.branches, 0) AS branches,
    COALESCE(i.environments, 0) AS environments,
    i.first_observed_at,
    i.last_observed_at,
    g.first_seen,
    g.last_seen,
    COALESCE(i.occurrences_7d, 0) AS occurrences_7d,
    COALESCE(i.first_observed_at >= DAYS_AGO(6) AND i.first_observed_at < DAYS_AGO(-1), FALSE) AS is_new,
    COALESCE(i.regressions, 0) > 0 AS is_regression
FROM error_groups g
LEFT JOIN impact i ON i.error_group_id = g.error_group_id
