-- One row an error group, with what it hit. Occurrences are linked result rows, ATTEMPT included.
-- is_new: first observed in the last 7 days. is_regression: seen in the last 7 days, after 7 or more days without.
WITH counted AS (
    SELECT
        error_group_id,
        occurrences,
        test_sessions,
        checks,
        branches,
        environments,
        first_observed_at,
        last_observed_at,
        occurrences_7d,
        is_new,
        is_regression
    FROM etl_rollup_error_group_impact i
    WHERE i.rolled_up_for = DATE_AGO(0)
        AND NOT EXISTS (SELECT 1 FROM etl_touched_error_groups t WHERE t.error_group_id = i.error_group_id)
    UNION ALL
    SELECT
        error_group_id,
        occurrences,
        test_sessions,
        checks,
        branches,
        environments,
        first_observed_at,
        last_observed_at,
        occurrences_7d,
        is_new,
        is_regression
    FROM etl_live_error_group_impact
)
SELECT
    g.error_group_id,
    g.account_id,
    g.cleaned_error_message,
    n.occurrences,
    n.test_sessions,
    n.checks,
    n.branches,
    n.environments,
    n.first_observed_at,
    n.last_observed_at,
    g.first_seen,
    g.last_seen,
    n.occurrences_7d,
    n.is_new,
    n.is_regression
FROM counted n
JOIN error_groups g ON g.error_group_id = n.error_group_id
