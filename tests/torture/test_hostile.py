"""Documents that nobody should ever send: each ends as clean rows or as a clear dead letter, on both engines alike.

Never a traceback, never a pass that fails as a whole, never a row that is queued or leased for ever; and memory
stays where a small container can bear it, eight of the largest documents at once included.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from etl import config, pipeline, session_queue
from etl.database import Database
from etl.pipeline import Etl
from tests.conftest import ENGINES, Program, content, environment, rows, scalar
from tests.documents import detail, entry, error_group, result, uuid
from tests.harness import IS_AT_LENGTH, TIMES, Content, make_due, same_rows
from tests.torture.hostile import (
    DEAD,
    NOT_JSON,
    ROWS,
    VALUES,
    Fuzzed,
    Raw,
    RawCheckly,
    bomb,
    encode,
    fuzzed,
    fuzzed_group,
    gzipped,
    large,
    padded,
)

MB = 1_000_000
# Dead at once, and nobody waits for a second look: what is in question here is the end of each document.
SETTINGS = {"CHECKLY_ETL_EXPORT__MAX_ATTEMPTS": "1", "CHECKLY_ETL_EXPORT__LOOKBACK": "3000d"}
NO_GROUPS = {"CHECKLY_ETL_EXPORT__ERROR_GROUPS": "false"}  # 10,000 of one session would cost 10,000 calls
VIEWS = ("v_test_session_summary", "v_checks", "v_freshness")
PLACE = re.compile(r"\$\S*: \S")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("etl.checkly.retry.FIRST_BACKOFF", 0.001)


@pytest.fixture
def checkly() -> Iterator[RawCheckly]:
    with RawCheckly() as serving:
        yield serving


@contextlib.contextmanager
def etl_on(checkly: RawCheckly, url: str, **env: str) -> Iterator[Etl]:
    """The pipeline over a warehouse."""
    settings = config.load(Path(os.devnull), {**environment(checkly.url, url), **SETTINGS, **env})
    etl = Etl(settings, Database(url))
    try:
        yield etl
    finally:
        etl.database.close()


def enqueue(database: Database, *ids: str) -> None:
    database.run(lambda c: session_queue.enqueue(c, ids))


def letters(database: Database) -> dict[str, dict[str, Any]]:
    """The rows of the queue."""
    found = rows(database, "SELECT test_session_id, state, attempts, source, error_kind, last_error FROM etl_queue")
    return {str(row.pop("test_session_id")): row for row in found}


# --- every field at every wrong type, and whatever else -----------------------------------------------------------


@pytest.mark.parametrize("part", range(max(1, TIMES // 5)))
def test_each_fuzzed_document_ends_as_rows_or_as_a_clear_dead_letter_on_both_engines(
    part: int,
    new_warehouse: Callable[[str], str],
    checkly: RawCheckly,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """200 documents in the short form, 10,000 in the long one."""
    caplog.set_level(logging.DEBUG)
    documents = list(fuzzed(part, 1000 if IS_AT_LENGTH else 200))
    for item in documents:
        checkly.details[item.test_session_id] = item.body
        if item.entry is not None:
            checkly.entries.append(item.entry)
    ends: list[tuple[Content, dict[str, Any], list[Any]]] = []
    for engine in ENGINES:
        with etl_on(checkly, new_warehouse(engine), **NO_GROUPS) as etl:
            enqueue(etl.database, *(item.test_session_id for item in documents))
            drain_to_the_end(etl)
            found = {str(row["test_session_id"]) for row in rows(etl.database, "SELECT * FROM test_sessions")}
            queue = letters(etl.database)
            problems = [problem for item in documents if (problem := wrong_end(item, found, queue))]
            assert problems == []
            before = without_queue(etl.database)
            outcome = pipeline.replay(etl)
            assert outcome.bug is None
            assert without_queue(etl.database) == before, "a replay makes the same rows"
            ends.append((before, queue, read_views(etl.database)))
    (sqlite, sqlite_queue, sqlite_views), (postgresql, postgresql_queue, postgresql_views) = ends
    same_rows(sqlite, postgresql)
    assert sqlite_queue == postgresql_queue
    assert sqlite_views == postgresql_views
    assert "Traceback" not in caplog.text
    assert "bug" not in caplog.text


def test_an_answer_of_another_session_that_came_slowly_is_asked_for_again(
    warehouse_url: str, checkly: RawCheckly, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A short retry that does not fit into the time-out is no reason to bury a session unheard."""
    monkeypatch.setattr("etl.checkly.retry.FIRST_BACKOFF", 1.0)
    answers = [encode(detail(2)), encode(detail(1))]

    def slowly() -> bytes:
        if len(answers) == 2:
            time.sleep(1.6)  # of two seconds: no second try begins in time
        return answers.pop(0) if len(answers) > 1 else answers[0]

    checkly.details[uuid(1)] = slowly
    slow = {"CHECKLY_ETL_CHECKLY__TIMEOUT": "2s", "CHECKLY_ETL_EXPORT__MAX_ATTEMPTS": "8"}
    with etl_on(checkly, warehouse_url, CHECKLY_ETL_EXPORT__DISCOVER="false", **slow) as etl:
        enqueue(etl.database, uuid(1))
        for _ in range(2):
            assert pipeline.sync(etl).exit_code == 0
            make_due(etl.database)
        assert scalar(etl.database, "SELECT count(*) FROM test_sessions") == 1


