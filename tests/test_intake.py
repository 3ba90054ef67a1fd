"""A pass takes its inboxes in: ids are committed first and acknowledged then, whatever happens between the two."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pika
import pytest
import redis
from sqlalchemy import text

from etl import config, inbox, pipeline, session_queue
from etl.database import Database
from etl.errors import LeaseLost
from etl.inbox import Batch, Message, ledger
from etl.pipeline import Etl, Outcome, intake
from etl.simulator import Simulator, World
from tests.brokers import amqp_declare, amqp_publish, redis_add, redis_push
from tests.conftest import ACCOUNT, ENGINES, Program, content, environment, rows, scalar
from tests.documents import detail, running, uuid
from tests.harness import TIMES, rows_that_hold, workers
from tests.servers import free_port

SESSIONS = 40
LINK = "https://app.checklyhq.com/accounts/{}/test-sessions/{}"
PASSWORD = "password-of-the-inbox"
NO_ID = "nothing \0 here"
Make = Callable[..., Etl]


# --- inboxes ----------------------------------------------------------------------------------------------------


class Inbox(ABC):
    """Something that CI writes to and we read from."""

    @property
    @abstractmethod
    def yaml(self) -> str:
        """Its entry in the settings."""

    @abstractmethod
    def put(self, *texts: str) -> None:
        """As CI does."""

    @abstractmethod
    def put_bytes(self, data: bytes) -> None:
        """What no argument of a command can hold."""

    @abstractmethod
    def waiting(self) -> int:
        """Messages that are not acknowledged (of a file: that no position covers)."""


class List(Inbox):
    def __init__(self, url: str, key: str) -> None:
        self._url, self._key = url, key

    @property
    def yaml(self) -> str:
        return f"{{url: '{self._url}', queue: {self._key}}}"

    def put(self, *texts: str) -> None:
        for each in texts:
            redis_push(self._url, self._key, each)

    def put_bytes(self, data: bytes) -> None:
        with closing(redis.Redis.from_url(self._url)) as client:
            client.rpush(self._key, data)

    def waiting(self) -> int:
        with closing(redis.Redis.from_url(self._url)) as client:
            lengths: Any = [client.llen(self._key), client.llen(f"{self._key}:checkly-etl")]
            return int(sum(lengths))


class Stream(List):
    def put(self, *texts: str) -> None:
        for each in texts:
            redis_add(self._url, self._key, "text", each)

    def put_bytes(self, data: bytes) -> None:
        with closing(redis.Redis.from_url(self._url)) as client:
            client.xadd(self._key, {"text": data})

    def waiting(self) -> int:
        with closing(redis.Redis.from_url(self._url)) as client:
            groups: Any = client.xinfo_groups(self._key)
            length: Any = client.xlen(self._key)
            return int(groups[0]["lag"] + groups[0]["pending"] if groups else length)


class Rabbit(Inbox):
    def __init__(self, url: str, queue: str) -> None:
        self._url, self._queue = url, queue
        amqp_declare(url, queue)

    @property
    def yaml(self) -> str:
        # A password in the file itself is refused.
        return f"{{url: '{self._url.replace('guest:guest', 'guest:${RABBIT_PASSWORD}')}', queue: {self._queue}}}"

    def put(self, *texts: str) -> None:
        for each in texts:
            amqp_publish(self._url, self._queue, each)

    def put_bytes(self, data: bytes) -> None:
        with self._channel() as channel:
            channel.basic_publish("", self._queue, data)

    def waiting(self) -> int:
        """After a connection was closed it takes the broker a moment to have its messages back."""
        with self._channel() as channel:
            return int(channel.queue_declare(self._queue, passive=True).method.message_count)

    @contextmanager
    def _channel(self) -> Iterator[Any]:
        with closing(pika.BlockingConnection(pika.URLParameters(self._url))) as connection:
            yield connection.channel()


class File(Inbox):
    def __init__(self, path: Path, database: Database) -> None:
        self._path, self._database = path, database
        path.touch()

    @property
    def yaml(self) -> str:
        return f"{{file: '{self._path}'}}"

    def put(self, *texts: str) -> None:
        for each in texts:
            self.put_bytes(each.encode())

    def put_bytes(self, data: bytes) -> None:
        with self._path.open("ab") as file:
            file.write(data + b"\n")

    def waiting(self) -> int:
        found = rows(self._database, "SELECT position FROM etl_inboxes WHERE position IS NOT NULL")
        position = found[0]["position"] if found else None
        batch = inbox.open_source(config.InboxFile(self._path)).receive(position)
        return len(batch.messages) if batch else 0


KINDS = ("list", "stream", "rabbit", "file")


@pytest.fixture
def file(database: Database, tmp_path: Path) -> Inbox:
    """One inbox, where it does not matter of which kind."""
    return File(tmp_path / "ids.log", database)


@pytest.fixture(params=KINDS)
def box(request: pytest.FixtureRequest, database: Database, tmp_path: Path) -> Inbox:
    """One inbox of each kind."""
    return made(request, request.param, database, tmp_path)


def made(request: pytest.FixtureRequest, kind: str, database: Database, folder: Path) -> Inbox:
    if kind == "file":
        return File(folder / "ids.log", database)
    if kind == "rabbit":
        return Rabbit(request.getfixturevalue("amqp_url"), request.getfixturevalue("amqp_queue"))
    classes = {"list": List, "stream": Stream}
    return classes[kind](request.getfixturevalue("redis_url"), request.getfixturevalue("redis_queue"))


# --- the pass ---------------------------------------------------------------------------------------------------


@pytest.fixture
def checkly() -> Iterator[Simulator]:
    """Checkly with test sessions that its list does not tell of."""
    with Simulator(World(seed=1, now=datetime(2000, 1, 1, tzinfo=UTC), days=1), rate_limit=0) as serving:
        for number in range(1, SESSIONS + 1):
            serving.put_test_session(detail(number), None)
        yield serving


@pytest.fixture
def settings_file(tmp_path: Path) -> Path:
    return tmp_path / "inboxes.yaml"


@pytest.fixture
def env(checkly: Simulator, warehouse_url: str) -> dict[str, str]:
    return {
        **environment(checkly.url, warehouse_url),
        "CHECKLY_ETL_EXPORT__DISCOVER": "false",
        "RABBIT_PASSWORD": "guest",
        "INBOX_PASSWORD": PASSWORD,
    }


@pytest.fixture
def make(settings_file: Path, env: dict[str, str], warehouse_url: str) -> Iterator[Make]:
    """The pipeline with these inboxes, as a new process has it."""
    opened: list[Database] = []

    def build(*boxes: Inbox | str, clock_offset: timedelta = timedelta(0), more: str = "", **options: str) -> Etl:
        write_settings(settings_file, *boxes, more=more)
        opened.append(Database(warehouse_url, clock_offset=clock_offset))
        return Etl(config.load(settings_file, {**env, **options}), opened[-1])

    yield build
    for each in opened:
        each.close()


def write_settings(path: Path, *boxes: Inbox | str, more: str = "") -> None:
    entries = [each if isinstance(each, str) else each.yaml for each in boxes]
    path.write_text("inbox:\n" + "".join(f"- {entry}\n" for entry in entries) + more)


def name_of(etl: Etl, number: int = 0) -> str:
    return inbox.name_of(etl.settings.inbox[number])


def exported(database: Database) -> set[str]:
    return {str(row["test_session_id"]) for row in rows(database, "SELECT test_session_id FROM test_sessions")}


def queue(database: Database) -> dict[str, dict[str, Any]]:
    return {str(row["test_session_id"]): row for row in rows(database, "SELECT * FROM etl_queue")}


def rejects(database: Database) -> list[str]:
    return [row["text"].strip() for row in rows(database, "SELECT text FROM etl_inbox_rejects ORDER BY received_at")]


def ids(*numbers: int) -> set[str]:
    return {uuid(number) for number in numbers}


def eventually(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "this never happened"
        time.sleep(0.02)


# --- what comes in ----------------------------------------------------------------------------------------------


def test_the_ids_of_messages_are_exported_in_the_same_pass(box: Inbox, make: Make, database: Database) -> None:
    box.put(uuid(1), LINK.format(ACCOUNT, uuid(2)), f"1 passed\nTest session ID: {uuid(3)}\n", uuid(999))
    etl = make(box)
    outcome = pipeline.sync(etl)
    assert exported(database) == ids(1, 2, 3)
    assert outcome.warnings == []
    assert outcome.inboxes[name_of(etl)].is_up
    assert box.waiting() == 0

    row = queue(database)[uuid(999)]
    assert (row["state"], row["source"], row["priority"]) == ("dead", "inbox", session_queue.PRIORITIES["enqueue"])
    state = rows(database, "SELECT * FROM etl_inboxes")[0]
    assert state["inbox"] == name_of(etl)
    assert state["last_read_at"] >= state["last_received_at"]
    assert (state["last_error"], state["reader_token"], state["reader_process"]) == (None, None, None)

    again = make(box)
    assert pipeline.sync(again).inboxes[name_of(again)].messages == 0


def test_several_inboxes_are_read_in_one_pass(
    make: Make, database: Database, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    boxes = [made(request, kind, database, tmp_path) for kind in ("list", "rabbit", "file")]
    for number, each in enumerate(boxes, 1):
        each.put(uuid(number))
    assert pipeline.sync(make(*boxes)).exit_code == 0
    assert exported(database) == ids(1, 2, 3)


def test_batches_of_any_size_reach_the_queue(file: Inbox, make: Make, database: Database) -> None:
    file.put(*(uuid(number) for number in range(1, 2001)))
    etl = make(file)
    outcome = Outcome()
    intake.take_in(etl, outcome)
    assert outcome.inboxes[name_of(etl)].messages == len(queue(database)) == 2000


def test_an_id_that_comes_again_changes_no_row_of_the_warehouse(box: Inbox, make: Make, database: Database) -> None:
    box.put(uuid(1), uuid(2))
    assert pipeline.sync(make(box)).exit_code == 0
    before = content(database)
    written = rows(database, "SELECT test_session_id, exported_at, etl_run_id FROM test_sessions ORDER BY 1")
    box.put(uuid(2), LINK.format(ACCOUNT, uuid(1)))
    outcome = pipeline.sync(make(box))
    assert outcome.exit_code == 0
    assert outcome.counters["test_sessions_saved"] == 0
    assert content(database) == before
    assert rows(database, "SELECT test_session_id, exported_at, etl_run_id FROM test_sessions ORDER BY 1") == written


def test_a_link_names_the_account_if_it_is_one_of_ours(file: Inbox, make: Make, database: Database) -> None:
    second, stranger = uuid(0xAA), uuid(0xBB)
    file.put(LINK.format(ACCOUNT, uuid(1)), LINK.format(second, uuid(2)), LINK.format(stranger, uuid(3)), uuid(4))
    more = f"checkly: {{accounts: [{{id: {ACCOUNT}}}, {{id: {second}, api_key_env: SECOND_KEY}}]}}\n"
    intake.take_in(make(file, more=more, SECOND_KEY="key", CHECKLY_ACCOUNT_ID=""), Outcome())
    accounts = {id_: row["account_id"] and str(row["account_id"]) for id_, row in queue(database).items()}
    assert accounts == {uuid(1): ACCOUNT, uuid(2): second, uuid(3): None, uuid(4): None}


def test_an_inbox_finds_rows_of_the_queue_as_enqueue_does(file: Inbox, make: Make, database: Database) -> None:
    claimed: list[session_queue.Claim] = []

    def prepare(connection: Any) -> None:
        session_queue.enqueue(connection, [uuid(number) for number in (1, 2, 3)])
        claims = session_queue.claim(
            connection, account_id=ACCOUNT, limit=10, lease=timedelta(minutes=5), is_default=True
        )
        by_id = {claim.test_session_id: claim for claim in claims}
        failure = session_queue.Failure
        session_queue.bury(connection, {failure(uuid(number), "rejected", "no"): 3 for number in (1, 2)})
        session_queue.discard(connection, [uuid(1)])
        claimed.append(by_id[uuid(3)])

    database.run(prepare)
    file.put(*(uuid(number) for number in (1, 2, 3, 4)))
    outcome = Outcome()
    intake.take_in(make(file), outcome)
    found = queue(database)
    assert {id_: row["state"] for id_, row in found.items()} == {
        uuid(1): "discarded",
        uuid(2): "queued",
        uuid(3): "leased",
        uuid(4): "queued",
    }
    assert found[uuid(2)]["attempts"] == 0
    assert str(found[uuid(3)]["claim_token"]) == claimed[0].token
    assert outcome.exit_code == 0
    assert file.waiting() == 0


def test_a_session_that_is_waited_for_is_read_now(
    file: Inbox, make: Make, checkly: Simulator, database: Database
) -> None:
    checkly.put_test_session(running(1), None)
    file.put(uuid(1))
    pipeline.sync(make(file))
    assert queue(database)[uuid(1)]["source"] == "inbox"
    checkly.put_test_session(detail(1), None)
    pipeline.sync(make(file))
    assert queue(database) != {}, "not before running_poll"
    file.put(uuid(1))
    pipeline.sync(make(file))
    assert queue(database) == {}


# --- commit and acknowledgement ---------------------------------------------------------------------------------


@contextmanager
def refusing(database: Database) -> Iterator[None]:
    """The database takes no row of an inbox into the queue."""
    with database.writing() as connection:
        if database.is_sqlite:
            what = "CREATE TRIGGER refuse BEFORE INSERT ON etl_queue BEGIN SELECT RAISE(ABORT, 'refuse'); END"
        else:
            what = "ALTER TABLE etl_queue ADD CONSTRAINT refuse CHECK (source <> 'inbox')"
        connection.execute(text(what))
    try:
        yield
    finally:
        with database.writing() as connection:
            connection.execute(
                text("DROP TRIGGER refuse" if database.is_sqlite else "ALTER TABLE etl_queue DROP CONSTRAINT refuse")
            )


def test_a_message_whose_ids_cannot_be_committed_is_not_acknowledged(
    box: Inbox, make: Make, database: Database
) -> None:
    box.put(uuid(1), "no id", uuid(2))
    database.run(lambda c: session_queue.enqueue(c, [uuid(3)]))
    with refusing(database), pytest.raises(Exception, match="refuse"):
        pipeline.sync(make(box))
    assert exported(database) == ids(3), "the rest of the pass is done"
    assert rejects(database) == []
    assert rows(database, "SELECT position FROM etl_inboxes") == [{"position": None}]
    assert "bug" in scalar(database, "SELECT last_error FROM etl_inboxes")
    eventually(lambda: box.waiting() == 3)
    assert pipeline.sync(make(box)).exit_code == 1
    assert exported(database) == ids(1, 2, 3)
    assert [each.removeprefix("text: ") for each in rejects(database)] == ["no id"]
    assert box.waiting() == 0


DIES = """
import os, signal, sys

