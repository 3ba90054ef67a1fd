"""docs/questions.md keeps its word: every query runs unchanged on both engines, and they give the same rows.

The demo's world is exported once, by the program, and copied into a warehouse of each engine, so that both hold the
same history. Some answers are calculated again here, from the rows of the tables.
"""

from __future__ import annotations

import itertools
import math
import os
import re
import shutil
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Connection, text

from etl import config, pipeline, rollups
from etl.database import Database, chunks, now
from etl.pipeline import Etl
from etl.simulator import Simulator, World
from etl.simulator.catalog import FAILURES, PAYMENTS, WEBSHOP
from etl.tables import metadata
from tests import conftest
from tests.conftest import NOW, environment

DOCUMENT = Path(__file__).parent.parent / "docs" / "questions.md"
LABELS = {"PostgreSQL:": "postgresql", "SQLite:": "sqlite"}  # stand above the variants of one question
# A session of a client may have its own time zone: it must change no answer.
READERS = {
    "sqlite": None,
    "postgresql": "UTC",
    "postgresql in Auckland": "Pacific/Auckland",
    "sqlite rolled up": None,
    "postgresql rolled up": "UTC",
}

# Checkly's times, which are moved so that the world ends today: the views look back from today. The program's own
# times are of today already.
WORLD_TIMES = {
    "started_at",
    "stopped_at",
    "created_at",
    "updated_at",
    "first_seen",
    "last_seen",
    "session_created_at",
}
# What is copied: triggers and views make the rest of it.
OPERATION = {"etl_accounts", "etl_queue", "etl_runs"}
DAYS = 45  # half of what the demo shows: more than any view looks back
UNREADABLE = 3  # this one of the world's test sessions, from the newest that have ended, becomes a dead letter

Row = dict[str, Any]
Executions = list[Any]
Answer = Callable[[str], list[Row]]


# --- the document -------------------------------------------------------------------------------------------


@dataclass
class Question:
    heading: str
    sql: dict[str, str] = field(default_factory=dict)  # by engine


def _questions() -> list[Question]:
    found: list[Question] = []
    line_before = ""
    lines = iter(DOCUMENT.read_text(encoding="utf-8").splitlines())
    for line in lines:
        if line.startswith("### "):
            found.append(Question(line.removeprefix("### ")))
        elif line == "```sql":
            sql = "\n".join(iter(lambda: next(lines), "```"))
            for engine in [LABELS[line_before]] if line_before in LABELS else conftest.ENGINES:
                assert engine not in found[-1].sql, f"{found[-1].heading}: two queries for {engine}"
                found[-1].sql[engine] = sql
        if line:
            line_before = line
    return found


QUESTIONS = _questions()
each_question = pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.heading)
each_engine = pytest.mark.parametrize("engine", conftest.ENGINES)


def test_there_are_25_questions_each_with_a_query_for_both_engines() -> None:
    assert len({question.heading for question in QUESTIONS}) == len(QUESTIONS) == 25
    for question in QUESTIONS:
        assert question.heading.endswith("?"), question.heading
        assert question.sql.keys() == set(conftest.ENGINES), question.heading


def test_nearly_every_question_has_one_text_for_both_engines() -> None:
    assert sum(question.sql["sqlite"] != question.sql["postgresql"] for question in QUESTIONS) <= 1


# --- the warehouses -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """The demo's history at NOW, as the program exports it: three test sessions still run, one cannot be read."""
    path = tmp_path_factory.mktemp("questions") / "exported.db"
    shutil.copy(sqlite_template, path)
    url = f"sqlite:///{path}"
    world = World(seed=1, now=NOW, days=DAYS)
    ended = [id_ for _, id_ in reversed(world.timetable()) if world.is_settled(id_, world.at())]
    # An hour ahead: what is to be read again later stays "later" for as long as the tests run.
    with (
        Simulator(world, rate_limit=0) as simulator,
        closing(Database(url, clock_offset=timedelta(hours=1))) as database,
    ):
        simulator.add_fault(kind="status", status=403, match=f"/test-sessions/{ended[UNREADABLE]}$")
        more = {"CHECKLY_ETL_EXPORT__KEEP_PAYLOADS": "false"}
        settings = config.load(Path(os.devnull), {**environment(simulator.url, url), **more})
        assert pipeline.sync(Etl(settings, database)).exit_code == 1, "a dead letter"
        assert pipeline.sync(Etl(settings, database)).exit_code == 0, "a success to be shown"
        yield database