def drain_to_the_end(etl: Etl) -> None:
    """Passes until nothing is due; none may fail as a whole."""
    for _ in range(5):
        outcome = pipeline.sync(etl)
        assert outcome.bug is None
        assert outcome.exit_code in (0, 1), outcome.error
        waiting = "SELECT count(*) FROM etl_queue WHERE state = 'leased' OR attempts > 0 AND state <> 'dead'"
        left = scalar(etl.database, waiting)
        if not left:
            return
    pytest.fail(f"{left} rows of the queue never end")


def wrong_end(item: Fuzzed, found: set[str], queue: dict[str, dict[str, Any]]) -> str | None:
    """What is wrong with how a document ended, if anything."""
    id_, letter = item.test_session_id, queue.get(item.test_session_id)
    end = f"{id_}: {item.what}: rows {id_ in found}, {letter}"
    if id_ in found:
        is_good = letter is None or (letter["state"], letter["attempts"], letter["error_kind"]) == ("queued", 0, None)
        return None if is_good and item.verdict not in (DEAD, NOT_JSON) else end
    if letter is None or letter["state"] != "dead" or item.verdict == ROWS:
        return end
    if letter["error_kind"] == "payload":
        says = bool(PLACE.match(letter["last_error"])) and len(letter["last_error"]) <= 1000
        return None if says and item.verdict != NOT_JSON else end
    # JSON that does not bear the id that was asked for is a failed call, like no JSON at all.
    is_another = "not what was asked for" in letter["last_error"]
    return None if letter["error_kind"] == "unreadable" and (is_another or item.verdict != DEAD) else end


def without_queue(database: Database) -> Content:
    return {table: found for table, found in content(database).items() if table != "etl_queue"}


def read_views(database: Database) -> list[Any]:
    """What analysts read, and what `status` does: no row may break a query."""
    found = []
    for view in VIEWS:
        found_rows = rows(database, f"SELECT * FROM {view}")
        read = [{name: _same(value) for name, value in row.items()} for row in found_rows]
        if view == "v_freshness":
            for row in read:
                del row["last_success_at"], row["hours_until_loss"], row["oldest_due_at"]
        found.append(sorted(read, key=repr))
    return found


def _same(value: Any) -> Any:
    """A value as both engines could tell it."""
    if isinstance(value, bool):
        return int(value)
    if hasattr(value, "isoformat"):
        value = value.replace(tzinfo=None).isoformat(" ", "microseconds")
    return float(value) if isinstance(value, int) else str(value) if value is not None else None


