-- Flaky is never said without which: retry, commit or flip. A place is one among the checks of an account, by the rate,
-- where the sample is large enough to mean something.
SELECT
    c.account_id,
    m.meaning,
    RANK() OVER (PARTITION BY c.account_id, m.meaning ORDER BY m.flaky_rate DESC) AS place,
    c.check_key,
    c.check_name,
    c.check_type,
    m.flaky,
    m.sample,
    m.flaky_rate
FROM {{ source('checkly', 'v_flaky_checks') }} c
CROSS JOIN LATERAL (
    VALUES
        ('retry', c.retry_flaky, c.decided, c.retry_flaky_rate),
        ('commit', c.commit_flaky, c.commits, c.commit_flaky_rate),
        ('flip', c.flips, c.comparable, c.flip_rate)
) AS m (meaning, flaky, sample, flaky_rate)
WHERE m.flaky > 0 AND m.sample >= {{ var('flaky_min_sample') }}
