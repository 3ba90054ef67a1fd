"""Many rows at once: whatever the way, the same rows come out as if each value had been bound by itself."""

from __future__ import annotations

import string
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, select, text
from sqlalchemy.exc import IntegrityError

from etl import bulk
from etl.database import Database
from etl.errors import WarehouseUnavailable
from etl.tables import error_groups, etl_payloads, etl_queue
from tests.conftest import scalar
from tests.documents import uuid

MOMENT = datetime(2026, 11, 15, 12, 0, 0, 123456, tzinfo=UTC)
AWKWARD = (
    "", " ", "\\", "\\N", "\\.", "\t", "a\tb", "line\nline\r\n", '"', "'", "null", "NULL", "{}", "%s %(x)s :y ?",
    "\x01\x7f", "\u2028", "für später", "\N{GRINNING FACE}", "\N{WOMAN}\N{ZERO WIDTH JOINER}\N{ROCKET}", "\ufffd",
    "a" * 70_000,
)  # fmt: skip


def row(number: int, **columns: Any) -> dict[str, Any]:
    """A row of etl_queue, which has columns of each kind."""
    return {
        "test_session_id": uuid(number),
        "account_id": None,
        "state": "queued",
        "priority": 0,
        "claim_order": -1.5,
        "source": "enqueue",
        "attempts": 0,
        "available_at": MOMENT,
        "enqueued_at": MOMENT,
        "summary": None,
        **columns,
    }


def stored(connection: Connection) -> dict[str, dict[str, Any]]:
    """The rows of etl_queue by id, with the columns that `row` has."""
    found = connection.execute(select(*(etl_queue.c[name] for name in row(1)))).mappings()
    return {one["test_session_id"]: dict(one) for one in found}


class QueueRow(msgspec.Struct):
    test_session_id: str
    summary: str | None
    available_at: datetime
    state: str = "queued"
    priority: int = 0
    claim_order: float = 0.0
    source: str = "inbox"
    attempts: int = 3
    enqueued_at: datetime = MOMENT


only_postgresql = pytest.mark.parametrize("engine_name", ["postgresql"])
only_sqlite = pytest.mark.parametrize("engine_name", ["sqlite"])
VERBS = {"insert": bulk.insert, "insert_or_keep": bulk.insert_or_keep, "upsert": bulk.upsert}
verbs = pytest.mark.parametrize("verb", list(VERBS.values()), ids=list(VERBS))


@verbs
def test_every_text_is_stored_as_it_is(database: Database, verb: Any) -> None:
    rows = [row(number, summary=summary, last_error=summary) for number, summary in enumerate(AWKWARD, 1)]
    with database.writing() as connection:
        verb(connection, etl_queue, rows)
        found = connection.execute(select(etl_queue.c.summary, etl_queue.c.last_error)).all()
    assert sorted(found) == sorted((summary, summary) for summary in AWKWARD)


@verbs
def test_every_value_is_stored_as_it_is(database: Database, verb: Any) -> None:
    moments = [
        datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
        datetime(2026, 3, 29, 2, 30, tzinfo=UTC), datetime(1970, 1, 1, tzinfo=UTC), MOMENT,
        MOMENT.astimezone(timezone(timedelta(hours=-9, minutes=-30))),
    ]  # fmt: skip
    numbers = [1e308, -1e308, 5e-324, 0.1, -0.0, 1 / 3, float(2**53), -1.0]
    rows = [row(n, available_at=moment) for n, moment in enumerate(moments, 1)]
    rows += [row(n, claim_order=number, priority=-10, attempts=2**31 - 1) for n, number in enumerate(numbers, 100)]
    rows += [row(200, account_id=uuid(1), summary="")]
    with database.writing() as connection:
        verb(connection, etl_queue, rows)
        assert stored(connection) == {one["test_session_id"]: one for one in rows}


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.none() | st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"])),
            st.datetimes(timezones=st.just(UTC)),
            st.floats(allow_nan=False, allow_infinity=False),
        ),
        min_size=1,
        max_size=50,
    )
)
def test_all_ways_store_the_same(database: Database, values: list[tuple[str | None, datetime, float]]) -> None:
    rows = [
        row(number, summary=summary, available_at=moment, claim_order=order)
        for number, (summary, moment, order) in enumerate(values, 1)
    ]
    for verb in VERBS.values():
        with database.writing() as connection:
            connection.execute(etl_queue.delete())
            verb(connection, etl_queue, rows)
            assert stored(connection) == {one["test_session_id"]: one for one in rows}


@pytest.mark.parametrize("count", [1, 19, 20, 21, 999, 1000, 1001, 2500])
def test_any_number_of_rows_is_written(database: Database, count: int) -> None:
    rows = [row(number) for number in range(count)]
    with database.writing() as connection:
        bulk.insert(connection, etl_queue, rows)
        bulk.insert_or_keep(connection, etl_queue, rows)
        bulk.upsert(connection, etl_queue, [{**one, "attempts": 1} for one in rows])
        bulk.insert(connection, etl_queue, [])
        bulk.insert_or_keep(connection, etl_queue, [])
        bulk.upsert(connection, etl_queue, [])
    assert scalar(database, "SELECT count(*) FROM etl_queue WHERE attempts = 1") == count