@pytest.fixture(scope="module")
def warehouses(
    exported: Database,
    sqlite_template: Path,
    postgres_url: str,
    postgres_template: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, Database]]:
    """A warehouse of each engine with the same rows, moved by whole days so that NOW is today."""
    path = tmp_path_factory.mktemp("questions") / "warehouse.db"
    shutil.copy(sqlite_template, path)
    name = f"etl_questions_{os.getpid()}"
    conftest._recreate(postgres_url, name, template=postgres_template)
    urls = {"sqlite": f"sqlite:///{path}", "postgresql": conftest._named(postgres_url, name)}
    with ExitStack() as stack:
        stack.callback(conftest._drop, postgres_url, name)
        made = {engine: stack.enter_context(closing(Database(url))) for engine, url in urls.items()}
        for database in made.values():
            _copy(exported, database)
        yield made


def _copy(source: Database, target: Database) -> None:
    with source.reading() as reading, target.writing() as writing:
        later = timedelta(days=(now(writing).date() - NOW.date()).days)
        for table in metadata.sorted_tables:
            if table.name.startswith("etl_") and table.name not in OPERATION:
                continue
            rows = [dict(row) for row in reading.execute(table.select()).mappings()]
            if table.name != "etl_runs":
                for row in rows:
                    row.update({name: row[name] + later for name in WORLD_TIMES & row.keys() if row[name]})
            for some in chunks(rows):
                writing.execute(table.insert(), some)
        if not target.is_sqlite:
            writing.execute(text("ANALYZE"))


@dataclass
class Answers:
    day: date  # on which they were given
    rows: dict[str, dict[str, list[Row]]]  # by reader and heading


@pytest.fixture(scope="module")
def answers(warehouses: dict[str, Database]) -> Answers:
    """The rows of every answer, all of the same day."""
    while True:
        day = datetime.now(UTC).date()
        found: dict[str, dict[str, list[Row]]] = {}
        for reader, time_zone in READERS.items():
            database = warehouses[reader.split()[0]]
            if reader.endswith("rolled up"):
                _roll_up(database)
            found[reader] = _answers(database, time_zone)
        if datetime.now(UTC).date() == day:
            return Answers(day, found)


def _roll_up(database: Database) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollups, "WORTH_IT", 0)
        pipeline.refresh_rollups(database)


@contextmanager
def _reading(database: Database, time_zone: str | None) -> Iterator[Connection]:
    with database.reading() as connection:
        if time_zone is not None:
            connection.execute(text(f"SET LOCAL timezone TO '{time_zone}'"))
        yield connection


def _answers(database: Database, time_zone: str | None) -> dict[str, list[Row]]:
    with _reading(database, time_zone) as connection:
        return {
            question.heading: [
                {name: _plain(value) for name, value in row.items()}
                for row in connection.execute(text(question.sql[connection.dialect.name])).mappings()
            ]
            for question in QUESTIONS
        }


def _plain(value: Any) -> Any:
    """A value in the form that SQLite gives it."""
    match value:
        case UUID():
            return str(value)
        case datetime():
            return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")
        case date():
            return value.isoformat()
        case Decimal():
            return int(value) if value == int(value) else float(value)
        case bool():
            return int(value)
        case _:
            return value


def _is_same(name: str, one: Any, other: Any) -> bool:
    if isinstance(one, int | float) and isinstance(other, int | float):
        # Only this one is measured from the clock, which goes on between two answers.
        return math.isclose(one, other, rel_tol=1e-9, abs_tol=0.1 if name == "hours_until_loss" else 0)
    return bool(one == other)


