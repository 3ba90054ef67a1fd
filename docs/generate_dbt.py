"""Writes dbt/models/sources.yml from the comments of tables, columns and views: `make docs`. A test keeps it current.

What the comments say is not said again. Keys, nulls and references of tables are those of `etl/tables.py`; those of
views, and the words for what only views have, stand in VIEWS and WORDS.
"""

from __future__ import annotations

import re
import tempfile
from collections import ChainMap
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml
from sqlalchemy import inspect

from etl import schema
from etl.database import Database
from etl.tables import metadata

TARGET = Path(__file__).parent.parent / "dbt" / "models" / "sources.yml"
HEAD = """\
# Generated from the comments in etl/tables.py and etl/views by docs/generate_dbt.py: do not edit.

"""

Columns = dict[str, str]  # name -> description, in their order


@dataclass(frozen=True)
class View:
    """What the text of a view does not say. Names are separated by spaces."""

    key: str
    never_null: str
    # Tables whose columns it hands on unchanged: the first that has a name describes it.
    carries: tuple[str, ...] = ()
    # For columns that mean another thing than elsewhere.
    words: Columns = field(default_factory=dict)


VIEWS = {
    "v_check_daily": View(
        key="day account_id check_key branch_name environment run_location",
        never_null="day check_key executions decided passed failed errored retry_flaky degraded retry_cost_ms "
        "passed_duration_ms_sum passed_duration_n",
    ),
    "v_checks": View(key="account_id check_key", never_null="check_key first_started_at last_started_at"),
    "v_commit_flakiness": View(
        key="account_id check_key environment run_location commit_id",
        never_null="check_key commit_id passed failed is_commit_flaky first_started_at last_started_at",
    ),
    "v_duration_regressions": View(
        key="account_id check_key environment run_location",
        never_null="check_key recent_n baseline_n baseline_days",
    ),
    "v_error_group_impact": View(
        key="error_group_id",
        never_null="error_group_id occurrences test_sessions checks branches environments occurrences_7d is_new "
        "is_regression",
        carries=("error_groups",),
    ),
    "v_error_occurrences": View(
        key="test_session_id test_session_result_id error_group_id",
        never_null="test_session_id test_session_result_id error_group_id started_at",
        carries=("test_session_result_error_groups", "test_sessions", "test_session_results", "error_groups"),
        words={
            "check_key": "Check of the execution that the result belongs to; null outside of any.",
            "started_at": "Start of the result, else of its test session.",
            "verdict": "Verdict of the execution that the result belongs to; null: undecided, or outside of any.",
        },
    ),
    "v_execution_history": View(
        key="test_session_id execution_no",
        never_null="test_session_id execution_no check_key history_key grouped_by status verdict started_at is_flip "
        "is_new_failure",
        carries=("check_executions",),
    ),
    "v_failure_streaks": View(
        # Nothing else tells two streaks apart that began at the same moment: the link is that of the last failure.
        key="account_id check_key branch_name environment run_location first_failed_at link",
        never_null="check_key first_failed_at last_failed_at failures first_failed_test_session_id",
        words={"link": "Page of its last failure at Checkly."},
    ),
    "v_flaky_checks": View(
        key="account_id check_key",
        never_null="check_key executions decided retry_flaky commits commit_flaky comparable flips ambiguous",
    ),
    "v_freshness": View(
        key="account_id",
        never_null="due scheduled leased dead",
        carries=("etl_accounts",),
        words={"account_id": "The Checkly account; null: ids that are not assigned to one yet."},
    ),
    "v_test_session_summary": View(
        key="test_session_id",
        never_null="test_session_id status started_at executions passed failed undecided retry_flaky degraded "
        "retries error_groups retry_cost_ms verdict",
        carries=("test_sessions",),
        words={"duration_ms": "stopped_at - started_at of the test session, milliseconds; null while it runs."},
    ),
}

