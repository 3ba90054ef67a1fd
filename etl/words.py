"""The SQL words of views and triggers: what PostgreSQL and SQLite write in different ways. Pure.

    MS_BETWEEN(a, b)      milliseconds from a to b, double precision, exact to the microsecond
    HOURS_UNTIL(t)        hours from now until t, double precision
    SECONDS_AFTER(t, n)   t plus n seconds
    CURRENT_MOMENT()      now
    UTC_DAY(t)            the UTC day of t: a date, on SQLite YYYY-MM-DD
    UTC_DAY_TEXT(t)       the same as text on both
    DAYS_AGO(n)           the beginning of the UTC day n days ago; -1 is tomorrow's
    DATE_AGO(n)           the UTC day n days ago, as UTC_DAY says it
    ROLLED_UP_SINCE()     the first day that may be rolled up: older ones are always counted again
    WHOLE_MS(t)           whole milliseconds since 1970, rounded down, bigint
    SAME(a, b)            equal, or both null
    CHECK_HASH(a, k)      short key of a check, by account and check_key
    ROW_ID(t)             where a row stands, for as long as a statement lasts: the fastest way back to it
    IS_OPEN(k)            nothing of the check (a row of etl_checks) is rolled up for today
    IS_OPEN_GROUP(g)      nothing of the error group is rolled up for today
    ROLLUP_LOCK()         number of the lock that a refresh of the rollups takes for itself, and writers share
    TOUCH_LOCK()          number of the lock that a writer takes who changes shared rows of the rollups

Arguments may hold parentheses and words; one with an operator needs parentheses of its own, because words put
operators next to their arguments. Comments and strings stay as they are. A name in capitals before a parenthesis that
is neither a word nor a function or keyword that the views use is an error: it would fail only when somebody reads the
view.
"""

from __future__ import annotations

import re

MIGRATION_LOCK = 0x63686B6C79  # "chkly": any number will do, as long as it never changes
ROLLUP_LOCK = MIGRATION_LOCK + 1
TOUCH_LOCK = MIGRATION_LOCK + 2
ROLLED_UP_DAYS = 45  # a month, and some days for a clock that is behind

_SQLITE_MICROSECONDS = (
    "(CAST(strftime('%s', substr({0}, 1, 19)) AS INTEGER) * 1000000 + CAST(substr({0}, 21, 6) AS INTEGER))"
)
_OPEN_GROUP = (
    "(NOT EXISTS (SELECT 1 FROM etl_rollup_error_group_impact i WHERE i.error_group_id = {{0}}.error_group_id "
    "AND i.rolled_up_for = {today}) "
    "OR EXISTS (SELECT 1 FROM etl_touched_error_groups t WHERE t.error_group_id = {{0}}.error_group_id))"
)
_WORDS: dict[str, dict[str, str]] = {
    "postgresql": {
        "MS_BETWEEN": "CAST(EXTRACT(EPOCH FROM ({1} - {0})) * 1000 AS double precision)",
        "HOURS_UNTIL": "CAST(EXTRACT(EPOCH FROM ({0} - now())) / 3600 AS double precision)",
        "SECONDS_AFTER": "({0} + {1} * interval '1 second')",
        "CURRENT_MOMENT": "now()",
        "UTC_DAY": "CAST({0} AT TIME ZONE 'UTC' AS date)",
        "UTC_DAY_TEXT": "CAST(CAST({0} AT TIME ZONE 'UTC' AS date) AS text)",
        "DAYS_AGO": "((date_trunc('day', now() AT TIME ZONE 'UTC') - {0} * interval '1 day') AT TIME ZONE 'UTC')",
        "DATE_AGO": "(CAST(now() AT TIME ZONE 'UTC' AS date) - {0})",
        "ROW_ID": "{0}.ctid",
        "IS_OPEN": "({0}.rolled_up_for IS NULL OR {0}.rolled_up_for <> CAST(now() AT TIME ZONE 'UTC' AS date))",
        "IS_OPEN_GROUP": _OPEN_GROUP.format(today="CAST(now() AT TIME ZONE 'UTC' AS date)"),
        "ROLLED_UP_SINCE": f"(CAST(now() AT TIME ZONE 'UTC' AS date) - {ROLLED_UP_DAYS})",
        "CHECK_HASH": "CAST(md5(COALESCE(CAST({0} AS text), '-') || ' ' || {1}) AS uuid)",
        "ROLLUP_LOCK": str(ROLLUP_LOCK),
        "TOUCH_LOCK": str(TOUCH_LOCK),
        "WHOLE_MS": "CAST(FLOOR(EXTRACT(EPOCH FROM {0}) * 1000) AS bigint)",
        "SAME": "({0} IS NOT DISTINCT FROM {1})",
    },
    "sqlite": {
        "MS_BETWEEN": f"(({_SQLITE_MICROSECONDS.format('{1}')} - {_SQLITE_MICROSECONDS.format('{0}')}) / 1000.0)",
        "HOURS_UNTIL": f"(({_SQLITE_MICROSECONDS} / 1000000.0 - CAST(strftime('%s', 'now') AS INTEGER)) / 3600.0)",
        "SECONDS_AFTER": "(strftime('%Y-%m-%d %H:%M:%S', substr({0}, 1, 19), {1} || ' seconds') || substr({0}, 20))",
        "CURRENT_MOMENT": "(strftime('%Y-%m-%d %H:%M:%f', 'now') || '000')",
        # The casts have a reason: without, the expression has no affinity, and no index over it is found by a text.
        "UTC_DAY": "CAST(substr({0}, 1, 10) AS text)",
        "UTC_DAY_TEXT": "substr({0}, 1, 10)",
        "DAYS_AGO": "(date('now', (-({0})) || ' days') || ' 00:00:00.000000')",
        "DATE_AGO": "date('now', (-({0})) || ' days')",
        "ROW_ID": "{0}.rowid",
        "IS_OPEN": "({0}.rolled_up_for IS NULL OR {0}.rolled_up_for <> date('now'))",
        "IS_OPEN_GROUP": _OPEN_GROUP.format(today="date('now')"),
        "ROLLED_UP_SINCE": f"date('now', '-{ROLLED_UP_DAYS} days')",
        "CHECK_HASH": "CAST(COALESCE({0}, '-') || ' ' || {1} AS text)",
        # Integer division rounds towards zero, and the times before 1970 are negative.
        "WHOLE_MS": f"(({_SQLITE_MICROSECONDS} - (({_SQLITE_MICROSECONDS}) % 1000 + 1000) % 1000) / 1000)",
        "SAME": "({0} IS {1})",
    },
}