# --- the answers --------------------------------------------------------------------------------------------


@each_engine
@each_question
def test_every_question_is_answered(answers: Answers, question: Question, engine: str) -> None:
    found = answers.rows[engine][question.heading]
    assert found, "no row"
    for name in found[0]:
        assert any(row[name] is not None for row in found), f"{name} is null in every row"


@each_question
def test_every_question_is_answered_alike_on_both_engines_and_in_every_time_zone(
    answers: Answers, question: Question
) -> None:
    expected, *others = (answers.rows[reader][question.heading] for reader in READERS)
    for found in others:
        assert len(found) == len(expected)
        for row, other in zip(expected, found, strict=True):
            assert list(row) == list(other)
            assert all(_is_same(name, row[name], other[name]) for name in row), (row, other)


def test_the_conditions_of_the_introduction_mean_the_same_on_both_engines(
    warehouses: dict[str, Database], executions: Executions
) -> None:
    introduction = DOCUMENT.read_text(encoding="utf-8").partition("\n## ")[0]
    conditions = re.findall(r"`((?:account_id|started_at|day) [^`]+)`", introduction)
    assert len(conditions) == 3
    since = executions[-1].started_at.date() - timedelta(days=30)
    expected = sum(execution.started_at.date() >= since for execution in executions)
    assert 0 < expected < len(executions)
    for condition in conditions:
        where = re.sub(r"\d{4}-\d\d-\d\d(?=[ '])", since.isoformat(), condition)
        view = "v_check_daily" if where.startswith("day") else "check_executions"
        total = "SUM(executions)" if where.startswith("day") else "COUNT(*)"
        for reader, time_zone in READERS.items():
            with _reading(warehouses[reader.split()[0]], time_zone) as connection:
                # As a client would send it: the colons of a time are no parameters.
                found = connection.exec_driver_sql(f"SELECT {total} FROM {view} WHERE {where}").scalar_one()
            assert found == (len(executions) if "account_id" in where else expected), (reader, where)


# --- the same, calculated here from the rows of the tables ----------------------------------------------------


@pytest.fixture(scope="module")
def history(warehouses: dict[str, Database]) -> dict[str, list[Any]]:
    """All rows by table, the executions in the order of their histories."""
    with warehouses["sqlite"].reading() as connection:
        found = {t.name: list(connection.execute(t.select()).all()) for t in metadata.sorted_tables}
    found["check_executions"].sort(key=lambda e: (e.started_at, e.test_session_id, e.execution_no))
    return found


@pytest.fixture(scope="module")
def executions(history: dict[str, list[Any]]) -> Executions:
    """Every execution, the oldest first."""
    return history["check_executions"]


@pytest.fixture(scope="module")
def answer(answers: Answers) -> Answer:
    """The rows of SQLite's answer, by the beginning of its question: PostgreSQL's are the same."""

    def find(beginning: str) -> list[Row]:
        (heading,) = [question.heading for question in QUESTIONS if question.heading.startswith(beginning)]
        return answers.rows["sqlite"][heading]

    return find


def _newest_days(executions: Executions, n: int) -> set[date]:
    return set(sorted({execution.started_at.date() for execution in executions})[-n:])


def _verdicts(executions: Iterable[Any]) -> Counter[str | None]:
    return Counter(execution.verdict for execution in executions)


def _histories(executions: Executions) -> list[Executions]:
    """The decided executions of each check, branch, environment and location, in order."""
    by_key: dict[str, Executions] = defaultdict(list)
    for execution in executions:
        if execution.verdict:
            by_key[execution.history_key].append(execution)
    return list(by_key.values())


def _nearest_rank(values: list[Any], percent: int) -> Any:
    return sorted(values)[math.ceil(percent * len(values) / 100) - 1]