def test_every_field_takes_every_wrong_type_without_a_traceback(
    warehouse_url: str, checkly: RawCheckly, caplog: pytest.LogCaptureFixture
) -> None:
    """Not by chance: each field of a session, of its metadata and of a result with each value of `VALUES`."""
    good = [name for name, (_, type_) in VALUES.items() if type_ != "not json"]
    wrong = []
    for field in detail(0):
        wrong += [{**detail(0), field: VALUES[name][0]} for name in good]
    for field in result(0):
        wrong += [{**detail(0), "results": [{**result(1), field: VALUES[name][0]}]} for name in good]
    for field in ("environment", "branchName", "commitId", "github"):
        wrong += [{**detail(0), "metadata": {field: VALUES[name][0]}} for name in good]
    for field in ("reporting", "runId", "runAttempt", "sha"):
        wrong += [{**detail(0), "metadata": {"github": {field: VALUES[name][0]}}} for name in good]
    if TIMES < 10:
        wrong = wrong[::4]
    for number, document in enumerate(wrong, 1):
        if document["testSessionId"] == uuid(0):
            document["testSessionId"] = uuid(number)
        checkly.details[uuid(number)] = encode(document)
    with etl_on(checkly, warehouse_url, CHECKLY_ETL_EXPORT__DISCOVER="false") as etl:
        enqueue(etl.database, *checkly.details)
        drain_to_the_end(etl)
        queue = letters(etl.database)
        kinds = Counter((letter["state"], letter["error_kind"]) for letter in queue.values())
        assert set(kinds) <= {("dead", "payload"), ("queued", None)}
        for letter in queue.values():
            assert letter["state"] == "queued" or PLACE.match(letter["last_error"]), letter
        saved = scalar(etl.database, "SELECT count(*) FROM test_sessions")
        assert saved + kinds["dead", "payload"] == len(wrong)
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("engine_name", ENGINES, indirect=True)
def test_the_commands_show_hostile_rows_and_letters(
    program: Program, checkly: RawCheckly, database: Database
) -> None:
    for item in fuzzed(7, 150):
        checkly.details[item.test_session_id] = item.body
    program.env |= {"CHECKLY_API_URL": checkly.url, **SETTINGS, **NO_GROUPS}
    assert program("enqueue", *checkly.details).code == 0
    assert program("sync", "-v").code == 1
    for command in (("status",), ("dead", "list"), ("dead", "show", *_dead(database)[:3]), ("sync", "-v")):
        for more in ((), ("--json",), ("--log-format", "json")):
            run = program(*command, *more)
            assert run.code in (0, 1), run.err
            assert "Traceback" not in run.err
            if more == ("--json",):
                assert isinstance(run.json, dict)
            if more == ("--log-format", "json"):
                assert all(json.loads(line) for line in run.err.splitlines() if not line.startswith("checkly-etl:"))
    assert program("replay").code == 1
    assert program("dead", "discard", "--all").code == 0
    assert program("sync").code == 0


def _dead(database: Database) -> list[str]:
    return [str(row["test_session_id"]) for row in rows(database, "SELECT * FROM etl_queue WHERE state = 'dead'")]


def test_fuzzed_error_groups_hold_up_no_session_and_no_other_group(
    new_warehouse: Callable[[str], str], checkly: RawCheckly, caplog: pytest.LogCaptureFixture
) -> None:
    count = 20 * TIMES if IS_AT_LENGTH else 40
    wrongs = {}
    for number in range(1, count + 1):
        id_ = uuid(0xE000 + number)
        wrongs[id_], checkly.groups[id_] = fuzzed_group(3, number)
        checkly.details[uuid(number)] = encode(detail(number, errorGroupIds=[id_]))
    good = uuid(0xE000)  # before all others, and behind them
    last = uuid(0xE000 + count + 1)
    checkly.groups[good], checkly.groups[last] = encode(error_group(0)), encode(error_group(count + 1))
    checkly.details[uuid(count + 1)] = encode(detail(count + 1, errorGroupIds=[good, last]))
    found = []
    for engine in ENGINES:
        with etl_on(checkly, new_warehouse(engine), CHECKLY_ETL_EXPORT__DISCOVER="false") as etl:
            enqueue(etl.database, *checkly.details)
            for _ in range(2):
                outcome = pipeline.sync(etl)
                assert outcome.bug is None
                assert outcome.exit_code in (0, 1), outcome.error
            assert scalar(etl.database, "SELECT count(*) FROM test_sessions") == count + 1
            fetched = rows(etl.database, "SELECT error_group_id FROM error_groups WHERE fetched_at IS NOT NULL")
            ids = {str(row["error_group_id"]) for row in fetched}
            assert {good, last} <= ids
            assert len(ids) > count / 4
            before = without_queue(etl.database)
            pipeline.replay(etl)
            assert without_queue(etl.database) == before
            found.append({table: [_in_floats(row) for row in of_table] for table, of_table in before.items()})
    same_rows(*found)
    assert "Traceback" not in caplog.text


