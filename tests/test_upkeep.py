"""prune and forget: what leaves the warehouse, and what stays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Connection, text

from etl import session_queue, upkeep
from etl.database import Database
from etl.simulator import Simulator, World
from etl.tables import etl_payloads
from tests.conftest import Program, content, environment, rows, scalar
from tests.documents import detail, entry, error_group, result, uuid
from tests.harness import rows_that_hold

CONTENT = ("test_sessions", "test_session_results", "check_executions", "test_session_error_groups")


@pytest.fixture
def checkly() -> Iterator[Simulator]:
    """Checkly with what the test puts into it."""
    with Simulator(World(seed=1, now=datetime(2000, 1, 1, tzinfo=UTC), days=1), rate_limit=0) as serving:
        yield serving


@pytest.fixture
def etl(program: Program, checkly: Simulator, warehouse_url: str) -> Program:
    """checkly-etl with that Checkly."""
    # The documents are of November 2026, whatever today is.
    program.env = environment(checkly.url, warehouse_url) | {"CHECKLY_ETL_EXPORT__LOOKBACK": "3000d"}
    return program


def make_old(database: Database, sql: str, **parameters: object) -> None:
    with database.writing() as connection:
        connection.execute(text(sql), parameters)


def all_payloads_are_old(database: Database) -> None:
    make_old(database, "UPDATE etl_payloads SET fetched_at = '2020-01-01 00:00:00.000000'")


# --- prune ---------------------------------------------------------------------------------------------------------


def test_old_payloads_and_runs_go_and_the_rows_of_test_sessions_stay(
    etl: Program, checkly: Simulator, database: Database
) -> None:
    for number in (1, 2):
        checkly.put_test_session(detail(number), entry(number))
    etl("sync")
    before = content(database)
    all_payloads_are_old(database)
    make_old(database, "UPDATE etl_runs SET started_at = '2020-01-01 00:00:00.000000'")

    plan = etl("prune", "--before", "400d", "--plan", "--json")
    assert (plan.json["payloads"], plan.json["runs"]) == (4, 1)
    assert scalar(database, "SELECT count(*) FROM etl_payloads") == 4, "a plan deletes nothing"

    run = etl("prune", "--before", "400d")
    assert run.code == 0
    assert "4 payloads, 1 runs, 0 inbox rejects deleted; the rows of test sessions stay" in run.out
    after = content(database)
    assert after["etl_payloads"] == []
    assert scalar(database, "SELECT count(*) FROM etl_runs") == 0
    assert all(after[table] == before[table] for table in CONTENT)


def test_what_is_younger_stays(etl: Program, checkly: Simulator, database: Database) -> None:
    for number in (1, 2):
        checkly.put_test_session(detail(number), entry(number))
    etl("sync")
    make_old(
        database,
        "UPDATE etl_payloads SET fetched_at = '2020-01-01 00:00:00.000000' WHERE test_session_id = :id",
        id=uuid(1),
    )
    assert etl("prune", "--before", "2021-01-01", "--json").json["payloads"] == 2
    assert {str(row["test_session_id"]) for row in rows(database, "SELECT * FROM etl_payloads")} == {uuid(2)}


def test_the_document_of_a_dead_letter_stays_however_old(
    etl: Program, checkly: Simulator, database: Database
) -> None:
    checkly.put_test_session(detail(1, status=7))  # a document that no release can read yet
    etl("enqueue", uuid(1))
    etl("sync")
    assert scalar(database, "SELECT count(*) FROM etl_payloads") == 1
    all_payloads_are_old(database)
    assert etl("prune", "--before", "1d", "--json").json["payloads"] == 0
    etl("dead", "discard", uuid(1))
    assert etl("prune", "--before", "1d", "--json").json["payloads"] == 1


def test_a_session_without_its_payload_is_exported_again_when_it_changes_and_survives_a_replay(
    etl: Program, checkly: Simulator, database: Database
) -> None:
    checkly.put_test_session(detail(1), entry(1))
    etl("sync")
    all_payloads_are_old(database)
    etl("prune", "--before", "1d")
    before = content(database)
    run = etl("replay")
    assert run.code == 0
    assert "without a stored document (export.keep_payloads, prune): 1; their executions are folded again" in run.err
    assert content(database) == before
    checkly.put_test_session(detail(1, name="renamed"), entry(1, name="renamed"))
    etl("sync")
    assert scalar(database, "SELECT name FROM test_sessions") == "renamed"
    assert scalar(database, "SELECT project_id FROM test_sessions") is not None


def test_a_large_warehouse_is_pruned_in_batches(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "PRUNE_BATCH", 10)
    moment = datetime(2020, 1, 1, tzinfo=UTC)
    with database.writing() as connection:
        connection.execute(
            etl_payloads.insert(),
            [
                {"kind": "test_session", "document_id": uuid(n), "body": "{}", "sha256": "", "fetched_at": moment}
                for n in range(37)
            ],
        )
    payloads = upkeep.PRUNABLES[0]
    deleted: list[int] = []
    after = None
    while True:
        count, after = database.run(
            lambda c, after=after: upkeep.prune(c, payloads, moment + timedelta(days=1), after=after)  # type: ignore[misc]
        )
        deleted.append(count)
        if after is None:
            break
    assert deleted == [10, 10, 10, 7]
    assert scalar(database, "SELECT count(*) FROM etl_payloads") == 0


@pytest.mark.parametrize("before", ["yesterday", "", "2026-13-01"])
def test_a_time_that_is_none_is_wrong_usage(etl: Program, before: str) -> None:
    run = etl("prune", "--before", before)
    assert run.code == 2
    assert "--before" in run.err


# --- forget --------------------------------------------------------------------------------------------------------


def with_groups(number: int, *groups: int) -> dict[str, object]:
    ids = [uuid(0xE000 + group) for group in groups]
    return detail(number, errorGroupIds=ids, results=[result(1, errorGroupIds=ids)])


def test_everything_of_a_session_goes_and_what_others_share_stays(
    etl: Program, checkly: Simulator, database: Database
) -> None:
    for group in (1, 2):
        checkly.put_error_group(error_group(group))
    checkly.put_test_session(with_groups(1, 1, 2), entry(1))
    checkly.put_test_session(with_groups(2, 2), entry(2))
    etl("sync")
    run = etl("forget", "test-session", uuid(1), "--json")
    assert run.code == 0
    (gone,) = run.json["forgotten"]
    assert gone["test_sessions"] == 1
    assert gone["error_groups"] == [uuid(0xE001)]
    assert rows_that_hold(database, uuid(1)) == ["etl_queue"], "that it must not come back"
    (row,) = rows(database, "SELECT state, summary, summary_sha256, session_created_at FROM etl_queue")
    assert row == {"state": "discarded", "summary": None, "summary_sha256": None, "session_created_at": None}
    assert rows_that_hold(database, uuid(0xE001)) == []
    assert "error_groups" in rows_that_hold(database, uuid(0xE002))
    assert [str(row["test_session_id"]) for row in rows(database, "SELECT * FROM test_sessions")] == [uuid(2)]


def test_neither_discovery_nor_backfill_nor_replay_nor_an_id_brings_it_back(
    etl: Program, checkly: Simulator, database: Database
) -> None:
    checkly.put_test_session(detail(1), entry(1))
    etl("sync")
    etl("forget", "test-session", uuid(1))
    checkly.put_test_session(detail(1, name="changed"), entry(1, name="changed"))
    for command in (
        ("sync",),
        ("backfill", "--since", "3000d", "--force"),
        ("replay",),
        ("enqueue", uuid(1)),
        ("sync",),
    ):
        etl(*command)
        assert scalar(database, "SELECT count(*) FROM test_sessions") == 0, command
    etl("enqueue", "--force", uuid(1))
    etl("sync")
    assert scalar(database, "SELECT count(*) FROM test_sessions") == 1


def test_a_worker_that_has_it_in_hand_cannot_save_it(database: Database) -> None:
    account = uuid(0xAAAA)
    database.run(lambda c: session_queue.enqueue(c, [uuid(1)]))
    claims = database.run(
        lambda c: session_queue.claim(c, account_id=account, limit=1, lease=timedelta(minutes=5), is_default=True)
    )
    database.run(lambda c: session_queue.shut_out(c, uuid(1)))
    assert database.run(lambda c: session_queue.lock(c, claims)) == set()


def test_one_that_is_not_held_is_shut_out_all_the_same(etl: Program, checkly: Simulator, database: Database) -> None:
    run = etl("forget", "test-session", uuid(7), f"https://app.checklyhq.com/test-sessions/{uuid(8)}")
    assert run.code == 0
    assert run.out.count("nothing was held of it") == 2
    checkly.put_test_session(detail(7), entry(7))
    etl("sync")
    assert scalar(database, "SELECT count(*) FROM test_sessions") == 0


def test_a_failure_in_the_middle_forgets_nothing(
    etl: Program, checkly: Simulator, database: Database, make_failing: Callable[[], None]
) -> None:
    checkly.put_error_group(error_group(1))
    checkly.put_test_session(with_groups(1, 1), entry(1))
    etl("sync")
    before = content(database)
    make_failing()

    def work(connection: Connection) -> None:
        session_queue.shut_out(connection, uuid(1))
        upkeep.forget_test_session(connection, uuid(1))

    with pytest.raises(Exception, match="in the middle"):
        database.run(work)
    assert content(database) == before


@pytest.fixture
def make_failing(database: Database, engine_name: str) -> Callable[[], None]:
    """From now on the database refuses to delete error groups."""

    def make() -> None:
        with database.writing() as connection:
            if engine_name == "sqlite":
                connection.execute(
                    text(
                        "CREATE TRIGGER refuse BEFORE DELETE ON error_groups "
                        "BEGIN SELECT RAISE(ABORT, 'in the middle'); END"
                    )
                )
            else:
                connection.execute(
                    text(
                        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
                        "$$ BEGIN RAISE EXCEPTION 'in the middle'; END $$"
                    )
                )
                connection.execute(
                    text("CREATE TRIGGER refuse BEFORE DELETE ON error_groups FOR EACH ROW EXECUTE FUNCTION refuse()")
                )

    return make


@pytest.mark.parametrize("arguments", [(), ("test-session",), ("error-group", uuid(1)), ("test-session", "nonsense")])
def test_forget_says_what_it_wants(etl: Program, arguments: tuple[str, ...]) -> None:
    run = etl("forget", *arguments)
    assert run.code == 2
    assert "Traceback" not in run.err