# One name means one thing: words for the columns of views that no table has, or not with this meaning.
WORDS = {
    "account_id": "The Checkly account.",
    "ambiguous": "Executions that may be of another check of the same name; comparisons leave them out.",
    "baseline_days": "Days of the baseline on which it passed.",
    "baseline_n": "Durations in the days of the baseline.",
    "branches": "Branches that it was seen on.",
    "check_name": "Name in the check's newest execution.",
    "check_type": "Type in the check's newest execution, verbatim.",
    "checks": "Checks that it was seen in.",
    "commit_flaky": "Commits that passed and failed in one environment and run location.",
    "commit_flaky_rate": "commit_flaky / commits; null where no commit had the chance.",
    "commits": "Commits that had the chance to be flaky: two decided executions in one environment and run location.",
    "comparable": "Decided executions that have one before them.",
    "day": "UTC day of started_at.",
    "dead": "Dead letters: test sessions that could not be exported.",
    "decided": "Executions with a verdict.",
    "degraded": "Decided executions that were slower than their limit for degraded.",
    "environments": "Environments that it was seen in.",
    "error_groups": "Error groups observed in it.",
    "errored": "Failed executions in which the run itself broke.",
    "executions": "Executions, decided or not.",
    "failed": "Decided executions that failed.",
    "failures": "Failed executions in a row.",
    "first_failed_at": "Start of the first failure of the streak.",
    "first_failed_commit_id": "Commit of the first failure.",
    "first_failed_test_session_id": "Test session of the first failure.",
    "first_observed_at": "When it was first seen in a result of this warehouse.",
    "first_started_at": "Start of the first execution.",
    "flip_rate": "flips / comparable; null where nothing was comparable.",
    "flips": "Comparable executions with another verdict than the one before.",
    "last_failed_at": "Start of the last failure of the streak.",
    "last_observed_at": "When it was last seen in a result of this warehouse.",
    "last_started_at": "Start of the newest execution.",
    "last_verdict": "Verdict of the newest decided execution; null: none was decided.",
    "leased": "Test sessions that a process is exporting now.",
    "newest_started_at": "Start of the newest test session in the warehouse.",
    "occurrences": "Results that it was seen in, each attempt on its own.",
    "occurrences_7d": "The same in the last 7 days.",
    "oldest_due_at": "Since when the oldest of those due has been waiting.",
    "p50_duration_ms": "Median of the durations of PASSED executions, milliseconds.",
    "p95_duration_ms": "95th percentile of the durations of PASSED executions, milliseconds.",
    "pass_rate": "passed / decided; null where nothing was decided.",
    "passed": "Decided executions that passed, on a retry or at once.",
    "passed_duration_ms_sum": "Sum of the durations of PASSED executions, milliseconds.",
    "passed_duration_n": "PASSED executions with a duration.",
    "previous_commit_id": "Commit of the decided execution before it.",
    "previous_started_at": "Start of the decided execution before it; null for the first.",
    "previous_status": "Status of the decided execution before it; null for the first.",
    "project_id": "Checkly project of the check's newest execution that has one.",
    "recent_n": "Durations in the last 7 days.",
    "recent_p95_duration_ms": "95th percentile of the durations in the last 7 days, milliseconds.",
    "recovered_at": "Start of the first PASSED after the streak; null while it is open.",
    "recovered_commit_id": "Commit of that execution.",
    "recovered_test_session_id": "Test session of that execution.",
    "retries": "Attempts that were folded into its executions.",
    "retry_cost_ms": "Time that ATTEMPT rows took, milliseconds.",
    "retry_flaky": "Decided executions that passed after a failed attempt.",
    "retry_flaky_rate": "retry_flaky / decided; null where nothing was decided.",
    "test_sessions": "Test sessions that it was seen in.",
    "undecided": "Executions without a verdict.",
}

# Values of columns that are ours; those of Checkly (status, provider, check_type …) grow without notice. They say
# nothing of nulls: never_null does.
VALUES: dict[str, list[str]] = {
    "verdict": ["PASSED", "FAILED"],
    "last_verdict": ["PASSED", "FAILED"],
    "grouped_by": ["sequence", "inferred"],
    "v_test_session_summary.verdict": [],  # any status of Checkly's
}

# (column, warn after, error after). Checkly's shortest retention is seven days: an error leaves four to act.
FRESHNESS = {
    "test_sessions": ("exported_at", (1, "day"), (3, "day")),
    "v_freshness": ("last_success_at", (2, "hour"), (1, "day")),
}


def text() -> str:
    """The whole file."""
    source = {
        "name": "checkly",
        "description": "What checkly-etl exports of Checkly's test sessions: tables, and views (v_…) over them.",
        "schema": "{{ var('checkly_schema') }}",
        "tables": [*_tables(), *_views()],
    }
    if _NOT_DESCRIBED:
        problems, _NOT_DESCRIBED[:] = sorted(_NOT_DESCRIBED), []
        raise SystemExit("\n".join(problems))
    return HEAD + yaml.safe_dump({"sources": [source]}, sort_keys=False, allow_unicode=True, width=116)