@verbs
def test_the_fields_of_structs_are_columns(database: Database, verb: Any) -> None:
    with database.writing() as connection:
        verb(connection, etl_queue, [QueueRow(uuid(1), "a\\b", MOMENT), QueueRow(uuid(2), None, MOMENT)])
        found = stored(connection)
    assert (found[uuid(1)]["summary"], found[uuid(2)]["summary"]) == ("a\\b", None)
    assert found[uuid(1)]["attempts"] == 3


def test_an_upsert_keeps_what_it_is_told_to_and_sets_the_rest(database: Database) -> None:
    with database.writing() as connection:
        bulk.insert(connection, etl_queue, [row(1, attempts=1, summary="old"), row(2)])
        bulk.upsert(
            connection, etl_queue, [row(1, attempts=7, summary="new"), row(3)], keep=("attempts", "enqueued_at")
        )
        found = stored(connection)
    assert (found[uuid(1)]["attempts"], found[uuid(1)]["summary"]) == (1, "new")
    assert set(found) == {uuid(1), uuid(2), uuid(3)}


def test_what_is_there_already_stays_where_it_is_to_be_kept(database: Database) -> None:
    with database.writing() as connection:
        bulk.insert(connection, etl_queue, [row(1, summary="old")])
        bulk.insert_or_keep(connection, etl_queue, [row(1, summary="new"), row(2)])
        assert stored(connection)[uuid(1)]["summary"] == "old"


def test_a_row_that_is_there_already_is_an_error_like_any_other(database: Database) -> None:
    with database.writing() as connection:
        bulk.insert(connection, etl_queue, [row(1)])
    with pytest.raises(IntegrityError) as caught, database.writing() as connection:
        bulk.insert(connection, etl_queue, [row(2, summary="a secret"), row(1)])
    assert "secret" not in str(caught.value)
    with database.writing() as connection:  # and whoever comes next has a connection that works
        assert list(stored(connection)) == [uuid(1)]


def test_a_lone_column_is_a_row_as_well(database: Database) -> None:
    with database.writing() as connection:
        bulk.insert(connection, error_groups, [{"error_group_id": uuid(1)}])
        bulk.insert_or_keep(connection, error_groups, [{"error_group_id": uuid(1)}, {"error_group_id": uuid(2)}])
    assert scalar(database, "SELECT count(*) FROM error_groups") == 2


@verbs
def test_rows_with_other_columns_are_a_bug_and_not_a_null(database: Database, verb: Any) -> None:
    others: list[Any] = [{"test_session_id": uuid(2)}, QueueRow(uuid(2), None, MOMENT)]
    for other in others:
        with pytest.raises(AssertionError, match="etl_queue"), database.writing() as connection:
            verb(connection, etl_queue, [row(1), other])
    assert scalar(database, "SELECT count(*) FROM etl_queue") == 0


@only_sqlite
def test_a_naive_time_is_refused_where_the_database_would_guess(database: Database) -> None:
    with pytest.raises(ValueError, match="without a zone"), database.writing() as connection:
        bulk.insert(connection, etl_queue, [row(1, available_at=MOMENT.replace(tzinfo=None))])


def test_a_long_text_is_stored_and_replaced(database: Database) -> None:
    def payload(body: str) -> dict[str, Any]:
        return {
            "kind": "test_session",
            "document_id": uuid(1),
            "account_id": None,
            "test_session_id": uuid(1),
            "sha256": "0" * 64,
            "fetched_at": MOMENT,
            "body": body.encode(),
        }

    for body in (*AWKWARD, string.printable * 1000):
        with database.writing() as connection:
            bulk.upsert_texts(connection, etl_payloads, [payload(body)], "body")
            assert connection.execute(select(etl_payloads.c.body, etl_payloads.c.fetched_at)).all() == [
                (body, MOMENT)
            ]


@only_postgresql
def test_a_copy_whose_connection_is_lost_is_begun_again(database: Database) -> None:
    tries: list[int] = []

    def work(connection: Connection) -> None:
        pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
        tries.append(pid)
        if len(tries) == 1:
            with database.writing() as other:
                other.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})
        bulk.insert(connection, etl_queue, [row(number) for number in range(2000)])

    database.run(work)
    assert len(set(tries)) == 2
    assert scalar(database, "SELECT count(*) FROM etl_queue") == 2000


@only_postgresql
def test_a_copy_that_the_server_refuses_is_the_warehouses_fault(database: Database) -> None:
    def work(connection: Connection) -> None:
        connection.execute(text("SET TRANSACTION READ ONLY"))
        bulk.insert(connection, etl_queue, [row(1)])

    with pytest.raises(WarehouseUnavailable, match="read-only"):
        database.run(work)
