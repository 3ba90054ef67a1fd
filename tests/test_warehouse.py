"""Saving: a session is replaced as a whole, written only when it changed, and never half. Inputs are documents."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import IntegrityError

from etl import documents, process, session_queue, warehouse
from etl.database import Database, now
from etl.documents import ERROR_GROUP, TEST_SESSION, Document
from etl.normalize import (
    Drift,
    ErrorGroupRows,
    ResultRow,
    TestSessionRows,
    normalize_error_group,
    normalize_executions,
    normalize_test_session,
)
from etl.simulator import World
from etl.tables import error_group_playwright_tests, error_group_root_cause_analyses, test_sessions
from etl.warehouse import Payload, Saved
from tests.conftest import ACCOUNT, content, rows, scalar

OTHER = "44444444-4444-4444-8444-444444444444"
RUN = "55555555-5555-4555-8555-555555555555"
START = datetime(2026, 11, 1, 12, tzinfo=UTC)
CHILDREN = (
    "test_session_results",
    "check_executions",
    "test_session_error_groups",
    "test_session_result_error_groups",
)


def id_(number: int) -> str:
    return str(UUID(int=number))


SESSION = id_(1)
GROUP = id_(0xE0)


def document(value: Any) -> Document:
    return documents.read(json.dumps(value).encode())


def result(number: int, **more: Any) -> dict[str, Any]:
    return {
        "testSessionResultId": id_(0x1000 + number),
        "checkId": id_(0x2000 + number),
        "checkType": "API",
        "name": f"check {number}",
        "runLocation": "eu-central-1",
        "errorGroupIds": [],
        "resultType": "FINAL",
        "status": "PASSED",
        "hasErrors": False,
        "hasFailures": False,
        "isDegraded": False,
        "aborted": False,
        "responseTime": 12.5,
        "startedAt": "2026-11-01T12:00:01.000Z",
        "stoppedAt": "2026-11-01T12:00:02.500Z",
        **more,
    }


def detail(session: str = SESSION, **more: Any) -> dict[str, Any]:
    found = {
        "testSessionId": session,
        "testSessionLink": f"https://app.checklyhq.com/test-sessions/{session}",
        "name": "nightly",
        "status": "PASSED",
        "errorGroupIds": [],
        "startedAt": "2026-11-01T12:00:00.000Z",
        "stoppedAt": "2026-11-01T12:01:00.000Z",
        "timeElapsed": 60000,
        "results": [result(1), result(2)],
        **more,
    }
    return {name: value for name, value in found.items() if value is not ...}


RUNNING: dict[str, Any] = {"status": "RUNNING", "stoppedAt": None}


def normalized(session: str = SESSION, account_id: str = ACCOUNT, held: Any = None, **more: Any) -> TestSessionRows:
    return normalize_test_session(
        document(detail(session, **more)), test_session_id=session, account_id=account_id, held=held
    )


def save(database: Database, *batch: TestSessionRows, **more: Any) -> Saved:
    return database.run(lambda c: save_in(c, *batch, **more))


def save_in(connection: Connection, *batch: TestSessionRows, lock: bool = True, **more: Any) -> Saved:
    held = warehouse.held_columns(connection, [rows.test_session_id for rows in batch], lock=lock)
    return warehouse.save_test_sessions(connection, batch, held, **{"etl_run_id": RUN, **more})


def ids(database: Database, table: str, column: str = "test_session_result_id") -> list[int]:
    found = rows(database, f"SELECT {column} FROM {table} ORDER BY {column}")
    return [UUID(str(row[column])).int & 0xFFF for row in found]


def execution_numbers(database: Database) -> list[tuple[int, int | None]]:
    sql = "SELECT test_session_result_id, execution_no FROM test_session_results ORDER BY test_session_result_id"
    return [(UUID(str(r["test_session_result_id"])).int & 0xFFF, r["execution_no"]) for r in rows(database, sql)]


@pytest.fixture
def at(warehouse_url: str) -> Iterator[Callable[[float], Database]]:
    """The warehouse as it is seen so many hours from now."""
    opened: dict[float, Database] = {}

    def after(hours: float) -> Database:
        if hours not in opened:
            opened[hours] = Database(warehouse_url, clock_offset=timedelta(hours=hours), connections=2)
        return opened[hours]

    yield after
    for database in opened.values():
        database.close()


# --- a session is replaced as a whole -----------------------------------------------------------------------


def test_a_final_payload_replaces_what_it_no_longer_has(database: Database) -> None:
    save(
        database,
        normalized(
            errorGroupIds=[GROUP, id_(0xE1)],
            results=[result(1, errorGroupIds=[GROUP]), result(2), result(3, errorGroupIds=[id_(0xE1)])],
        ),
    )
    assert ids(database, "test_session_results") == [1, 2, 3]
    assert ids(database, "test_session_result_error_groups") == [1, 3]
    saved = save(database, normalized(errorGroupIds=[id_(0xE2)], results=[result(3), result(4)]))
    assert (saved.changed, saved.unchanged, saved.results) == ({SESSION}, set(), 2)
    assert ids(database, "test_session_results") == [3, 4]
    assert ids(database, "check_executions") == [3, 4]
    assert ids(database, "test_session_error_groups", "error_group_id") == [0xE2]
    assert ids(database, "test_session_result_error_groups") == []
    assert ids(database, "error_groups", "error_group_id") == [0xE0, 0xE1, 0xE2], "groups themselves stay"


def test_after_a_running_payload_nothing_is_deleted(database: Database) -> None:
    first = [result(1, errorGroupIds=[GROUP]), result(2, resultType="PENDING", status="RUNNING")]
    save(database, normalized(**RUNNING, errorGroupIds=[GROUP], results=first))
    assert execution_numbers(database) == [(1, 1), (2, 2)]
    save(database, normalized(**RUNNING, results=[result(2), result(3)]))
    assert execution_numbers(database) == [(1, None), (2, 1), (3, 2)], "1 is kept, outside of any execution"
    assert ids(database, "check_executions") == [2, 3]
    assert ids(database, "test_session_error_groups", "error_group_id") == [0xE0]
    assert ids(database, "test_session_result_error_groups") == [1]
    assert scalar(database, "SELECT status FROM test_session_results WHERE execution_no = 1") == "PASSED"
    save(database, normalized(results=[result(2), result(3)]))
    assert execution_numbers(database) == [(2, 1), (3, 2)]
    assert ids(database, "test_session_error_groups", "error_group_id") == []
    assert ids(database, "test_session_result_error_groups") == []


def test_results_that_are_absent_are_unknown_and_none_are_none(database: Database) -> None:
    save(database, normalized(results=[result(1, errorGroupIds=[GROUP]), result(2)], errorGroupIds=[GROUP]))
    save(database, normalized(name="another", results=..., errorGroupIds=...))
    assert scalar(database, "SELECT name FROM test_sessions") == "another"
    assert ids(database, "test_session_results") == [1, 2]
    assert ids(database, "check_executions") == [1, 2]
    assert ids(database, "test_session_error_groups", "error_group_id") == [0xE0]
    assert ids(database, "test_session_result_error_groups") == [1]
    save(database, normalized(results=[]))
    assert [scalar(database, f"SELECT count(*) FROM {table}") for table in CHILDREN] == [0, 0, 0, 0]


def test_no_results_in_a_running_payload_delete_nothing(database: Database) -> None:
    save(database, normalized(**RUNNING))
    save(database, normalized(**RUNNING, name="another", results=[]))
    assert execution_numbers(database) == [(1, None), (2, None)]
    assert scalar(database, "SELECT count(*) FROM check_executions") == 0


def test_a_running_payload_never_overwrites_a_final_one(database: Database) -> None:
    save(database, normalized())
    before = content(database)
    saved = save(database, normalized(**RUNNING, name="late", results=[result(9)]))
    assert (saved.changed, saved.unchanged) == (set(), {SESSION})
    assert save(database, normalized(**RUNNING, name="late"), rewrite=True).changed == set()
    assert content(database) == before


def test_a_result_id_may_be_in_two_sessions_and_one_session_leaves_the_other_alone(database: Database) -> None:
    save(database, normalized(), normalized(id_(2)))
    save(database, normalized(results=[]))
    assert ids(database, "test_session_results") == [1, 2]
    assert {str(r["test_session_id"]) for r in rows(database, "SELECT * FROM check_executions")} == {id_(2)}


def test_a_whole_account_is_saved_and_saved_again(database: Database, small_world: World) -> None:
    """Real documents, every check type: in any order of batches the same rows."""
    batch = []
    for _, session in small_world.timetable():
        found, entry = small_world.detail(session), small_world.entry(session)
        if found is not None and entry is not None:
            batch.append(
                normalize_test_session(
                    document(found), test_session_id=session, account_id=ACCOUNT, summary=document(entry)
                )
            )
    assert len(batch) > 20
    saved = save(database, *batch)
    assert len(saved.changed) == len(batch)
    before = content(database)
    assert len(before["test_session_results"]) == saved.results > 100
    assert save(database, *reversed(batch)).changed == set()
    assert len(save(database, *reversed(batch), rewrite=True).changed) == len(batch)
    assert content(database) == before


# --- only what changed is written ---------------------------------------------------------------------------


def stamps(database: Database) -> dict[str, Any]:
    with database.reading() as connection:
        return dict(connection.execute(test_sessions.select()).mappings().one())


def test_an_unchanged_session_is_not_written(at: Callable[[float], Database]) -> None:
    save(at(0), normalized(errorGroupIds=[GROUP]))
    before = stamps(at(0))
    with at(1).writing() as connection:
        count = "SELECT total_changes()" if at(1).is_sqlite else "SELECT 0"
        changes = connection.execute(text(count)).scalar_one()
        saved = save_in(connection, normalized(errorGroupIds=[GROUP]), lock=False, etl_run_id=None)
        assert connection.execute(text(count)).scalar_one() == changes
        if not at(1).is_sqlite:
            assert connection.execute(text("SELECT pg_current_xact_id_if_assigned()")).scalar_one() is None
    assert (saved.changed, saved.unchanged, saved.results) == (set(), {SESSION}, 0)
    assert stamps(at(0)) == before


@pytest.mark.parametrize("changed", ["payload_sha256", "summary_sha256"])
def test_one_changed_hash_rewrites_the_session(at: Callable[[float], Database], changed: str) -> None:
    rows_ = normalized(held={"summary_sha256": "a" * 64})
    save(at(0), rows_)
    first = stamps(at(0))
    assert save(at(1), rows_).unchanged == {SESSION}
    rows_.test_session[changed] = "b" * 64
    assert save(at(2), rows_).changed == {SESSION}
    second = stamps(at(0))
    assert second["first_exported_at"] == first["first_exported_at"] == first["exported_at"]
    assert second["exported_at"] - first["exported_at"] > timedelta(hours=1.9)
    assert second["etl_run_id"] == RUN


def test_rewriting_writes_what_is_unchanged_and_keeps_the_first_export(at: Callable[[float], Database]) -> None:
    save(at(0), normalized())
    first = stamps(at(0))
    assert save(at(3), normalized(), rewrite=True).changed == {SESSION}
    again = stamps(at(0))
    assert again["first_exported_at"] == first["first_exported_at"]
    assert again["exported_at"] > first["exported_at"]


def test_an_accepted_entry_changes_its_hash_and_says_who_wrote_it(at: Callable[[float], Database]) -> None:
    save(at(0), normalized(), normalized(id_(2)))
    before = rows(at(0), "SELECT * FROM test_sessions ORDER BY test_session_id")
    at(1).run(lambda c: warehouse.accept_summary(c, {SESSION: "c" * 64, id_(99): "d" * 64}, etl_run_id=id_(5)))
    first, second = rows(at(0), "SELECT * FROM test_sessions ORDER BY test_session_id")
    assert second == before[1]
    assert first.pop("summary_sha256") == "c" * 64
    exported_at = first.pop("exported_at")
    assert exported_at != before[0]["exported_at"]
    assert str(first.pop("etl_run_id")) == id_(5), "the run that last wrote it"
    assert first == {k: v for k, v in before[0].items() if k in first}
    assert len(first) == len(before[0]) - 3
    at(2).run(lambda c: warehouse.accept_summary(c, {SESSION: "c" * 64}, etl_run_id=id_(6)))
    found = "SELECT exported_at FROM test_sessions ORDER BY test_session_id LIMIT 1"
    assert scalar(at(0), found) == exported_at


def test_executions_follow_the_session_when_a_payload_does_not_tell_its_results(database: Database) -> None:
    save(database, normalized(**RUNNING, results=[result(1), result(2)]))
    save(database, normalized(**RUNNING, results=[result(2)]))
    changed = normalized(results=..., metadata={"branchName": "main"})
    save(database, changed)

    def follow(connection: Connection) -> None:
        held = warehouse.held_results(connection, SESSION)
        executions = normalize_executions([ResultRow(**row) for row in held], changed.test_session)
        assert warehouse.replace_executions(connection, SESSION, executions, {})
        assert not warehouse.replace_executions(connection, SESSION, executions, {}), "they stand there already"

    database.run(follow)
    (execution,) = rows(database, "SELECT branch_name, check_name FROM check_executions")
    assert execution == {"branch_name": "main", "check_name": "check 2"}
    assert execution_numbers(database) == [(1, None), (2, 1)]


# --- keys ---------------------------------------------------------------------------------------------------


def test_deleting_a_session_takes_its_children_along_and_leaves_groups(database: Database) -> None:
    for session in (SESSION, id_(2)):
        save(database, normalized(session, errorGroupIds=[GROUP], results=[result(1, errorGroupIds=[GROUP])]))
    with database.writing() as connection:
        connection.execute(text("DELETE FROM test_sessions WHERE test_session_id = :id"), {"id": SESSION})
    assert [scalar(database, f"SELECT count(*) FROM {table}") for table in CHILDREN] == [1, 1, 1, 1]
    with pytest.raises(IntegrityError), database.writing() as connection:
        connection.execute(text("DELETE FROM error_groups"))


@pytest.mark.parametrize("table", CHILDREN[2:])
@pytest.mark.parametrize("missing", ["test_session_id", "error_group_id"])
def test_a_link_needs_both_its_ends(database: Database, table: str, missing: str) -> None:
    save(database, normalized(errorGroupIds=[GROUP]))
    values = {"test_session_id": SESSION, "error_group_id": GROUP, missing: id_(0xBAD)}
    if table == "test_session_result_error_groups":
        values["test_session_result_id"] = id_(0x1001)
    columns = ", ".join(values)
    marks = ", ".join(f":{name}" for name in values)
    with pytest.raises(IntegrityError), database.writing() as connection:
        connection.execute(text(f"INSERT INTO {table} ({columns}) VALUES ({marks})"), values)


def test_a_group_known_by_id_belongs_to_the_account_of_its_first_session(database: Database) -> None:
    save(
        database,
        normalized(id_(2), OTHER, errorGroupIds=[GROUP, id_(0xE1)]),
        normalized(SESSION, ACCOUNT, results=[result(1, errorGroupIds=[GROUP])]),
    )
    save(database, normalized(id_(3), OTHER, errorGroupIds=[GROUP]))
    found = rows(database, "SELECT * FROM error_groups ORDER BY error_group_id")
    assert [str(row["account_id"]) for row in found] == [ACCOUNT, OTHER]
    assert all(row["fetched_at"] is None and row["raw_error_message"] is None for row in found)


def test_a_known_group_is_not_touched_by_another_link(database: Database) -> None:
    save_group(database, group())
    save(database, normalized(id_(3), OTHER, errorGroupIds=[GROUP]))
    (found,) = rows(database, "SELECT * FROM error_groups")
    assert found["raw_error_message"] == "raw"
    assert found["fetched_at"] is not None


# --- rows and ack in one transaction ------------------------------------------------------------------------


def test_rows_payloads_drift_and_ack_commit_together_or_not_at_all(database: Database) -> None:
    database.run(lambda c: session_queue.enqueue(c, [SESSION]))
    (claim,) = database.run(
        lambda c: session_queue.claim(c, account_id=ACCOUNT, limit=1, lease=timedelta(minutes=5), is_default=True)
    )
    drift = Drift()
    drift.note(TEST_SESSION, "$.new", "1")

    def work(connection: Connection) -> None:
        assert session_queue.lock(connection, [claim]) == {SESSION}
        save_in(connection, normalized(errorGroupIds=[GROUP]))
        warehouse.save_payloads(connection, [payload(TEST_SESSION, SESSION, b"{}")])
        warehouse.save_drift(connection, [drift])
        session_queue.ack(connection, [SESSION])

    before = content(database)

    def fails(connection: Connection) -> None:
        work(connection)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        database.run(fails)
    assert content(database) == before
    assert scalar(database, "SELECT count(*) FROM etl_drift") == 0
    database.run(work)
    assert [len(content(database)[name]) for name in ("etl_queue", "test_sessions", "etl_payloads")] == [0, 1, 1]


def test_one_bad_row_takes_its_whole_batch_back(database: Database) -> None:
    bad = normalized(id_(2))
    assert bad.results is not None
    bad.results[1].position = None  # type: ignore[assignment]
    with pytest.raises(IntegrityError):
        save(database, normalized(), bad)
    assert scalar(database, "SELECT count(*) FROM test_sessions") == 0


def test_rows_that_differ_in_their_columns_are_a_bug_and_not_a_null(database: Database) -> None:
    bad = normalized(id_(2))
    del bad.test_session["link"]
    with pytest.raises(AssertionError, match="test_sessions"):
        save(database, normalized(), bad)


# --- values at the edges ------------------------------------------------------------------------------------


def test_names_of_ten_thousand_characters_are_stored_in_full(database: Database) -> None:
    # Of random characters: PostgreSQL would compress repeated ones into an index entry.
    import random

    chosen = random.Random(1)
    long = "".join(chr(chosen.randint(0x4E00, 0x9FFF)) for _ in range(10_000))
    save(
        database,
        normalized(
            name=long,
            metadata={"branchName": long, "environment": long, "commitMessage": long, "repoUrl": long},
            results=[result(1, checkId=None, name=long, runLocation=long, checkType=long)],
        ),
    )
    (found,) = rows(database, "SELECT branch_name, environment, check_key, check_name FROM check_executions")
    assert found == {"branch_name": long, "environment": long, "check_key": f"-:{long}:{long}", "check_name": long}
    assert scalar(database, "SELECT check_name FROM v_checks") == long
    save_group(database, group(environments=[long, long[:9000] + "x", "é"], errorHash=long, rawErrorMessage=long))
    stored = [row["environment"] for row in rows(database, "SELECT environment FROM error_group_environments")]
    assert sorted(stored) == sorted([long[:500], "é"])
    drift = Drift()
    drift.note(TEST_SESSION, "$." + long, long)
    database.run(lambda c: warehouse.save_drift(c, [drift]))


def test_text_that_no_database_holds_is_replaced_in_columns(database: Database) -> None:
    body = json.dumps(detail(name="a\x00b\ud800c")).encode()
    read = documents.read(body)
    save(database, normalize_test_session(read, test_session_id=SESSION, account_id=ACCOUNT))
    assert scalar(database, "SELECT name FROM test_sessions") == "a\ufffdb\ufffdc"


# --- payloads -----------------------------------------------------------------------------------------------


def payload(kind: str, document_id: str, body: bytes, account_id: str | None = ACCOUNT) -> Payload:
    return Payload(kind, document_id, account_id, None, documents.read(body))


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":"\\u0000"}',
        b'{"a":"\\ud800", "b":"\\uDFFF"}',
        b' {\n "a" : 1.0e3,\t"a":"\xc3\xa9 \xf0\x9f\x98\x80" } \n',
        b"[1, 2]",
        b'"' + b"x" * 200_000 + b'"',
        b'"%s %(a)s :b ? $1"',
    ],
)
def test_a_payload_comes_back_as_received(database: Database, body: bytes) -> None:
    database.run(lambda c: warehouse.save_payloads(c, [payload(TEST_SESSION, SESSION, body)]))
    with database.reading() as connection:
        found, account_id = warehouse.load_payloads(connection, TEST_SESSION, [SESSION, id_(2)])[SESSION]
        assert warehouse.load_payloads(connection, ERROR_GROUP, [SESSION]) == {}
    assert found.body == body
    assert found.sha256 == documents.read(body).sha256 == scalar(database, "SELECT sha256 FROM etl_payloads")
    assert account_id == ACCOUNT


def test_the_latest_payload_of_a_kind_and_id_is_kept(database: Database) -> None:
    database.run(lambda c: warehouse.save_payloads(c, [payload(TEST_SESSION, SESSION, b"1")]))
    database.run(
        lambda c: warehouse.save_payloads(
            c, [payload(TEST_SESSION, SESSION, b"2", OTHER), payload(ERROR_GROUP, SESSION, b"3")]
        )
    )
    found = rows(database, "SELECT kind, body, account_id FROM etl_payloads ORDER BY kind")
    assert [(row["kind"], row["body"], str(row["account_id"])) for row in found] == [
        ("error_group", "3", ACCOUNT),
        ("test_session", "2", OTHER),
    ]
    database.run(lambda c: warehouse.save_payloads(c, []))


def test_payloads_are_walked_in_order_and_in_parts(database: Database) -> None:
    many = [id_(number * 7919 % 1201) for number in range(1200)]
    database.run(lambda c: warehouse.save_payloads(c, [payload(TEST_SESSION, one, b"1") for one in many]))
    database.run(lambda c: warehouse.save_payloads(c, [payload(ERROR_GROUP, id_(5000), b"1")]))
    seen: list[str] = []
    with database.reading() as connection:
        while some := warehouse.payload_ids(connection, TEST_SESSION, after=seen[-1] if seen else None, limit=500):
            seen += some
        assert warehouse.count_payloads(connection, TEST_SESSION) == 1200
    assert seen == sorted(many)
    with database.writing() as connection:
        assert len(warehouse.load_payloads(connection, TEST_SESSION, many, lock=True)) == 1200


# --- error groups -------------------------------------------------------------------------------------------


def group(number: int = 0xE0, **more: Any) -> ErrorGroupRows:
    value = {
        "id": id_(number),
        "projectId": id_(7),
        "environments": ["staging", "production"],
        "errorHash": "h",
        "rawErrorMessage": "raw",
        "cleanedErrorMessage": "cleaned",
        "firstSeen": "2026-11-01T00:00:00.000Z",
        "lastSeen": "2026-11-02T00:00:00.000Z",
        "archivedUntilNextEvent": False,
        "pwtMetadata": [{"projectName": "chromium", "specId": 5, "testFile": "a.ts", "suitePath": ["a", "é"]}],
        "rootCauseAnalyses": [
            {"id": id_(8), "analysis": {"classification": "BUG", "codeFix": ["x"], "n": None}, "durationMs": 1.5}
        ],
        **more,
    }
    return normalize_error_group(document(value), error_group_id=id_(number))


def save_group(
    database: Database, *batch: ErrorGroupRows, account_id: str = ACCOUNT, is_fetch: bool = True, ago: float = 0
) -> None:
    """As asked for `ago` hours ago."""

    def save(connection: Connection) -> None:
        asked_at = now(connection) - timedelta(hours=ago) if is_fetch else None
        warehouse.save_error_groups(connection, batch, account_id=account_id, asked_at=asked_at)

    database.run(save)


def test_an_error_group_is_replaced_as_a_whole_and_keeps_its_account(database: Database) -> None:
    save_group(database, group(), group(0xE1))
    save_group(
        database,
        group(environments=["production"], pwtMetadata=None, rootCauseAnalyses=[{}, {}], cleanedErrorMessage=None),
        account_id=OTHER,
    )
    found = rows(database, "SELECT * FROM error_groups ORDER BY error_group_id")
    assert [str(row["account_id"]) for row in found] == [ACCOUNT, ACCOUNT]
    assert found[0]["cleaned_error_message"] is None
    assert found[0]["fetched_at"] is not None
    children = ("error_group_environments", "error_group_playwright_tests", "error_group_root_cause_analyses")
    of_first = [scalar(database, f"SELECT count(*) FROM {t} WHERE error_group_id = :id", id=GROUP) for t in children]
    of_second = [
        scalar(database, f"SELECT count(*) FROM {t} WHERE error_group_id = :id", id=id_(0xE1)) for t in children
    ]
    assert (of_first, of_second) == ([1, 0, 2], [2, 1, 1])


def test_json_of_an_error_group_is_json(database: Database) -> None:
    save_group(database, group())
    with database.reading() as connection:
        test = connection.execute(error_group_playwright_tests.select()).one()
        analysis = connection.execute(error_group_root_cause_analyses.select()).one()
    assert test.suite_path == ["a", "é"]
    assert analysis.analysis == {"classification": "BUG", "codeFix": ["x"], "n": None}
    assert (test.spec_id, analysis.classification, analysis.code_fix) == ("5", "BUG", '["x"]')
    extract = "->> 'classification'"
    assert scalar(database, f"SELECT analysis {extract} FROM error_group_root_cause_analyses") == "BUG"
    save_group(database, group(rootCauseAnalyses=[{}], pwtMetadata=[{}]))
    assert scalar(database, "SELECT analysis IS NULL FROM error_group_root_cause_analyses") in (True, 1)
    assert scalar(database, "SELECT suite_path IS NULL FROM error_group_playwright_tests") in (True, 1)


def test_saving_from_a_payload_leaves_the_time_of_the_fetch(at: Callable[[float], Database]) -> None:
    save_group(at(0), group())
    before = scalar(at(0), "SELECT fetched_at FROM error_groups")
    save_group(at(5), group(rawErrorMessage="x"), is_fetch=False)
    assert scalar(at(0), "SELECT fetched_at FROM error_groups") == before
    assert scalar(at(0), "SELECT raw_error_message FROM error_groups") == "x"
    save_group(at(5), group())
    assert scalar(at(0), "SELECT fetched_at FROM error_groups") != before


def test_a_group_that_is_gone_keeps_what_we_know_and_is_not_asked_for_again(database: Database) -> None:
    save(database, normalized(errorGroupIds=[GROUP]))
    save_group(database, group(0xE1))
    assert to_fetch(database) == [0xE0]
    database.run(lambda c: warehouse.error_groups_gone(c, [id_(0xE1), GROUP]))
    assert to_fetch(database) == []
    found = rows(database, "SELECT raw_error_message, fetched_at FROM error_groups ORDER BY error_group_id")
    assert [row["raw_error_message"] for row in found] == [None, "raw"]
    assert all(row["fetched_at"] is not None for row in found)


def to_fetch(database: Database, account_id: str = ACCOUNT) -> list[int]:
    with database.reading() as connection:
        return [UUID(one).int for one in warehouse.error_groups_to_fetch(connection, account_id, is_default=False)]


def test_a_group_is_read_again_when_a_newer_session_refers_to_it_or_its_copy_is_a_day_old(
    at: Callable[[float], Database],
) -> None:
    def refer(hours: float, session: int, *groups: int, day: int = 2, **more: Any) -> None:
        ids = [id_(group) for group in groups]
        started = f"2026-11-{day:02}T00:00:00.000Z"
        save(at(hours), normalized(id_(session), errorGroupIds=ids, startedAt=started), **more)

    groups = [group(0xE1), group(0xE2), group(0xE3)]
    save_group(at(0), *groups)
    refer(0, 1, 0xE0)
    save(at(0), normalized(id_(2), OTHER, errorGroupIds=[id_(0xE9)]))
    assert to_fetch(at(0)) == [0xE0], "of this account, known by id only"
    assert to_fetch(at(0), OTHER) == [0xE9]
    refer(0, 3, 0xE1)
    assert to_fetch(at(0)) == [0xE0], "not newer than our copy has seen"
    refer(0, 4, 0xE2, day=3)
    assert to_fetch(at(0)) == [0xE0, 0xE2]
    assert to_fetch(at(99)) == [0xE0, 0xE2], "for as long as it takes"
    save_group(at(1), group(0xE2), ago=2)
    assert to_fetch(at(1)) == [0xE0, 0xE2], "it was asked for before that session was saved"
    save_group(at(1), group(0xE2), is_fetch=False)
    assert to_fetch(at(1)) == [0xE0, 0xE2], "a replay makes nothing fresh"
    save_group(at(1), group(0xE2))
    assert to_fetch(at(1)) == [0xE0]
    refer(24.1, 5, 0xE1, 0xE2)
    assert to_fetch(at(24)) == [0xE0, 0xE1], "a copy that is a day old, where a session refers to it"
    at(24.2).run(lambda c: warehouse.error_groups_gone(c, [id_(0xE0), id_(0xE1)]))
    assert to_fetch(at(24)) == []
    refer(25, 6, 0xE0, day=9)
    assert to_fetch(at(25)) == [], "gone is gone"
    refer(49, 7, 0xE0, day=9)
    assert to_fetch(at(49)) == [0xE0]
    refer(99, 7, 0xE1, 0xE2, 0xE3, day=10, rewrite=True)
    assert to_fetch(at(99)) == [0xE0], "a replay wants nothing"
    with at(0).reading() as connection:
        assert warehouse.count_error_groups(connection, ACCOUNT) == 4


# --- drift --------------------------------------------------------------------------------------------------


def test_drift_adds_up(at: Callable[[float], Database]) -> None:
    def note(hours: float, *examples: str) -> None:
        drifts = []
        for example in examples:
            drift = Drift()
            drift.note(TEST_SESSION, "$.new", example)
            drift.note(TEST_SESSION, "$.new", "zzz: never shown")
            drifts.append(drift)
        at(hours).run(lambda c: warehouse.save_drift(c, drifts))

    note(0, "one")
    note(1, "two", "three")
    at(2).run(lambda c: warehouse.save_drift(c, []))
    at(2).run(lambda c: warehouse.save_drift(c, [Drift()]))
    with at(0).reading() as connection:
        (found,) = warehouse.drift(connection)
    assert (found["kind"], found["json_path"], found["occurrences"]) == ("test_session", "$.new", 6)
    assert found["example"] == "one", "the least, whoever came first"
    assert timedelta(minutes=59) < found["last_seen_at"] - found["first_seen_at"] < timedelta(minutes=61)


def test_names_that_are_new_every_time_do_not_fill_the_table_of_drift(
    at: Callable[[float], Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warehouse, "DRIFT_KEPT", 50)
    for number in range(3):
        drift = Drift()
        for field_ in range(1000):
            drift.note(TEST_SESSION, f"$.field{number}_{field_}", "1")
        assert len(drift.found) == 100
        at(number).run(lambda c, drift=drift: warehouse.save_drift(c, [drift]))  # type: ignore[misc]
    paths = [row["json_path"] for row in rows(at(0), "SELECT json_path FROM etl_drift")]
    assert len(paths) == 50
    assert all(path.startswith("$.field2_") for path in paths), "the newest stay"


# --- runs ---------------------------------------------------------------------------------------------------


def start(database: Database) -> str:
    return database.run(lambda c: warehouse.start_run(c, "sync"))


def outcomes(database: Database) -> list[Any]:
    with database.reading() as connection:
        return [run["outcome"] for run in reversed(warehouse.last_runs(connection, 100))]


def test_a_run_counts_and_ends(at: Callable[[float], Database]) -> None:
    run = start(at(0))
    (found,) = rows(at(0), "SELECT * FROM etl_runs")
    assert [found[name] for name in warehouse.COUNTERS] == [0] * len(warehouse.COUNTERS)
    assert (found["command"], found["outcome"], found["finished_at"]) == ("sync", None, None)
    counters = {name: number for number, name in enumerate(warehouse.COUNTERS, 1)} | {"throttled_ms": 2**40}
    saved = {"test_sessions_saved": 2, "results_saved": 30}
    for _ in range(2):  # two writers of one run
        at(1).run(lambda c: warehouse.add_to_run(c, run, saved))
    at(1).run(lambda c: warehouse.add_to_run(c, run, {}))
    (counted,) = rows(at(0), "SELECT * FROM etl_runs")
    assert {name: counted[name] for name in warehouse.COUNTERS if counted[name]} == {
        "test_sessions_saved": 4,
        "results_saved": 60,
    }
    assert (counted["outcome"], counted["heartbeat_at"] > counted["started_at"]) == (None, True)
    at(2).run(lambda c: warehouse.end_run(c, run, counters, outcome="partial", error="é"))
    with at(0).reading() as connection:
        (ended,) = warehouse.last_runs(connection)
    assert {name: ended[name] for name in warehouse.COUNTERS} == counters
    assert (ended["etl_run_id"], ended["outcome"], ended["error"]) == (run, "partial", "é")
    assert ended["finished_at"] == ended["heartbeat_at"] > ended["started_at"] + timedelta(hours=1.9)


def test_the_newest_thousand_runs_are_kept(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warehouse, "RUNS_KEPT", 5)
    running = start(database)
    for _ in range(12):
        ended = start(database)
        database.run(lambda c, run=ended: warehouse.end_run(c, run, {}, outcome="ok", error=None))  # type: ignore[misc]
    newest = start(database)
    kept = {str(row["etl_run_id"]) for row in rows(database, "SELECT etl_run_id FROM etl_runs")}
    assert len(kept) == 6
    assert {running, newest} < kept, "one that goes on is never forgotten"


def test_a_run_whose_process_has_died_is_interrupted_and_a_living_one_is_not(database: Database) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    dead, alive, ended = start(database), start(database), start(database)
    database.run(lambda c: warehouse.end_run(c, ended, {}, outcome="ok", error=None))
    host = process.NAME.rpartition("/")[0]
    with database.writing() as connection:
        name = text("UPDATE etl_runs SET process = :name WHERE etl_run_id IN (:dead, :ended)")
        connection.execute(name, {"name": f"{host}/{gone.pid}", "dead": dead, "ended": ended})
    start(database)
    found = {str(row["etl_run_id"]): row for row in rows(database, "SELECT * FROM etl_runs")}
    assert found[dead]["outcome"] == "interrupted"
    assert found[dead]["finished_at"] == found[dead]["heartbeat_at"]
    assert found[dead]["error"]
    assert (found[alive]["outcome"], found[ended]["outcome"]) == (None, "ok")


def test_a_run_elsewhere_that_is_silent_for_a_day_is_interrupted(at: Callable[[float], Database]) -> None:
    start(at(0))
    with at(0).writing() as connection:
        connection.execute(text("UPDATE etl_runs SET process = 'elsewhere.invalid/1'"))
    start(at(23))
    assert outcomes(at(0)) == [None, None]
    start(at(24.1))
    assert outcomes(at(0)) == ["interrupted", None, None]


# --- what `status` shows ------------------------------------------------------------------------------------


def test_freshness_is_of_typed_values(database: Database) -> None:
    save(database, normalized())
    database.run(lambda c: session_queue.enqueue(c, [id_(2)]))
    with database.reading() as connection:
        found = {row["account_id"]: row for row in warehouse.freshness(connection)}
    assert set(found) == {ACCOUNT, None}
    assert found[ACCOUNT]["newest_started_at"] == START
    assert (found[ACCOUNT]["due"], found[None]["due"]) == (0, 1)
    assert isinstance(found[None]["oldest_due_at"], datetime)
    assert found[None]["oldest_due_at"].tzinfo is not None


@pytest.mark.parametrize(
    ("hours", "said"),
    [(47.9, "in 47.9 hours"), (48, "in 2.0 days"), (0, "since 0.0 hours"), (-1251.5, "since 52.1 days")],
)
def test_a_loss_that_is_far_away_is_told_in_days(hours: float, said: str) -> None:
    assert warehouse.when_lost(hours) == said


def test_stale_sessions_are_running_ones_that_nobody_will_read_again(database: Database) -> None:
    save(
        database,
        normalized(),
        normalized(id_(2), **RUNNING),
        normalized(id_(3), **RUNNING, startedAt="2026-11-02T00:00:00Z"),
        normalized(id_(4), **RUNNING),
    )
    database.run(lambda c: session_queue.enqueue(c, [id_(4)]))
    with database.reading() as connection:
        found = warehouse.stale_test_sessions(connection)
        assert len(warehouse.stale_test_sessions(connection, limit=1)) == 1
        assert warehouse.count_test_sessions(connection) == 4
    assert [row["test_session_id"] for row in found] == [id_(3), id_(2)], "the newest first"
    assert found[1] | {"exported_at": None} == {
        "test_session_id": id_(2),
        "name": "nightly",
        "status": "RUNNING",
        "started_at": START,
        "exported_at": None,
    }


def test_the_newest_runs_and_drift_come_first(at: Callable[[float], Database]) -> None:
    for hours in (0, 1, 2):
        start(at(hours))
        drift = Drift()
        drift.note(TEST_SESSION, f"$.{hours}", "x")
        at(hours).run(partial(warehouse.save_drift, drifts=[drift]))
    with at(0).reading() as connection:
        runs = warehouse.last_runs(connection, 2)
        assert [row["json_path"] for row in warehouse.drift(connection, 2)] == ["$.2", "$.1"]
        moment = now(connection)
    assert [round((run["started_at"] - moment) / timedelta(hours=1)) for run in runs] == [2, 1]