def _tables() -> Iterator[dict[str, Any]]:
    for table in metadata.sorted_tables:
        if not table.name.startswith("etl_"):
            key = [str(column.name) for column in table.primary_key]
            never_null = [str(column.name) for column in table.columns if not column.nullable]
            yield _relation(str(table.name), str(table.comment), _comments(table.name), key, never_null)


def _views() -> Iterator[dict[str, Any]]:
    for name, names in view_columns().items():
        view = VIEWS.get(name) or _missing(f"the view {name}", "VIEWS", View(key="", never_null=""))
        lines = takewhile(lambda line: line.startswith("--"), schema.public_views()[name].splitlines())
        header = " ".join(line.removeprefix("--").strip() for line in lines)
        words = ChainMap(
            view.words,
            _explained(header),
            *map(_comments, view.carries),
            WORDS,
            _comments("test_sessions"),
            _comments("check_executions"),
        )
        columns = {column: words.get(column) or _missing(f"the column {name}.{column}", "WORDS") for column in names}
        yield _relation(name, header, columns, view.key.split(), view.never_null.split())


_NOT_DESCRIBED: list[str] = []


def _missing(what: str, where: str, instead: Any = "") -> Any:
    """Note what has no description, so that all of it is named at once."""
    _NOT_DESCRIBED.append(f"{what} has no entry in {where} of docs/generate_dbt.py")
    return instead


def view_columns() -> dict[str, list[str]]:
    """The columns of every view, as a database has them."""
    with tempfile.TemporaryDirectory() as folder:
        database = Database(f"sqlite:///{folder}/warehouse.db", create=True)
        schema.migrate(database)
        with database.reading() as connection:
            found = {
                name: [column["name"] for column in inspect(connection).get_columns(name)]
                for name in schema.public_views()
            }
        database.close()
    return found


def _comments(table: str) -> Columns:
    return {str(column.name): str(column.comment) for column in metadata.tables[table].columns}


def _explained(header: str) -> Columns:
    """What the header of a view says of single words: `due: queued and available; scheduled: queued for later.`"""
    found = re.findall(r"(?<=[.;?] )(\w+): (.+?)(?:\.(?= |$)|;(?= \w+: ))", header)
    return {word: f"{meaning}." for word, meaning in found}


def _relation(name: str, description: str, columns: Columns, key: list[str], never_null: list[str]) -> dict[str, Any]:
    """A table or view with its tests. One column that is the key alone has dbt's own tests."""
    alone = key[0] if len(key) == 1 and key[0] in never_null else None
    others = [column for column in never_null if column != alone]
    tests = []
    if alone is None:
        tests.append(_test("unique_together", columns=key))
    if others:
        tests.append(_test("never_null", columns=others))
    relation: dict[str, Any] = {"name": name, "description": description}
    if name in FRESHNESS:
        loaded_at, warn, error = FRESHNESS[name]
        relation["config"] = {
            "loaded_at_field": loaded_at,
            "freshness": {
                "warn_after": {"count": warn[0], "period": warn[1]},
                "error_after": {"count": error[0], "period": error[1]},
            },
        }
    if tests:
        relation["data_tests"] = tests
    relation["columns"] = []
    for column, words in columns.items():
        described: dict[str, Any] = {"name": column, "description": words}
        of_column = ["unique", "not_null"] if column == alone else []
        of_column += _column_tests(name, column)
        if of_column:
            described["data_tests"] = of_column
        relation["columns"].append(described)
    return relation


def _column_tests(relation: str, column: str) -> Iterator[Any]:
    for owner in ("test_session", "error_group"):
        # An id keeps one name everywhere; some say in front which one they are (recovered_test_session_id).
        if column.endswith(f"{owner}_id") and relation != f"{owner}s":
            yield _test("relationships", to=f"source('checkly', '{owner}s')", field=f"{owner}_id")
    if values := VALUES.get(f"{relation}.{column}", VALUES.get(column)):
        yield _test("accepted_values", values=values)
    if column.endswith("_rate"):
        yield "between_0_and_1"


def _test(name: str, **arguments: Any) -> dict[str, Any]:
    return {name: {"arguments": arguments}}


if __name__ == "__main__":
    TARGET.write_text(text(), encoding="utf-8")