def _in_floats(value: Any) -> Any:
    """jsonb makes 1e30 a whole number, JSON in a text keeps it as it was written."""
    if isinstance(value, dict):
        return {name: _in_floats(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(map(_in_floats, value))
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def test_a_hostile_list_entry_stops_no_other_entry(warehouse_url: str, checkly: RawCheckly) -> None:
    """The list is one document for many sessions: what is wrong with one entry must not cost the others."""
    good = range(1, 6)
    for number in good:
        checkly.details[uuid(number)] = encode(detail(number))
        checkly.entries.append(encode(entry(number)))
    hostile = [value for value, type_ in VALUES.values() if type_ not in ("not json", "deep")]
    checkly.entries += [encode(value) for value in hostile]
    checkly.entries += [encode({"id": value}) for value in hostile]
    checkly.entries += [encode({**entry(0), "id": uuid(0x500 + n), "x": v}) for n, v in enumerate(hostile)]
    checkly.entries += [encode({**entry(0), "id": uuid(0x600 + n), "created_at": v}) for n, v in enumerate(hostile)]
    checkly.entries += [encode(entry(number)) for number in good]
    with etl_on(checkly, warehouse_url) as etl:
        outcome = pipeline.sync(etl)
        assert outcome.bug is None
        assert outcome.exit_code == 1, outcome.error
        assert scalar(etl.database, "SELECT count(*) FROM test_sessions") == len(good)
        assert scalar(etl.database, "SELECT discovered_until FROM etl_accounts") is not None
        assert {letter["state"] for letter in letters(etl.database).values()} == {"dead"}


@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "Etc/GMT+12"])
def test_times_at_the_ends_of_time_can_be_read_back_whatever_the_servers_zone(
    new_warehouse: Callable[[str], str], checkly: RawCheckly, zone: str
) -> None:
    """A row that was stored and cannot be read would stop every later pass."""
    url = new_warehouse("postgresql")
    ends = {"startedAt": "0001-01-01T00:00:00Z", "stoppedAt": "9999-12-31T23:59:59.999Z"}
    document = detail(1, **ends, results=[result(1, **ends)])
    checkly.details[uuid(1)] = encode(document)
    checkly.entries.append(encode(entry(1, created_at="0001-01-01T00:00:00Z", updated_at="9999-12-31T23:59:59Z")))
    # A dead letter with such a time, too.
    checkly.details[uuid(2)] = encode(detail(2, status=5))
    checkly.entries.append(encode(entry(2, created_at="9999-12-31T23:59:59Z")))
    with etl_on(checkly, url) as etl:
        with etl.database.writing() as connection:
            name = connection.execute(text("SELECT current_database()")).scalar_one()
            connection.execute(text(f"ALTER DATABASE \"{name}\" SET timezone TO '{zone}'"))
        etl.database.close()
        try:
            pipeline.sync(etl)
            checkly.details[uuid(1)] = encode({**document, "name": "changed", "results": None})
            enqueue(etl.database, uuid(1))
            outcome = pipeline.sync(etl)
            assert (outcome.counters["test_sessions_saved"], outcome.failures) == (1, [])
            assert scalar(etl.database, "SELECT name FROM test_sessions") == "changed"
            with etl.database.reading() as connection:
                assert len(session_queue.dead_letters(connection)) == 1
            assert pipeline.replay(etl).bug is None
        finally:
            with etl.database.writing() as connection:
                connection.execute(text(f'ALTER DATABASE "{name}" RESET timezone'))


# --- documents that are large -------------------------------------------------------------------------------------

IS_LONG = IS_AT_LENGTH
MAX_BODY = 64 * MB