def test_freshness_is_that_of_the_newest_test_session_and_counts_the_dead_letter(
    answer: Answer, history: dict[str, list[Any]]
) -> None:
    (row,) = answer("How fresh")
    assert row["newest_started_at"] == _plain(max(s.started_at for s in history["test_sessions"]))
    (dead,) = [work for work in history["etl_queue"] if work.state == "dead"]
    assert (row["dead"], row["scheduled"]) == (1, 3)
    (account,) = history["etl_accounts"]
    lost_at = dead.session_created_at + timedelta(seconds=account.retention)
    assert row["hours_until_loss"] == pytest.approx((lost_at - datetime.now(UTC)) / timedelta(hours=1), abs=0.1)


def test_test_sessions_that_are_missing_from_the_rates_are_counted_by_provider(
    answer: Answer, history: dict[str, list[Any]], executions: Executions
) -> None:
    sessions = history["test_sessions"]
    undecided = {e.test_session_id for e in executions if e.verdict is None}
    for row in answer("Which test sessions are missing"):
        those = [s for s in sessions if s.provider == row["provider"]]
        assert row["test_sessions"] == len(those)
        assert row["cancelled"] == sum(s.status == "CANCELLED" for s in those)
        assert row["without_commit"] == sum(s.commit_id is None for s in those)
        assert row["with_undecided"] == sum(s.test_session_id in undecided for s in those)


def test_a_check_stopped_on_the_last_day_on_which_it_ran(answer: Answer, executions: Executions) -> None:
    last_days = {e.check_key: e.started_at.date() for e in executions}
    days = {e.started_at.date() for e in executions}
    expected = sorted((sum(day > last for day in days) for last in last_days.values()), reverse=True)
    found = [row["days_without"] for row in answer("Which checks stopped")]
    assert found == [n for n in expected if n][:20]


def test_a_new_failure_follows_a_pass_of_the_same_history(answer: Answer, executions: Executions) -> None:
    new = [
        b for h in _histories(executions) for a, b in pairwise(h) if (a.verdict, b.verdict) == ("PASSED", "FAILED")
    ]
    new.sort(key=lambda e: e.started_at, reverse=True)
    assert [row["link"] for row in answer("What failed today")] == [e.link for e in new[:20]]


def test_what_fails_the_longest_has_not_passed_since(answer: Answer, executions: Executions) -> None:
    expected = []
    for decided in _histories(executions):
        since_pass = list(itertools.takewhile(lambda e: e.verdict == "FAILED", reversed(decided)))
        if since_pass and since_pass[-1].branch_name == "main":
            expected.append((_plain(since_pass[-1].started_at), len(since_pass), since_pass[0].link))
    found = [(row["first_failed_at"], row["failures"], row["link"]) for row in answer("What has been failing")]
    assert found == sorted(expected)[:20]


def test_the_flakiest_checks_are_flaky_as_often_as_their_executions_say(
    answers: Answers, answer: Answer, executions: Executions
) -> None:
    since = answers.day - timedelta(days=29)
    recent = [e for e in executions if e.verdict and e.started_at.date() >= since]
    names = {e.check_key: e.check_name for e in executions}
    flips: Counter[str] = Counter()
    for decided in _histories(executions):
        changes = (b for a, b in pairwise(decided) if a.verdict != b.verdict)
        flips.update(e.check_key for e in changes if e.started_at.date() >= since)
    on_commits: dict[tuple[Any, ...], set[str]] = defaultdict(set)
    for e in recent:
        if e.commit_id:
            on_commits[e.check_key, e.commit_id, e.environment, e.run_location].add(e.verdict)
    flaky_commits = {(key, commit) for (key, commit, *_), verdicts in on_commits.items() if len(verdicts) == 2}
    expected = {
        (
            names[key],
            sum(e.check_key == key for e in recent),
            sum(e.check_key == key and e.is_retry_flaky for e in recent),
            sum(flaky == key for flaky, _ in flaky_commits),
            flips[key],
        )
        for key in names
    }
    found = answer("Which checks are the flakiest")
    columns = ("check_name", "decided", "retry_flaky", "commit_flaky", "flips")
    assert {tuple(row[name] for name in columns) for row in found} <= expected
    traits = {check.name for check in WEBSHOP.checks + PAYMENTS.checks if check.trait in ("retry", "commit", "flip")}
    assert traits <= {row["check_name"] for row in found}, "those that were made to be flaky"


