"""Rollups: a view says the same with them, without them, and with some of them; and they are used."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from alembic import command
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, delete, text

from etl import pipeline, rollups, schema, upkeep
from etl.database import Database
from etl.pipeline import Etl
from etl.simulator import Simulator
from etl.tables import metadata, test_sessions
from tests.conftest import scalar
from tests.histories import CALCULATIONS, HISTORIES, TODAY, History
from tests.test_histories import EXAMPLES, MIDNIGHTS, at, counted, execution, holding, runs, select, today
from tests.test_migrations import alembic

ROLLED_UP = (
    "v_checks",
    "v_check_daily",
    "v_failure_streaks",
    "v_flaky_checks",
    "v_duration_regressions",
    "v_error_group_impact",
    "v_test_session_summary",
)


@pytest.fixture(autouse=True)
def always_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollups, "WORTH_IT", 0)


def refresh(connection: Connection) -> int:
    """In how many pieces."""
    pieces = 0
    for step in rollups.steps(connection):
        after = rollups.BEGIN
        while after is not rollups.END:
            after = step(connection, after=after)
            pieces += 1
    return pieces


def assert_told(connection: Connection, view: str, history: History, day: Any, when: str) -> None:
    of_view, of_calculation = counted(view, select(connection, view)), counted(view, CALCULATIONS[view](history, day))
    assert of_view == of_calculation, f"{view} {when}\n{history.described()}"


# --- the same answers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", ROLLED_UP)
def test_a_view_says_the_same_with_all_some_and_no_rollups(database: Database, view: str) -> None:
    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(history=HISTORIES, data=st.data())
    def compare(history: History, data: st.DataObject) -> None:
        ids = [row["test_session_id"] for row in history.test_sessions]
        late = data.draw(st.sets(st.sampled_from(ids))) if ids else set()
        gone = data.draw(st.sets(st.sampled_from(ids))) if ids else set()
        while True:
            day = today(database)
            there = history.moved((day - TODAY).days)
            early = there.of(set(ids) - late)
            with holding(database, early) as connection:
                refresh(connection)
                assert_told(connection, view, early, day, "rolled up")
                there.of(late).insert(connection, but=("error_groups",))
                assert_told(connection, view, there, day, "with later test sessions")
                refresh(connection)
                assert_told(connection, view, there, day, "rolled up again")
                for id_ in gone:
                    connection.execute(delete(test_sessions).where(test_sessions.c.test_session_id == id_))
                left = there.of(set(ids) - gone)
                assert_told(connection, view, left, day, "without some")
                refresh(connection)
                assert_told(connection, view, left, day, "rolled up in the end")
            if today(database) == day:
                return

    compare()


UPDATES = (
    "UPDATE check_executions SET verdict = 'FAILED', status = 'FAILED'",
    "UPDATE check_executions SET check_key = 'other', check_id = NULL",
    "UPDATE check_executions SET account_id = NULL",
    "UPDATE check_executions SET duration_ms = duration_ms * 3",
    "UPDATE check_executions SET started_at = (SELECT MIN(started_at) FROM check_executions)",
    "UPDATE test_sessions SET branch_name = 'other', environment = NULL",
    "UPDATE test_session_results SET started_at = NULL",
    "UPDATE test_session_result_error_groups SET error_group_id = (SELECT error_group_id FROM error_groups LIMIT 1)",
    "DELETE FROM test_session_result_error_groups",
    "DELETE FROM check_executions WHERE verdict = 'FAILED'",
)


@pytest.mark.parametrize("update", UPDATES)
def test_rows_that_are_changed_by_hand_change_every_answer(database: Database, update: str) -> None:
    moved = MIDNIGHTS.moved((today(database) - TODAY).days)
    with holding(database, moved) as connection:
        refresh(connection)
        connection.execute(text(update))
        with_rollups = {view: counted(view, select(connection, view)) for view in ROLLED_UP}
        rollups.drop(connection)
        assert with_rollups == {view: counted(view, select(connection, view)) for view in ROLLED_UP}


# --- they are used, and not kept for ever -------------------------------------------------------------------


def a_month(database: Database) -> History:
    history = runs(
        *[
            execution(number, 1, "PASSED" if number % 5 else "FAILED", started_at=at(-number), duration_ms=1000.0)
            for number in range(60)
        ]
    )
    return history.moved((today(database) - TODAY).days)


@pytest.fixture
def rolled_up(database: Database) -> Iterator[Connection]:
    with holding(database, a_month(database)) as connection:
        refresh(connection)
        yield connection


def test_all_but_today_and_what_is_old_is_rolled_up(rolled_up: Connection, database: Database) -> None:
    def count(sql: str) -> Any:
        return rolled_up.execute(text(sql)).scalar()

    assert count("SELECT COUNT(*) FROM etl_days WHERE is_rolled_up") == 45
    assert count("SELECT COUNT(*) FROM etl_days WHERE NOT is_rolled_up") == 6, (
        "today, and five that are nearly too old"
    )
    assert count("SELECT COUNT(*) FROM etl_rollup_check_daily") == 45
    assert count("SELECT COUNT(*) FROM etl_checks WHERE rolled_up_for IS NULL") == 0
    for view in (
        "flaky_checks",
        "failure_streaks",
        "duration_regressions",
        "test_session_summary",
        "error_group_impact",
    ):
        assert count(f"SELECT COUNT(*) FROM etl_live_{view}") == 0, view


def test_fewer_checks_are_counted_at_once_if_they_run_often(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = [execution(number, 1, check_key=f"check {number}") for number in range(1, 6)]
    with holding(database, runs(*checks).moved((today(database) - TODAY).days)) as connection:
        # The size of the table stands for its rows, and other tests may have left it large.
        monkeypatch.setattr(rollups, "EXECUTIONS_AT_ONCE", {"postgresql": 10**9, "sqlite": 10**9})
        pieces = refresh(connection)
        rollups.drop(connection)
        monkeypatch.setattr(rollups, "EXECUTIONS_AT_ONCE", {"postgresql": 1, "sqlite": 1})
        assert refresh(connection) == pieces + 2 * (len(checks) - 1)  # for flakiness and for streaks


@pytest.mark.parametrize(
    ("view", "table", "change"),
    [
        ("v_checks", "etl_checks", "check_name = 'of the rollup'"),
        ("v_check_daily", "etl_rollup_check_daily", "executions = 77"),
        ("v_flaky_checks", "etl_rollup_flaky_checks", "flips = 77"),
        ("v_failure_streaks", "etl_rollup_failure_streaks", "failures = 77"),
        ("v_duration_regressions", "etl_rollup_duration_regressions", "recent_n = 77"),
        ("v_test_session_summary", "etl_rollup_test_session_summary", "retries = 77"),
    ],
)
def test_a_view_reads_its_rollup(rolled_up: Connection, view: str, table: str, change: str) -> None:
    rolled_up.execute(text(f"UPDATE {table} SET {change}"))
    column, _, value = change.partition(" = ")
    assert value.strip("'") in {
        str(row[column]) for row in rolled_up.execute(text(f"SELECT * FROM {view}")).mappings()
    }


def test_replay_finds_checks_and_days_that_no_trigger_saw(rolled_up: Connection) -> None:
    rolled_up.execute(text("DELETE FROM etl_checks"))
    rolled_up.execute(text("DELETE FROM etl_days"))
    rollups.drop(rolled_up)
    refresh(rolled_up)
    assert rolled_up.execute(text("SELECT COUNT(*) FROM v_checks")).scalar() == 1
    assert rolled_up.execute(text("SELECT COUNT(*) FROM v_check_daily")).scalar() == 60


def test_the_upgrade_finds_the_checks_and_days_that_are_there(database: Database) -> None:
    history = a_month(database)
    with database.writing() as connection:
        history.insert(connection)
    alembic(database, command.downgrade, "0003")
    schema.migrate(database)
    with database.reading() as connection:
        for view in ROLLED_UP:
            assert_told(connection, view, history, today(database), "after the upgrade")


def test_with_little_to_count_nothing_is_stored(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollups, "WORTH_IT", 61)
    with holding(database, a_month(database)) as connection:
        assert rollups.steps(connection) == []


def test_what_is_forgotten_is_left_in_no_rollup(database: Database) -> None:
    history = a_month(database)
    gone = execution(900, 1, "FAILED", check_key="a secret name", branch_name="secret", link="a secret link")
    with holding(database, history) as connection:
        runs(gone).moved((today(database) - TODAY).days - 1).insert(connection)
        refresh(connection)
        assert _tables_with(connection, gone["test_session_id"], "secret") >= {
            "etl_checks",
            "etl_rollup_check_daily",
            "etl_rollup_failure_streaks",
            "etl_rollup_test_session_summary",
        }
        upkeep.forget_test_session(connection, gone["test_session_id"])
        rollups.sweep(connection)
        assert _tables_with(connection, gone["test_session_id"], "secret") == set()


def _tables_with(connection: Connection, *words: str) -> set[str]:
    return {
        table.name
        for table in metadata.sorted_tables
        for row in connection.execute(table.select())
        if any(word in str(value) for value in row for word in words)
    }


# --- writers beside a refresh -------------------------------------------------------------------------------


def test_a_piece_whose_transaction_was_rolled_back_is_done_again(database: Database) -> None:
    class RolledBackError(Exception):
        pass

    history = a_month(database)
    with database.writing() as connection:
        history.insert(connection)
    for step in database.read(rollups.steps):
        after = rollups.BEGIN
        while after is not rollups.END:
            with suppress(RolledBackError), database.writing() as connection:
                step(connection, after=after)
                raise RolledBackError
            after = database.run(partial(step, after=after))
    assert scalar(database, "SELECT count(*) FROM etl_rollup_test_session_summary") == len(history.test_sessions)
    assert scalar(database, "SELECT count(*) FROM etl_checks WHERE has_streaks AND rolled_up_for IS NOT NULL") == (
        scalar(database, "SELECT count(*) FROM etl_checks")
    )


def test_a_refresh_over_midnight_ends_and_the_next_one_does_the_rest(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with database.writing() as connection:
        a_month(database).insert(connection)
    days, pieces = itertools.count(), 0
    with monkeypatch.context() as patch:
        patch.setattr(rollups, "_today", lambda _: f"day {next(days)}")
        for step in database.read(rollups.steps):
            after = rollups.BEGIN
            while after is not rollups.END:
                after = database.run(partial(step, after=after))
                pieces += 1
                assert pieces < 200, "it goes round"
    checks = "SELECT count(*) FROM etl_checks"
    assert scalar(database, f"{checks} WHERE rolled_up_for IS NOT NULL") == 0
    pipeline.refresh_rollups(database)
    assert scalar(database, f"{checks} WHERE rolled_up_for IS NOT NULL") == scalar(database, checks) > 0


def test_a_refresh_waits_for_a_writer_who_is_not_done(database: Database) -> None:
    if database.is_sqlite:
        pytest.skip("one writer at a time")
    history = a_month(database)
    first, *rest = [row["test_session_id"] for row in history.test_sessions]
    with database.writing() as connection:
        history.of(rest).insert(connection)

    beside = threading.Thread(target=pipeline.refresh_rollups, args=(database,))
    with database.writing() as connection:
        history.of([first]).insert(connection)
        beside.start()
        beside.join(timeout=1)
        assert beside.is_alive(), "it would count without what is not committed yet"
    beside.join(timeout=30)
    assert not beside.is_alive()
    day = today(database)
    for view in ROLLED_UP:
        with database.reading() as connection:
            assert_told(connection, view, history, day, "after both")


def test_writers_do_not_wait_for_each_other_where_nothing_is_rolled_up(database: Database) -> None:
    if database.is_sqlite:
        pytest.skip("one writer at a time")
    days = (today(database) - TODAY).days
    with database.writing() as connection:
        a_month(database).insert(connection)
    with database.writing() as one, database.writing() as other:
        other.execute(text("SET LOCAL lock_timeout = '2s'"))
        runs(execution(101, 1, started_at=at(-1))).moved(days).insert(one)
        runs(execution(102, 1, started_at=at(-1))).moved(days).insert(other)


def test_writers_and_refreshes_at_once_leave_no_wrong_answer(database: Database) -> None:
    if database.is_sqlite:
        pytest.skip("one writer at a time")
    days = (today(database) - TODAY).days
    history = a_month(database)
    for number in range(200, 230):
        more = runs(
            *[
                execution(number, no, "FAILED" if (number + no) % 3 else "PASSED", check_key=f"key {no}", link=None)
                for no in range(1, 6)
            ]
        )
        history = history.and_also(more.moved(days - number % 9))
    ids = [row["test_session_id"] for row in history.test_sessions]
    problems: list[BaseException] = []
    is_over = threading.Event()

    def write(mine: list[str]) -> None:
        for id_ in mine:
            for _ in range(2):  # written, and written anew

                def save(connection: Connection, id_: str = id_) -> None:
                    connection.execute(delete(test_sessions).where(test_sessions.c.test_session_id == id_))
                    history.of([id_]).insert(connection)

                database.run(save)

    def refresh_again_and_again() -> None:
        while not is_over.is_set():
            pipeline.refresh_rollups(database)

    def guarded(work: Callable[..., None], *arguments: Any) -> None:
        try:
            work(*arguments)
        except BaseException as error:
            problems.append(error)

    writers = [threading.Thread(target=guarded, args=(write, ids[n::3])) for n in range(3)]
    refreshers = [threading.Thread(target=guarded, args=(refresh_again_and_again,)) for _ in range(2)]
    for thread in (*writers, *refreshers):
        thread.start()
    for thread in writers:
        thread.join()
    is_over.set()
    for thread in refreshers:
        thread.join()
    assert problems == []
    with database.reading() as connection:
        for view in ROLLED_UP:
            assert_told(connection, view, history, today(database), "after all of them")


# --- in a pass ----------------------------------------------------------------------------------------------


def test_a_pass_fills_what_it_touched_and_replay_makes_all_anew(
    make_etl: Callable[..., Etl], simulator: Simulator, database: Database
) -> None:
    etl = make_etl()
    assert pipeline.sync(etl).word == "ok"
    assert simulator.requests
    open_ones = "SELECT COUNT(*) FROM etl_checks WHERE rolled_up_for IS NULL"
    for what in (lambda: None, lambda: pipeline.replay(etl)):
        what()
        assert scalar(database, open_ones) == 0
        assert scalar(database, "SELECT COUNT(*) FROM etl_live_test_session_summary") == 0
        assert scalar(database, "SELECT COUNT(*) FROM etl_rollup_test_session_summary") > 0


def test_a_refresh_that_takes_too_long_is_told_and_the_pass_is_fine(
    make_etl: Callable[..., Etl],
    simulator: Simulator,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if database.is_sqlite:
        pytest.skip("SQLite has no time limit for a statement")
    monkeypatch.setattr(rollups, "_LOCAL_SETTINGS", "SET LOCAL statement_timeout = '1ms'")
    outcome = pipeline.sync(make_etl())
    assert (outcome.word, outcome.exit_code) == ("ok", 0)
    assert simulator.requests
    assert "the rollups could not be refreshed" in caplog.text