from etl import cli
from etl.inbox import ledger, rabbitmq, redis

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

if sys.argv[1] == "before the commit":
    ledger.reject = die  # the last statement of the transaction
else:
    redis.RedisSource.acknowledge = rabbitmq.RabbitSource.acknowledge = die
sys.exit(cli.run(sys.argv[2:]))
"""


def died(moment: str, settings_file: Path, env: dict[str, str]) -> None:
    """A sync that is killed at a certain moment."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("CHECKLY_")}
    command = [sys.executable, "-c", DIES, moment, "sync", "--config", str(settings_file)]
    ended = subprocess.run(command, env={**inherited, **env}, capture_output=True, timeout=60, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()


@pytest.mark.parametrize(
    ("kind", "engine_name"),
    [("list", "sqlite"), ("list", "postgresql"), ("stream", "sqlite"), ("rabbit", "postgresql")],
    indirect=["engine_name"],
)
def test_a_process_that_dies_between_commit_and_acknowledgement_loses_and_doubles_nothing(
    kind: str,
    make: Make,
    database: Database,
    settings_file: Path,
    env: dict[str, str],
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    box = made(request, kind, database, tmp_path)
    write_settings(settings_file, box)
    box.put(uuid(1), "no id", uuid(2))

    died("before the commit", settings_file, env)
    assert queue(database) == {}
    assert rejects(database) == []
    eventually(lambda: box.waiting() == 3)

    died("before the acknowledgement", settings_file, env)
    assert set(queue(database)) == ids(1, 2)
    assert len(rejects(database)) == 1
    eventually(lambda: box.waiting() == 3)

    box.put(uuid(3))
    assert pipeline.sync(make(box)).exit_code == 1  # the message without an id
    assert exported(database) == ids(1, 2, 3)
    assert len(rejects(database)) == 1
    assert (queue(database), box.waiting()) == ({}, 0)


# --- one reader at a time ---------------------------------------------------------------------------------------


def test_an_inbox_that_somebody_else_reads_is_left_alone_until_the_lease_ends(
    file: Inbox, make: Make, database: Database
) -> None:
    etl = make(file)
    lease = etl.settings.export.lease
    reading = database.run(lambda c: ledger.begin(c, name_of(etl), lease))
    assert reading is not None
    file.put(uuid(1))
    database.run(lambda c: session_queue.enqueue(c, [uuid(2)]))
    outcome = pipeline.sync(etl)
    assert (outcome.exit_code, outcome.inboxes) == (0, {})
    assert exported(database) == ids(2)
    assert file.waiting() == 1

    assert pipeline.sync(make(file, clock_offset=lease)).exit_code == 0
    assert exported(database) == ids(1, 2)


def test_a_reader_that_was_too_slow_commits_nothing_and_takes_nothing_from_the_next_one(
    file: Inbox, make: Make, database: Database, warehouse_url: str
) -> None:
    etl = make(file)
    name, lease = name_of(etl), etl.settings.export.lease
    slow = database.run(lambda c: ledger.begin(c, name, lease))
    with closing(Database(warehouse_url, clock_offset=lease)) as later:
        quick = later.run(lambda c: ledger.begin(c, name, lease))
    assert slow is not None
    assert quick is not None
    source = inbox.open_source(etl.settings.inbox[0])
    batch = Batch([Message(uuid(1)), Message("no id")], "a position")
    with pytest.raises(LeaseLost):
        database.run(lambda c: intake._commit(c, etl, source, batch, slow))
    database.run(lambda c: ledger.end(c, slow, error="too slow"))
    assert (queue(database), rejects(database)) == ({}, [])
    state = rows(database, "SELECT * FROM etl_inboxes")[0]
    assert (state["position"], state["last_error"], str(state["reader_token"])) == (None, None, quick.token)


def test_two_readers_at_once_share_a_list_without_doing_anything_twice(
    make: Make, database: Database, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    box = made(request, "list", database, tmp_path)
    box.put(*(uuid(number) for number in range(1, 11)))
    outcomes: list[Outcome] = []
    etls = [make(box) for _ in range(3)]
    threads = [threading.Thread(target=lambda etl=etl: outcomes.append(pipeline.sync(etl))) for etl in etls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [outcome.exit_code for outcome in outcomes] == [0, 0, 0]
    assert sum(count.messages for outcome in outcomes for count in outcome.inboxes.values()) == 10
    assert sum(outcome.counters["test_sessions_saved"] for outcome in outcomes) == 10
    assert exported(database) == ids(*range(1, 11))
    assert box.waiting() == 0


# --- what holds no id -------------------------------------------------------------------------------------------


def test_a_message_without_an_id_is_kept_once_with_its_text_and_acknowledged(
    box: Inbox, make: Make, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        box.put(uuid(1))
        box.put_bytes(NO_ID.encode())
        etl = make(box)
        outcome = pipeline.sync(etl)
        assert outcome.exit_code == 1
        assert outcome.inboxes[name_of(etl)].rejected == 1
        assert [name_of(etl) in warning for warning in outcome.warnings] == [True]
        assert "1 message without a test session id" in caplog.text
        assert box.waiting() == 0
    assert [each.removeprefix("text: ") for each in rejects(database)] == [NO_ID.replace("\0", "\ufffd")]
    assert exported(database) == ids(1)
    box.put(uuid(2))
    assert pipeline.sync(make(box)).exit_code == 0, "it was told already"


def test_a_line_with_more_than_ids_is_kept_as_a_reject_and_the_others_are_taken(
    box: Inbox, make: Make, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    box.put(f"{uuid(1)};{uuid(2)}")
    box.put(f"run 3: {uuid(3)}")
    outcome = pipeline.sync(make(box))
    assert outcome.exit_code == 1
    assert exported(database) == ids(1, 2)
    assert [each.removeprefix("text: ") for each in rejects(database)] == [f"run 3: {uuid(3)}"]
    assert box.waiting() == 0


def test_a_short_link_in_an_inbox_says_what_to_use(
    box: Inbox, make: Make, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    box.put("https://chkly.link/l/aBc12")
    assert pipeline.sync(make(box)).exit_code == 1
    assert "Checkly CLI 8.6 or newer" in caplog.text
    assert len(rejects(database)) == 1


def test_texts_that_hold_no_id_may_be_of_any_size_and_number(database: Database, warehouse_url: str) -> None:
    many = [f"{number} ☃ \ud800" for number in range(ledger.REJECTS_KEPT + 50)]
    for hour, some in enumerate([many[:700], many[700:], many[:10], ["x" * 1_000_000]]):
        with closing(Database(warehouse_url, clock_offset=timedelta(hours=hour))) as opened:
            opened.run(partial(ledger.reject, inbox="inbox", texts=some))
    found = rejects(database)
    assert len(found) == ledger.REJECTS_KEPT
    assert max(map(len, found)) == ledger.LONGEST_REJECT
    assert "1049 ☃ \ufffd" in found


def test_what_ci_sends_by_mistake_is_no_secret_in_the_warehouse(
    file: Inbox, make: Make, database: Database, env: dict[str, str]
) -> None:
    key = env["CHECKLY_API_KEY"] = 'kéy-"of\\the-test'
    as_json = json.dumps({"env": key})
    file.put(f"CHECKLY_API_KEY={key} npx checkly test")
    file.put(as_json)
    assert pipeline.sync(make(file)).exit_code == 1
    for form in (key, as_json[9:-2], json.dumps(key, ensure_ascii=False)[1:-1]):
        assert rows_that_hold(database, form) == []
    assert "npx checkly test" in "".join(rejects(database))
    assert '{"env": "***"}' in "".join(rejects(database))


# --- what is down -----------------------------------------------------------------------------------------------


def test_an_inbox_that_is_down_is_reported_and_the_rest_of_the_pass_is_done(
    file: Inbox, program: Program, settings_file: Path, env: dict[str, str], database: Database, tmp_path: Path
) -> None:
    file.put(uuid(1))
    redis_name = f"redis://default:***@127.0.0.1:{free_port()}/0"
    amqp_name = f"amqp://etl:***@127.0.0.1:{free_port()}/"
    urls = [name.replace("***", "${INBOX_PASSWORD}") for name in (redis_name, amqp_name)]
    down = [f"{{url: '{url}', queue: ids}}" for url in urls]
    down += [f"{{file: '{tmp_path}/missing/ids.log'}}", f"{{file: '{tmp_path}'}}"]
    write_settings(settings_file, *down, file, f"{{file: '{tmp_path}/not-yet.log'}}")
    database.run(lambda c: session_queue.enqueue(c, [uuid(2)]))

    run = program("sync", "--config", str(settings_file), "--json", **env)

    assert run.code == 1
    assert exported(database) == ids(1, 2)
    names = [f"{redis_name} ids", f"{amqp_name} ids", f"file {tmp_path}/missing/ids.log", f"file {tmp_path}"]
    for name in names:
        assert f"inbox {name}: " in run.err
        error = scalar(database, "SELECT last_error FROM etl_inboxes WHERE inbox = :name", name=name)
        assert error.startswith(f"inbox {name}: ")
    never_read = rows(database, "SELECT inbox FROM etl_inboxes WHERE last_read_at IS NULL ORDER BY 1")
    assert [row["inbox"] for row in never_read] == sorted(names)
    assert PASSWORD not in run.out + run.err
    assert rows_that_hold(database, PASSWORD) == []
    assert run.json["outcome"] == "partial"

    (tmp_path / "missing").mkdir()
    write_settings(settings_file, f"{{file: '{tmp_path}/missing/ids.log'}}", file)
    assert program("sync", "--config", str(settings_file), **env).code == 0
    assert scalar(database, f"SELECT last_error FROM etl_inboxes WHERE inbox = '{names[2]}'") is None


def test_status_shows_the_inboxes_of_the_settings_and_no_others(
    program: Program, settings_file: Path, env: dict[str, str], tmp_path: Path
) -> None:
    old, new = (f"{{file: '{tmp_path}/missing/{name}.log'}}" for name in ("old", "new"))
    write_settings(settings_file, old, new)
    assert program("sync", "--config", str(settings_file), **env).code == 1
    write_settings(settings_file, new)
    run = program("status", "--config", str(settings_file), "--json", **env)
    assert [row["inbox"] for row in run.json["inboxes"]] == [f"file {tmp_path}/missing/new.log"]


def test_an_inbox_that_is_stopped_in_the_middle_was_not_read_to_its_end(
    file: Inbox, make: Make, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.put(*(uuid(number) for number in range(1, SESSIONS + 1)))
    monkeypatch.setattr("etl.inbox.files.CHUNK", 100)
    etl = make(file)
    queued: list[int] = []

    class Stop(threading.Event):
        """Set when the first batch has been committed."""

        def is_set(self) -> bool:
            queued.append(scalar(database, "SELECT count(*) FROM etl_queue"))
            return queued[-1] > 0

    etl.stop = Stop()
    intake.take_in(etl, Outcome())
    assert 0 < len(queue(database)) < SESSIONS
    state = rows(database, "SELECT * FROM etl_inboxes")[0]
    assert (state["last_read_at"], state["reader_token"]) == (None, None)
    assert state["last_received_at"] is not None
    assert state["position"] is not None
    pipeline.sync(make(file))
    assert exported(database) == ids(*range(1, SESSIONS + 1))
    assert scalar(database, "SELECT last_error FROM etl_inboxes") is None


# --- kill -9 ----------------------------------------------------------------------------------------------------


# Each kind on one of the engines at least; CI and `make torture` have more time.
KILLS = [(KINDS[n % 4], ENGINES[(n + n // 4) % 2], n) for n in range(2 * TIMES)]


@pytest.mark.parametrize(("kind", "engine_name", "seed"), KILLS, indirect=["engine_name"])
def test_whatever_is_killed_while_messages_come_in_every_id_is_exported(
    kind: str,
    seed: int,
    checkly: Simulator,
    warehouse_url: str,
    database: Database,
    settings_file: Path,
    env: dict[str, str],
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    box = made(request, kind, database, tmp_path)
    write_settings(settings_file, box)
    chance = random.Random(seed)
    is_over = threading.Event()

    def produce(numbers: Iterable[int]) -> None:
        for number in numbers:
            box.put(uuid(number))
            is_over.wait(0.03)

    checkly.add_fault(match="/v1/", kind="delay", seconds=0.01)
    with workers(checkly.url, warehouse_url, **{name: env[name] for name in env if "WAREHOUSE" not in name}) as some:
        some.secrets = ()  # the password of a new broker is a word like any other
        producer = threading.Thread(target=produce, args=(range(1, SESSIONS + 1),))
        producer.start()
        while producer.is_alive():
            worker = some.start("sync", "--config", str(settings_file))
            time.sleep(chance.uniform(0.3, 1.3))
            worker.kill()
            assert "Traceback" not in worker.err, worker.err
        producer.join()
        last = some.run("sync", "--config", str(settings_file))
        assert last.process.returncode == 0, last.err
    assert exported(database) == ids(*range(1, SESSIONS + 1))
    assert queue(database) == {}
    assert rejects(database) == []
    eventually(lambda: box.waiting() == 0)