def test_the_rate_of_a_day_is_that_of_a_week_of_days(answer: Answer, executions: Executions) -> None:
    those = [e for e in executions if e.verdict and e.check_name == "Checkout: pay with credit card"]
    days = sorted({e.started_at.date() for e in those})
    rows = {row["day"]: row for row in answer("Since when is this check flaky")}
    assert list(rows) == [day.isoformat() for day in reversed(days[-30:])]
    on_main = [e for e in those if e.started_at.date() in days[-7:] and e.branch_name == "main"]
    rate = sum(e.is_retry_flaky for e in on_main) / len(on_main)
    assert rows[days[-1].isoformat()]["main_rate"] == pytest.approx(rate)


def test_the_slowest_check_is_as_slow_as_its_durations(
    answers: Answers, answer: Answer, executions: Executions
) -> None:
    durations = defaultdict(list)
    for e in executions:
        if e.verdict == "PASSED" and e.started_at.date() > answers.day - timedelta(days=7):
            durations[e.check_key, e.environment, e.run_location].append(e.duration_ms)
    expected = sorted(
        (_nearest_rank(all_, 95) / 1000 for all_ in durations.values() if len(all_) >= 20), reverse=True
    )
    assert [row["p95_seconds"] for row in answer("Which checks are the slowest")] == pytest.approx(expected[:10])


def test_the_check_that_was_made_to_become_slower_did(answer: Answer) -> None:
    found = {row["check_name"] for row in answer("Which checks are slower")}
    assert found == {check.name for check in WEBSHOP.checks + PAYMENTS.checks if check.trait == "slow"}


def test_the_error_of_what_was_broken_yesterday_is_the_only_new_one(answer: Answer) -> None:
    new = [row["cleaned_error_message"] for row in answer("Is this error new") if row["is_new"]]
    assert new == [FAILURES["gift_card"].cleaned]


def test_the_errors_that_hit_most_are_linked_to_the_most_test_sessions(
    answer: Answer, history: dict[str, list[Any]]
) -> None:
    hit = Counter(link.error_group_id for link in history["test_session_error_groups"])
    expected = sorted(hit.values(), reverse=True)[:10]
    assert [row["test_sessions"] for row in answer("Which errors hit the most")] == expected


def test_the_minutes_of_retries_are_those_of_the_attempts(
    answer: Answer, history: dict[str, list[Any]], executions: Executions
) -> None:
    days = _newest_days(executions, 7)
    newest = {(e.test_session_id, e.execution_no) for e in executions if e.started_at.date() in days}
    minutes = sum(
        (result.stopped_at - result.started_at) / timedelta(minutes=1)
        for result in history["test_session_results"]
        if result.result_type == "ATTEMPT" and (result.test_session_id, result.execution_no) in newest
    )
    found = answer("How many minutes did retries cost")
    assert found[0]["retry_minutes_of_all"] == pytest.approx(minutes)
    assert sum(row["retry_minutes"] for row in found) <= minutes


def test_the_time_to_fix_is_the_median_of_the_streaks_that_ended(answer: Answer, executions: Executions) -> None:
    hours = defaultdict(list)
    for decided in _histories(executions):
        failed_since = None
        for e in decided:
            if e.verdict == "FAILED":
                failed_since = failed_since or e.started_at
            elif failed_since:
                if e.branch_name == "main":
                    hours[e.check_key].append((e.started_at - failed_since) / timedelta(hours=1))
                failed_since = None
    medians = sorted((statistics.median_low(all_) for all_ in hours.values() if len(all_) >= 3), reverse=True)
    assert [row["median_hours"] for row in answer("How long does it take")] == pytest.approx(medians[:20])