# What else stands before a parenthesis in our texts.
_SQL_KEYWORDS = (
    "AND AS CONFLICT ELSE EXISTS FROM IN MATERIALIZED NOT ON OR OVER SELECT SET THEN USING VALUES WHEN WHERE"
)
_SQL_FUNCTIONS = "CAST COALESCE COUNT LAG LEAD MAX MIN NULLIF ROW_NUMBER SUM"
_SQL = frozenset(f"{_SQL_KEYWORDS} {_SQL_FUNCTIONS}".split())
_TOKEN = re.compile(r"--[^\n]*|'(?:[^']|'')*'|\b([A-Z][A-Z0-9_]*)\(")
_SKIPPED = re.compile(r"--[^\n]*|'(?:[^']|'')*'|[(),]")


class WrongWord(ValueError):
    """A text uses a word that there is not, or one with other arguments."""


def in_dialect(source: str, dialect: str, what: str) -> str:
    """Return a text in the words of `postgresql` or `sqlite`. Raises WrongWord; `what` names the text in it."""
    written, copied = [], 0
    for token in _TOKEN.finditer(source):
        word = token[1]
        if word is None or word in _SQL or token.start() < copied:
            continue
        if word not in _WORDS[dialect]:
            raise WrongWord(f"{what}: {word}(…) is no SQL word of ours, and no function of SQL that our texts use")
        arguments, end = _arguments(source, token.end(), f"{what}: {word}(…)")
        template = _WORDS[dialect][word]
        wanted = len(set(re.findall(r"{(\d)}", template)))
        if len(arguments) != wanted:
            raise WrongWord(f"{what}: {word}(…) takes {wanted} arguments, not {len(arguments)}")
        written.append(source[copied : token.start()])
        written.append(template.format(*(in_dialect(argument, dialect, what) for argument in arguments)))
        copied = end
    return "".join([*written, source[copied:]])


def _arguments(source: str, begin: int, what: str) -> tuple[list[str], int]:
    """Return the arguments that begin there, and where their closing parenthesis ends."""
    arguments: list[str] = []
    depth, at = 0, begin
    for token in _SKIPPED.finditer(source, begin):
        match token[0]:
            case "(":
                depth += 1
            case ")" if depth:
                depth -= 1
            case ")":
                last = source[at : token.start()].strip()
                return [*arguments, last] if arguments or last else [], token.end()
            case "," if not depth:
                arguments.append(source[at : token.start()].strip())
                at = token.end()
    raise WrongWord(f"{what} is not closed")