def test_a_session_of_many_results_is_saved_to_the_last(warehouse_url: str, checkly: RawCheckly) -> None:
    """100,000 results in the long form: 57 MB."""
    count = 100_000 if IS_LONG else 10_000
    body = large(1, count)
    checkly.details[uuid(1)] = body
    with etl_on(checkly, warehouse_url, CHECKLY_ETL_EXPORT__DISCOVER="false") as etl:
        enqueue(etl.database, uuid(1))
        outcome = pipeline.sync(etl)
        assert (outcome.word, outcome.counters["results_saved"]) == ("ok", count)
        numbers = "count(DISTINCT test_session_result_id) AS ids, min(position) AS first, max(position) AS last"
        found = rows(etl.database, f"SELECT count(*) AS n, {numbers} FROM test_session_results")
        assert found == [{"n": count, "ids": count, "first": 1, "last": count}]
        assert scalar(etl.database, "SELECT count(*) FROM check_executions") == count
        assert scalar(etl.database, "SELECT body FROM etl_payloads").encode() == body
        # Shorter, and then the same again: nothing of the first is left, and nothing is written twice.
        checkly.details[uuid(1)] = large(1, count // 10)
        for saved in (count // 10, 0):
            enqueue(etl.database, uuid(1))
            assert pipeline.sync(etl).counters["results_saved"] == saved
        assert scalar(etl.database, "SELECT count(*) FROM test_session_results") == count // 10
        assert scalar(etl.database, "SELECT count(*) FROM check_executions") == count // 10


def test_a_body_of_exactly_the_limit_is_saved_and_one_byte_more_is_a_dead_letter(
    warehouse_url: str, checkly: RawCheckly
) -> None:
    """As it is, compressed, and as a bomb."""
    limit = MAX_BODY if IS_LONG else 6 * MB
    wanted = {}
    for number, (size, pack) in enumerate(
        [
            (limit, None),
            (limit + 1, None),
            (limit, gzipped),
            (limit + 1, gzipped),
            (limit, bomb),
            (limit + 1, bomb),
            (20 * limit, bomb),
        ],
        1,
    ):
        body = padded(encode(detail(number)), size) if pack is not bomb else bomb(encode(detail(number)), size)
        checkly.details[uuid(number)] = gzipped(body) if pack is gzipped else body
        if pack is not None:
            checkly.gzipped.add(uuid(number))
        wanted[uuid(number)] = size <= limit
    limits = {"CHECKLY_ETL_CHECKLY__MAX_BODY": str(limit), "CHECKLY_ETL_EXPORT__DISCOVER": "false"}
    with etl_on(checkly, warehouse_url, **limits) as etl:
        enqueue(etl.database, *wanted)
        drain_to_the_end(etl)
        found = {
            str(row["test_session_id"]) for row in rows(etl.database, "SELECT test_session_id FROM test_sessions")
        }
        assert found == {id_ for id_, fits in wanted.items() if fits}
        queue = letters(etl.database)
        assert queue.keys() == {id_ for id_, fits in wanted.items() if not fits}
        for letter in queue.values():
            assert (letter["state"], letter["error_kind"]) == ("dead", "payload")
            assert f"over {limit} bytes" in letter["last_error"]
            assert "checkly.max_body" in letter["last_error"]


def test_large_and_small_sessions_of_one_pass_do_not_lose_each_other(warehouse_url: str, checkly: RawCheckly) -> None:
    """Those over 4 MB are fetched alone, beside the others; bad ones among either stop nobody."""
    for number in range(1, 41):
        body = large(number, 8_000) if number % 8 == 0 else encode(detail(number))
        checkly.details[uuid(number)] = body.replace(b'"PASSED"', b"5", 1) if number in (16, 17) else body
    with etl_on(checkly, warehouse_url, CHECKLY_ETL_EXPORT__DISCOVER="false") as etl:
        enqueue(etl.database, *checkly.details)
        drain_to_the_end(etl)
        assert scalar(etl.database, "SELECT count(*) FROM test_sessions") == 38
        assert scalar(etl.database, "SELECT count(*) FROM test_session_results") == 4 * 8_000 + 34 * 2
        assert letters(etl.database).keys() == {uuid(16), uuid(17)}


# --- memory -------------------------------------------------------------------------------------------------------

LIMIT = 400  # MB
ESCAPES = rb"\ud83d\udca5\u0000\ud800x\udc00" * 20 + b"%d"  # emojis, NUL and halves of surrogates


def many_results(checkly: RawCheckly, scale: float) -> None:
    for number in range(1, 9 if IS_AT_LENGTH else 3):
        checkly.details[uuid(number)] = large(number, int(100_000 * scale), name=b"%d " + b"a long name " * 8)


def just_below_large(checkly: RawCheckly, scale: float) -> None:
    for number in range(1, 17 if scale == 1 else 5):
        checkly.details[uuid(number)] = large(number, int(8_300 * max(scale, 0.3)))


def full_of_escapes(checkly: RawCheckly, scale: float) -> None:
    for number in range(1, 5 if scale == 1 else 3):
        checkly.details[uuid(number)] = large(number, int(52_000 * scale), name=ESCAPES)
    for number in range(5, 13):
        checkly.details[uuid(number)] = large(number, int(3_400 * scale), name=ESCAPES)


def one_long_text(checkly: RawCheckly, scale: float) -> None:
    for number in range(1, 4):
        checkly.details[uuid(number)] = encode(detail(number, name="x" * int(60 * MB * scale)))


def one_long_text_with_an_emoji(checkly: RawCheckly, scale: float) -> None:
    """Four bytes a character in Python."""
    for number in range(1, 4):
        text_ = Raw(b'"' + "💥".encode() + b"x" * int(60 * MB * scale) + b'"')
        checkly.details[uuid(number)] = encode(detail(number, name=text_))


def long_texts_that_nobody_knows(checkly: RawCheckly, scale: float) -> None:
    for number in range(1, 4):
        unknown = [Raw(b'{"a":[1,2,3],"b":"' + "é".encode() * 50 + b'"}')] * int(450_000 * scale)
        checkly.details[uuid(number)] = encode(detail(number, new=unknown))


def a_large_page_of_the_list(checkly: RawCheckly, scale: float) -> None:
    for number in range(1, 201):
        checkly.details[uuid(number)] = encode(detail(number))
        checkly.entries.append(encode(entry(number, commitMessage="m" * int(500_000 * scale))))


def a_large_error_group(checkly: RawCheckly, scale: float) -> None:
    ids = [error_group(number)["id"] for number in (1, 2)]
    checkly.details[uuid(1)] = encode(detail(1, errorGroupIds=ids))
    for number, id_ in enumerate(ids, 1):
        message = "💥" + "e" * int(25 * MB * scale)
        checkly.groups[id_] = encode(error_group(number, rawErrorMessage=message))


LOADS = {
    load.__name__: load
    for load in (
        many_results,
        just_below_large,
        full_of_escapes,
        one_long_text,
        one_long_text_with_an_emoji,
        long_texts_that_nobody_knows,
        a_large_page_of_the_list,
        a_large_error_group,
    )
}


@pytest.mark.parametrize("load", LOADS)
def test_memory_stays_under_400_mb_with_the_largest_documents_at_once(
    load: str, new_warehouse: Callable[[str], str], engine_name: str
) -> None:
    """All of them in `make torture`; in CI those of many results, two of the largest."""
    if not IS_AT_LENGTH and (load, engine_name) != ("many_results", "sqlite"):
        pytest.skip("in make torture")
    scale, limit = 1.0, LIMIT
    url = new_warehouse(engine_name)
    checkly = RawCheckly()
    LOADS[load](checkly, scale)
    checkly.together = min(8, len(checkly.details))
    with checkly:
        sync, replay = measured(checkly, url)
    assert sync < limit
    assert replay < limit


def measured(checkly: RawCheckly, url: str) -> tuple[float, float]:
    """Peaks of `sync` and of `replay` of what it stored, in MB; the rows must be the same after both."""
    database = Database(url)
    enqueue(database, *checkly.details)
    discover = "true" if checkly.entries else "false"
    env = {**environment(checkly.url, url), **SETTINGS, "CHECKLY_ETL_EXPORT__DISCOVER": discover}
    code, sync, said = peak(env, "sync")
    assert code == 0, said
    assert scalar(database, "SELECT count(*) FROM test_sessions") == len(checkly.details)
    counts = [scalar(database, f"SELECT count(*) FROM {table}") for table in COUNTED]
    digests = rows(database, "SELECT test_session_id, payload_sha256, summary_sha256 FROM test_sessions ORDER BY 1")
    code, replay, said = peak(env, "replay")
    assert code == 0, said
    assert counts == [scalar(database, f"SELECT count(*) FROM {table}") for table in COUNTED]
    again = rows(database, "SELECT test_session_id, payload_sha256, summary_sha256 FROM test_sessions ORDER BY 1")
    database.close()
    assert again == digests
    return sync, replay


COUNTED = ("test_session_results", "check_executions", "etl_payloads", "error_groups")


def peak(env: dict[str, str], *arguments: str) -> tuple[int, float, str]:
    """Exit code, peak of resident memory in MB and stderr of a process of its own, with the default settings."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("CHECKLY_")}
    with tempfile.TemporaryFile() as err:
        process = subprocess.Popen(
            [sys.executable, "-m", "etl", *arguments],
            env={**inherited, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=err,
        )
        # Not ru_maxrss: it counts what this process here had in memory when it forked.
        highest = 0
        while process.poll() is None:
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{process.pid}/status").read_text()
                found = re.search(r"VmHWM:\s+(\d+) kB", status)
                highest = max(highest, int(found[1])) if found else highest
            time.sleep(0.01)
        err.seek(0)
        said = err.read().decode()
    assert "Traceback" not in said, said[-3000:]
    return process.returncode, highest * 1024 / MB, said[-3000:]