def test_a_check_that_never_fails_has_only_passes(answer: Answer, executions: Executions) -> None:
    verdicts = defaultdict(list)
    for e in executions:
        if e.verdict:
            verdicts[e.check_key].append("RETRIED" if e.is_retry_flaky else e.verdict)
    steady = sorted(len(all_) for all_ in verdicts.values() if set(all_) == {"PASSED"} and len(all_) >= 100)
    assert sorted(row["passes"] for row in answer("Which checks never fail")) == steady


def test_main_is_as_healthy_as_its_executions(answer: Answer, executions: Executions) -> None:
    newest, before = answer("Is main healthier")
    week, fortnight = _newest_days(executions, 7), _newest_days(executions, 14)
    for row, days in ((newest, week), (before, fortnight - week)):
        verdicts = _verdicts(e for e in executions if e.branch_name == "main" and e.started_at.date() in days)
        assert row["failed"] == verdicts["FAILED"]
        assert row["pass_rate"] == pytest.approx(verdicts["PASSED"] / (verdicts["PASSED"] + verdicts["FAILED"]))
    assert newest["pass_rate"] > before["pass_rate"], "the incident was nine days ago"


def test_branches_and_environments_fail_as_often_as_their_executions(answer: Answer, executions: Executions) -> None:
    days = _newest_days(executions, 7)
    newest = [e for e in executions if e.started_at.date() in days]
    for column, beginning in (("branch_name", "Which branch"), ("environment", "How do the environments")):
        rows = answer(beginning)
        for row in rows:
            verdicts = _verdicts(e for e in newest if getattr(e, column) == row[column])
            assert (row["decided"], row["failed"]) == (verdicts["PASSED"] + verdicts["FAILED"], verdicts["FAILED"])
        assert [row["pass_rate"] for row in rows] == sorted(row["pass_rate"] for row in rows)


def test_a_check_failed_in_one_location_only_if_it_passed_in_the_others(
    answer: Answer, executions: Executions
) -> None:
    together = defaultdict(list)
    for e in executions:
        if e.verdict:
            together[e.test_session_id, e.check_key].append(e)
    alone: Counter[tuple[str, str]] = Counter()
    for those in together.values():
        failed = [e for e in those if e.verdict == "FAILED"]
        if len(those) > 1 and len(failed) == 1:
            alone[failed[0].check_key, failed[0].run_location] += 1
    expected = sorted(alone.values(), reverse=True)[:20]
    found = [
        row["failed_only_here"] for row in answer("Does a check fail in one location only") if row["failed_only_here"]
    ]
    assert found == expected


def test_a_commit_failed_where_an_execution_of_it_did(
    answer: Answer, history: dict[str, list[Any]], executions: Executions
) -> None:
    newest = max((s for s in history["test_sessions"] if s.branch_name == "main"), key=lambda s: s.started_at)
    failed = Counter(e.link.partition("/results/")[0] for e in executions if e.verdict == "FAILED")
    expected = {s.link: failed[s.link] for s in history["test_sessions"] if s.commit_id == newest.commit_id}
    rows = answer("What did the tests say of this commit")
    assert {row["link"]: row["failed"] for row in rows} == expected
    assert all((row["verdict"] == "FAILED") == (row["failed"] > 0) for row in rows)


def test_commits_with_failures_are_counted_once_each(
    answer: Answer, history: dict[str, list[Any]], executions: Executions
) -> None:
    failed = {e.test_session_id for e in executions if e.verdict == "FAILED"}
    for row in answer("Who could use a hand"):
        those = [
            s
            for s in history["test_sessions"]
            if (s.commit_owner, s.branch_name != "main") == (row["commit_owner"], True)
        ]
        assert row["commits"] == len({s.commit_id for s in those}) >= 10
        assert row["commits_with_failures"] == len({s.commit_id for s in those if s.test_session_id in failed})


def test_hours_of_the_day_hold_every_decided_execution(answer: Answer, executions: Executions) -> None:
    expected = Counter(e.started_at.hour for e in executions if e.verdict)
    assert {row["hour"]: row["decided"] for row in answer("At which hour")} == expected
