"""`checkly-etl report`: its file holds what the views say, and nothing else. What a browser makes of it is tested in
tests/test_report_browser.py.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from sqlalchemy import Connection, text

from etl.database import Database, now
from etl.report import reading
from etl.report.page import html as page_of
from etl.tables import etl_accounts, etl_queue
from tests.conftest import ACCOUNT, KEY, Program, rows
from tests.histories import HISTORIES, TODAY, History, Row, id_
from tests.test_histories import EXAMPLES, holding, select, today

OTHER = id_(0xA2)
DAYS = 30
ROOT = Path(__file__).parent.parent


# --- reading a page back ------------------------------------------------------------------------------------------


def content(html: str) -> dict[str, Any]:
    """What the scripts of a page unpack."""
    packed = re.search(r'<script type="application/octet-stream" id="data">([^<]*)</script>', html)
    assert packed is not None
    value = json.loads(gzip.decompress(base64.b64decode(packed[1])))
    assert isinstance(value, dict)
    return value


def decoded(columns: dict[str, Any], name: str) -> list[Row]:
    """The rows of a table of the page, as a view would have them, but that times are whole seconds."""
    texts, found = columns["texts"], columns[name]
    checks = columns["checks"]
    first = date.fromisoformat(columns["first_day"])

    def value(column: str, number: Any) -> Any:
        if column == "day":
            return first + timedelta(days=number)
        if column in NUMBERS or column.endswith("_at") or "_ms" in column or column in ("first_seen", "last_seen"):
            return number
        return texts[number]

    result = []
    for i in range(len(next(iter(found.values()), []))):
        row = {column: value(column, found[column][i]) for column in found if column not in ("check", "errors")}
        if "check" in found:
            check = found["check"][i]
            row["account_id"] = texts[checks["account_id"][check]] if check >= 0 else row.get("account_id")
            row["check_key"] = texts[checks["check_key"][check]] if check >= 0 else None
        result.append(row)
    return result


NUMBERS = frozenset(
    {
        "executions", "passed", "failed", "errored", "retry_flaky", "passed_duration_n", "comparable",
        "flips", "test_sessions", "failures", "commits", "commit_flaky", "recent_n", "baseline_n", "baseline_days",
        "ratio", "occurrences", "is_new", "is_regression",
        "retries", "is_new_failure", "due", "scheduled", "leased", "dead", "coverage", "unexported",
        "hours_until_loss", "ambiguous",
    }
)  # fmt: skip


def as_sets(found: Iterable[Row], names: Iterable[str]) -> Counter[tuple[Any, ...]]:
    """Rows as a multiset of some columns; milliseconds rounded, times as seconds."""

    def plain(name: str, value: Any) -> Any:
        if isinstance(value, datetime):
            return math.floor(value.timestamp())
        if "_ms" in name:
            return None if value is None else round(value)
        return value

    return Counter(tuple(plain(name, row[name]) for name in names) for row in found)


def summed(found: Iterable[Row], key: Iterable[str], names: Iterable[str]) -> Counter[tuple[Any, ...]]:
    sums: dict[tuple[Any, ...], list[float]] = {}
    names, key = list(names), list(key)
    for row in found:
        sum_ = sums.setdefault(tuple(row[name] for name in key), [0] * len(names))
        for i, name in enumerate(names):
            sum_[i] += row[name]
    return Counter((*values, *(round(one) for one in sum_)) for values, sum_ in sums.items())


def read(connection: Connection) -> dict[str, Any]:
    since = now(connection) - timedelta(days=DAYS)
    return reading.read(connection, since=since, accounts=[], hide=str).columns


# --- what the page holds ------------------------------------------------------------------------------------------


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(history=HISTORIES)
def test_the_page_holds_what_the_views_say(database: Database, history: History) -> None:
    day = today(database)
    with holding(database, history.moved((day - TODAY).days)) as connection:
        columns = read(connection)
        first = date.fromisoformat(columns["first_day"])
        views = {
            view: select(connection, view)
            for view in (
                "v_check_daily", "v_execution_history", "v_failure_streaks", "v_flaky_checks", "v_error_occurrences",
                "v_error_group_impact", "v_duration_regressions", "v_test_session_summary", "v_commit_flakiness",
                "v_checks",
            )
        }  # fmt: skip
    if today(database) != day:
        return  # midnight: every window moved
    assert first == day - timedelta(days=DAYS - 1)

    def in_window(moment: datetime | None) -> bool:
        return moment is not None and moment.date() >= first

    place = ("account_id", "check_key", "branch_name", "environment")
    counts = "executions passed failed errored retry_flaky retry_cost_ms passed_duration_ms_sum passed_duration_n"
    shown = [row for row in views["v_check_daily"] if row["day"] >= first]
    assert summed(decoded(columns, "daily"), ("day", *place), counts.split()) == summed(
        shown, ("day", *place), counts.split()
    )

    decided = [row for row in views["v_execution_history"] if in_window(row["started_at"])]
    flips = [
        {
            **row,
            "day": row["started_at"].date(),
            "comparable": int(row["previous_status"] is not None),
            "flips": int(row["is_flip"]),
        }
        for row in decided
        if row["previous_status"] is not None
    ]
    names: tuple[str, ...] = ("comparable", "flips")
    assert summed(decoded(columns, "flips"), ("day", *place), names) == summed(flips, ("day", *place), names)

    sessions = [
        {**row, "day": row["started_at"].date(), "test_sessions": 1}
        for row in views["v_test_session_summary"]
        if in_window(row["started_at"])
    ]
    key: tuple[str, ...] = ("day", "account_id", "branch_name", "environment", "verdict")
    assert summed(decoded(columns, "sessions"), key, ["test_sessions"]) == summed(sessions, key, ["test_sessions"])

    streaks = views["v_failure_streaks"]
    where = (*place, "run_location", "first_failed_at", "failures", "link")
    open_ = [row for row in streaks if row["recovered_at"] is None and in_window(row["last_failed_at"])]
    assert as_sets(decoded(columns, "open_streaks"), (*where, "last_failed_at")) == as_sets(
        open_, (*where, "last_failed_at")
    )
    fixed = [row for row in streaks if in_window(row["recovered_at"])]
    names = (*where, "recovered_at", "time_to_fix_ms")
    assert as_sets(decoded(columns, "fixed_streaks"), names) == as_sets(fixed, names)

    names = ("account_id", "check_key", "commits", "commit_flaky")
    assert as_sets(decoded(columns, "flaky"), names) == as_sets(views["v_flaky_checks"], names)
    names = (
        *("account_id", "check_key", "environment", "run_location", "recent_p95_duration_ms"),
        *("baseline_p95_duration_ms", "recent_n", "baseline_n", "baseline_days", "ratio"),
    )
    assert as_sets(decoded(columns, "regressions"), names) == as_sets(views["v_duration_regressions"], names)

    impact = [row for row in views["v_error_group_impact"] if in_window(row["last_observed_at"])]
    names = (
        *("error_group_id", "cleaned_error_message", "occurrences", "test_sessions", "first_observed_at"),
        *("last_observed_at", "first_seen", "last_seen", "is_new", "is_regression"),
    )
    assert as_sets(decoded(columns, "errors"), names) == as_sets(impact, names)
    seen = [
        {**row, "day": row["started_at"].date(), "occurrences": 1}
        for row in views["v_error_occurrences"]
        if in_window(row["started_at"])
    ]
    key = ("day", "error_group_id", *place)
    assert summed(decoded(columns, "error_daily"), key, ["occurrences"]) == summed(seen, key, ["occurrences"])

    names = (*place, "run_location", "started_at", "commit_id", "link", "retries", "duration_ms", "is_new_failure")
    failed = [row for row in decided if row["verdict"] == "FAILED"]
    assert as_sets(decoded(columns, "failures"), names) <= as_sets(failed, names)
    per_check = Counter((row["account_id"], row["check_key"]) for row in failed)
    kept = Counter((row["account_id"], row["check_key"]) for row in decoded(columns, "failures"))
    assert all(kept[check] >= min(count, 10) for check, count in per_check.items())

    names = (
        "account_id",
        "check_key",
        "check_name",
        "check_type",
        "last_verdict",
        "first_started_at",
        "last_started_at",
    )
    assert as_sets(decoded(columns, "checks"), names) <= as_sets(views["v_checks"], names)


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(history=HISTORIES)
def test_the_views_of_the_report_add_up_to_those_of_the_contract(database: Database, history: History) -> None:
    day = today(database)
    with holding(database, history.moved((day - TODAY).days)) as connection:
        flaky = select(connection, "v_flaky_checks")
        decided = select(connection, "v_execution_history")
        found = {
            name: [dict(row) for row in connection.execute(text(f"SELECT * FROM v_report_{name}")).mappings()]
            for name in ("flip_daily", "commit_flakiness", "error_daily", "session_daily")
        }
        impact = select(connection, "v_error_group_impact")
        sessions = select(connection, "v_test_session_summary")
    if today(database) != day:
        return
    window = [day - timedelta(days=back) for back in range(30)]
    recent = [row for row in found["flip_daily"] if date.fromisoformat(str(row["day"])) in window]
    flips = Counter[tuple[str, str]]()
    for row in recent:
        flips[str(row["account_id"]), row["check_key"]] += int(row["flips"])
    assert +flips == +Counter({(str(row["account_id"]), row["check_key"]): row["flips"] for row in flaky})

    # A commit had the chance where two of its executions were decided in one environment and location, in the window.
    places: dict[tuple[Any, ...], list[str]] = {}
    for row in decided:
        if row["commit_id"] is not None and row["started_at"].date() in window:
            where = (row["account_id"], row["check_key"], row["environment"], row["commit_id"], row["run_location"])
            places.setdefault(where, []).append(row["verdict"])
    chances = {where[:4] for where, verdicts in places.items() if len(verdicts) >= 2}
    both = {where[:4] for where, verdicts in places.items() if len(set(verdicts)) == 2}
    by_environment = {
        (_text(row["account_id"]), row["check_key"], row["environment"]): (
            int(row["commits"]),
            int(row["commit_flaky"]),
        )
        for row in found["commit_flakiness"]
    }
    expected = {
        place: (sum(one[:3] == place for one in chances), sum(one[:3] == place for one in both))
        for place in {where[:3] for where in places}
    }
    assert by_environment == expected

    assert sum(int(row["occurrences"]) for row in found["error_daily"]) == sum(row["occurrences"] for row in impact)
    assert sum(int(row["test_sessions"]) for row in found["session_daily"]) == len(sessions)


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def test_coverage_and_dead_letters_are_those_of_the_queue(database: Database, make_etl: Any) -> None:
    with database.writing() as connection:
        connection.execute(etl_accounts.insert().values(account_id=ACCOUNT, name="Acme", retention=7, pauses=0))
        moment = now(connection)
        common: Row = {
            "priority": 0, "claim_order": 0.0, "source": "discovery", "attempts": 0, "available_at": moment,
            "enqueued_at": moment, "error_kind": None, "last_error": None, "account_id": ACCOUNT,
        }  # fmt: skip
        queue = [
            {**common, "test_session_id": id_(1), "state": "queued"},
            {**common, "test_session_id": id_(2), "state": "dead", "error_kind": "payload", "last_error": "why"},
            {**common, "test_session_id": id_(3), "state": "discarded"},
            {**common, "test_session_id": id_(4), "state": "queued", "account_id": None},
        ]
        connection.execute(etl_queue.insert(), queue)
    found = rows(
        database, "SELECT account_id, account_name, test_sessions, unexported, coverage FROM v_report_coverage"
    )
    assert [
        (row["account_name"], row["test_sessions"], row["unexported"], row["coverage"])
        for row in sorted(found, key=lambda row: str(row["account_name"]))
    ] == [("Acme", 0, 2, 0.0), (None, 0, 1, 0.0)]
    (dead,) = rows(database, "SELECT * FROM v_report_dead_letters")
    assert (str(dead["test_session_id"]), dead["error_kind"], dead["last_error"]) == (id_(2), "payload", "why")
    with database.reading() as connection:
        columns = read(connection)
    assert {row["account_id"] for row in decoded(columns, "freshness")} == {ACCOUNT, None}


@pytest.mark.parametrize(
    ("since", "moment", "first"),
    [
        ("2026-10-27T10:30", "2026-11-26T10:30", "2026-10-28"),  # 30d: the last 30 UTC days
        ("2026-11-01T00:00", "2026-11-26T10:30", "2026-11-01"),  # a date: from it on
        ("2026-11-26T03:00", "2026-11-26T10:30", "2026-11-26"),  # some hours: today, as a whole
        ("2026-11-25T10:30", "2026-11-26T10:30", "2026-11-26"),
        ("2026-11-26T10:30", "2026-11-26T10:30", "2026-11-26"),
    ],
)
def test_the_page_shows_whole_utc_days(since: str, moment: str, first: str) -> None:
    found = reading._first_whole_day(
        datetime.fromisoformat(since).replace(tzinfo=UTC), datetime.fromisoformat(moment).replace(tzinfo=UTC)
    )
    assert found == date.fromisoformat(first)


def test_a_large_warehouse_is_cut_to_what_a_page_can_carry_and_says_so(
    program: Program, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert program("backfill", "--since", "2000-01-01").code == 0
    with database.reading() as connection:
        since = datetime(2026, 11, 1, tzinfo=UTC)
        whole = reading.read(connection, since=since, accounts=[], hide=str).columns
        assert whole["left_out"] == {}
        cuts = {"open_streaks": 1, "fixed_streaks": 2, "failures": 3, "errors": 1, "daily": 10, "dead": 1}
        monkeypatch.setattr(reading, "CUTS", cuts)
        monkeypatch.setattr(reading, "BRANCHES_OF_MANY", 1)
        cut = reading.read(connection, since=since, accounts=[], hide=str).columns
    for name in ("open_streaks", "fixed_streaks", "errors"):
        assert len(decoded(cut, name)) == cuts[name]
        assert cut["left_out"][name] == len(decoded(whole, name)) - cuts[name]
    assert len(decoded(cut, "failures")) <= 3
    # The branches with few executions are one, and nothing is lost of their counts.
    branches = {row["branch_name"] for row in decoded(cut, "daily")}
    assert branches == {"main", f"({cut['left_out']['branches']} other branches)"}
    for name, count in (
        ("daily", "executions"),
        ("daily", "failed"),
        ("flips", "flips"),
        ("sessions", "test_sessions"),
    ):
        assert sum(cut[name][count]) == sum(whole[name][count])


def test_the_last_failure_of_every_history_is_kept_and_as_many_of_a_check_as_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failures = [
        {"account_id": ACCOUNT, "check_key": f"c{number % 3}", "history_key": f"h{number % 6}", "number": number}
        for number in range(60)
    ]
    monkeypatch.setitem(reading.CUTS, "failures", 100)
    kept, most = reading._newest_failures(failures)
    assert (len(kept), most) == (30, 10)
    monkeypatch.setitem(reading.CUTS, "failures", 12)
    kept, most = reading._newest_failures(failures)
    assert most == 3
    assert {row["history_key"] for row in kept} == {f"h{number}" for number in range(6)}
    assert len(kept) <= 12


# --- the document -------------------------------------------------------------------------------------------------


def test_the_policy_lets_the_page_run_its_own_two_scripts_and_load_nothing(program: Program, tmp_path: Path) -> None:
    assert program("report").code == 0
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)
    assert policy is not None
    rules = dict(rule.split(" ", 1) for rule in policy[1].split("; "))
    assert rules.pop("default-src") == "'none'"
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    styles = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)

    def hashes(sources: list[str]) -> list[str]:
        return [f"'sha256-{base64.b64encode(sha256(one.encode()).digest()).decode()}'" for one in sources]

    assert rules.pop("script-src").split() == hashes(scripts)
    assert rules.pop("style-src").split() == hashes(styles)
    assert rules == {"img-src": "data:", "base-uri": "'none'", "form-action": "'none'"}
    # Nothing outside of the page is named but as a link of the data, which is packed.
    assert not re.findall(r"(?:src|href)=[\"']?(?:https?:)?//", html)


def test_the_same_content_is_the_same_page_and_no_content_leaves_its_place() -> None:
    hostile = {"texts": ["</script><script>alert(1)</script>", "{{SCRIPT}}", "\ud800", "\\1"]}
    first, second = (page_of(hostile) for _ in range(2))
    assert first == second
    assert first.count("</script>") == 3
    assert content(first)["texts"] == ["</script><script>alert(1)</script>", "{{SCRIPT}}", "?", "\\1"]


# --- the command --------------------------------------------------------------------------------------------------


def test_report_writes_a_page_and_says_what_is_in_it(program: Program, tmp_path: Path) -> None:
    assert program("backfill", "--since", "2000-01-01").code == 0
    run = program("report", "-o", "page.html", "--since", "2026-11-01", "--json")
    assert run.code == 0
    assert run.json["path"] == str(tmp_path / "page.html")
    assert run.json["bytes"] == (tmp_path / "page.html").stat().st_size < 1_000_000
    found = content((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert run.json["executions"] == sum(found["daily"]["executions"]) > 0
    assert run.json["test_sessions"] == sum(found["freshness"]["test_sessions"]) > 0
    assert run.json["days"] == found["days"]
    plain = program("report", "--since", "2026-11-01")
    assert plain.code == 0
    assert plain.out.startswith("report.html: ")
    assert " days, " in plain.out
    assert " executions of 1 day, " in program("report", "--since", "1s").out
    assert sorted(path.name for path in tmp_path.glob("*.html*")) == ["page.html", "report.html"]


def test_the_report_of_an_empty_warehouse_says_what_to_do_next(program: Program, tmp_path: Path) -> None:
    run = program("report")
    assert run.code == 0
    assert "nothing is exported yet" in run.out
    assert content((tmp_path / "report.html").read_text(encoding="utf-8"))["daily"] == {}


def test_a_page_that_cannot_be_written_is_an_error_and_leaves_the_old_one(program: Program, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for output in ("folder", "missing/report.html", "folder/x/y", "a" * 300):
        run = program("report", "-o", output)
        assert run.code == 2
        assert "the report cannot be written to" in run.err
        assert "Traceback" not in run.err
    assert list(tmp_path.glob("**/*.html*")) == []


def test_a_page_that_is_written_again_stays_as_private_as_it_was(program: Program, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text("an older one")
    page.chmod(0o640)
    assert program("report").code == 0
    assert page.stat().st_mode & 0o777 == 0o640
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_a_dash_writes_the_page_to_stdout(program: Program, tmp_path: Path) -> None:
    run = program("report", "-o", "-")
    assert run.code == 0
    assert run.out.startswith("<!doctype html>")
    assert run.out.rstrip().endswith("</html>")
    refused = program("report", "-o", "-", "--json")
    assert refused.code == 2
    assert "need a file" in refused.err
    assert list(tmp_path.glob("*.html")) == []


def test_only_the_accounts_asked_for_are_in_the_page(program: Program, database: Database, tmp_path: Path) -> None:
    assert program("backfill", "--since", "2000-01-01").code == 0
    with database.writing() as connection:
        values = {"account_id": OTHER, "name": "Other's", "retention": 7, "pauses": 0}
        connection.execute(etl_accounts.insert().values(**values))
    for name in (ACCOUNT, ACCOUNT.upper()):
        assert program("report", "--account", name, "--since", "2026-11-01").code == 0
        found = content((tmp_path / "report.html").read_text(encoding="utf-8"))
        assert {row["account_id"] for row in decoded(found, "freshness")} == {ACCOUNT}
        assert sum(found["daily"]["executions"]) > 0
    assert program("report", "--account", "other's", "--since", "2026-11-01").code == 0
    found = content((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert {row["account_id"] for row in decoded(found, "freshness")} == {OTHER}
    assert found["daily"] == {} == found["sessions"] == found["errors"] == found["failures"]
    assert program("report", "--account", "").code == 2  # an unset variable is not every account
    run = program("report", "--account", "x' OR '1'='1", "--account", OTHER)
    assert run.code == 2
    assert "the warehouse has no such account" in run.err
    assert "Other's" in run.err


def test_a_since_that_is_no_time_or_still_to_come_is_refused(program: Program) -> None:
    assert "is not a time" in program("report", "--since", "yesterday").err
    run = program("report", "--since", "2999-01-01")
    assert run.code == 2
    assert "still to come" in run.err


def test_no_secret_is_in_the_page(program: Program, database: Database, tmp_path: Path) -> None:
    assert program("backfill", "--since", "2000-01-01").code == 0
    with database.writing() as connection:
        for statement in (
            f"UPDATE check_executions SET check_name = 'name {KEY}', branch_name = '{KEY}', link = 'https://x/{KEY}'",
            f"UPDATE error_groups SET cleaned_error_message = 'Bearer {KEY} was refused'",
            f"UPDATE test_sessions SET branch_name = '{KEY}'",
        ):
            connection.execute(text(statement))
    assert program("report", "--since", "2026-11-01").code == 0
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    texts = content(html)["texts"]
    assert KEY not in html
    assert not [one for one in texts if one and KEY in one]
    assert "name ***" in texts
    assert "Bearer *** was refused" in texts


@pytest.mark.parametrize("engine_name", ["sqlite"], indirect=True)
def test_open_shows_it_in_a_browser_and_says_so_where_there_is_none(program: Program, tmp_path: Path) -> None:
    browser = tmp_path / "browser"
    browser.write_text('#!/bin/sh\necho "$1" > opened\n')
    browser.chmod(0o755)
    for command, error in ((f"{browser} %s", ""), ("/nonexistent %s", "no browser can be opened from here")):
        done = subprocess.run(
            [sys.executable, "-m", "etl", "report", "--open"],
            cwd=tmp_path,
            env={**os.environ, **program.env, "PYTHONPATH": str(ROOT), "BROWSER": command, "PATH": "/bin"},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0
        assert error in done.stderr
    assert (tmp_path / "opened").read_text().strip() == (tmp_path / "report.html").as_uri()


def test_a_report_needs_a_current_schema(program: Program, tmp_path: Path) -> None:
    run = program("report", CHECKLY_ETL_WAREHOUSE_URL=f"sqlite:///{tmp_path}/none.db")
    assert run.code == 2
    assert "checkly-etl migrate" in run.err
