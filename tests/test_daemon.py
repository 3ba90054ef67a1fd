"""The daemon as its users see it: what it tells over HTTP and systemd, how it starts and how it ends."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from etl import daemon, schema
from etl.daemon import State
from etl.daemon.http import Server
from etl.daemon.metrics import exposition
from etl.database import Database
from etl.pipeline import Etl, InboxCount, Outcome
from etl.simulator import Simulator, World
from tests.conftest import ACCOUNT, ENGINES, Program, environment, rows, scalar
from tests.documents import detail, entry
from tests.harness import Worker, Workers, wait_until
from tests.servers import free_port
from tests.test_alerts import METRICS

on_one_engine = pytest.mark.parametrize("engine_name", ENGINES[:1], indirect=True)


@pytest.fixture
def checkly() -> Iterator[Simulator]:
    """Checkly with what the test puts into it."""
    with Simulator(World(seed=1, now=datetime(2000, 1, 1, tzinfo=UTC), days=1), rate_limit=0) as serving:
        yield serving


@pytest.fixture
def start(checkly: Simulator, warehouse_url: str, tmp_path: Path) -> Iterator[Callable[..., Worker]]:
    """Starts a daemon that passes every second and listens on `port`."""
    workers = Workers({**environment(checkly.url, warehouse_url), "CHECKLY_ETL_EXPORT__LOOKBACK": "3000d"})

    def begin(*arguments: str, port: int | None = None, **env: str) -> Worker:
        listen = {"CHECKLY_ETL_OBSERVE__LISTEN": f"127.0.0.1:{port}"} if port else {}
        every = {} if "CHECKLY_ETL_SCHEDULE__CRON" in env else {"CHECKLY_ETL_SCHEDULE__INTERVAL": "1s"}
        return workers.start("daemon", *arguments, **{**every, **listen, **env})

    yield begin
    workers.close()


def get(port: int, path: str, token: str | None = None) -> tuple[int, str]:
    """Status and body; (0, "") while nobody listens."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}")
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=5) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except OSError:
        return 0, ""


def samples(text: str) -> dict[str, float]:
    """`name{label="value"}` -> value."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


# --- a process -----------------------------------------------------------------------------------------------------


def test_passes_follow_each_other_until_sigterm_which_is_exit_0(
    start: Callable[..., Worker], checkly: Simulator, database: Database
) -> None:
    checkly.put_test_session(detail(1), entry(1))
    running = start()
    wait_until(lambda: scalar(database, "SELECT count(*) FROM test_sessions") == 1)
    checkly.put_test_session(detail(2), entry(2))
    wait_until(lambda: scalar(database, "SELECT count(*) FROM test_sessions") == 2)
    running.process.send_signal(signal.SIGTERM)
    assert running.wait(15) == 0
    assert scalar(database, "SELECT count(*) FROM etl_queue") == 0
    outcomes = {row["outcome"] for row in rows(database, "SELECT outcome FROM etl_runs")}
    assert outcomes <= {"ok", "interrupted"}
    lines = running.err.splitlines()
    assert sum("exported test session" in line for line in lines) == 2
    begins, *others = lines
    assert "the daemon begins: a pass every 0:00:01, first pass now; warehouse " in begins
    assert database.name in begins
    assert sum("the daemon ends: SIGTERM" in line for line in others) == 1
    about = ("exported test session", " sync ", "the daemon ends")
    assert all(any(word in line for word in about) for line in others), "nothing else is said"


@on_one_engine
def test_cron_is_a_schedule_too_and_the_first_pass_is_at_once(
    start: Callable[..., Worker], checkly: Simulator, database: Database
) -> None:
    checkly.put_test_session(detail(1), entry(1))
    running = start(CHECKLY_ETL_SCHEDULE__CRON="0 0 1 1 *", CHECKLY_ETL_SCHEDULE__TIMEZONE="Europe/Berlin")
    wait_until(lambda: scalar(database, "SELECT count(*) FROM test_sessions") == 1)
    running.process.send_signal(signal.SIGINT)
    assert running.wait(15) == 0
    assert "the daemon begins: cron 0 0 1 1 * (Europe/Berlin), first pass now; " in running.err
    assert "the daemon ends: SIGINT" in running.err


@on_one_engine
def test_all_metrics_are_those_that_the_alerts_and_the_docs_know(
    start: Callable[..., Worker], checkly: Simulator, tmp_path: Path
) -> None:
    checkly.put_test_session(detail(1), entry(1))
    (tmp_path / "ids.txt").write_text("no id\n")
    (tmp_path / "c.yaml").write_text(f"inbox: [{{file: {tmp_path}/ids.txt}}]\n")
    port = free_port()
    start("--config", str(tmp_path / "c.yaml"), port=port)
    wait_until(lambda: samples(get(port, "/metrics")[1]).get('checkly_etl_passes_total{outcome="ok"}', 0) >= 1)
    status, text = get(port, "/metrics")
    assert status == 200
    families = {family.name for family in text_string_to_metric_families(text)}
    ours = {name for name in families if name.startswith("checkly_etl_")}
    gauges_that_may_be_absent = {
        "checkly_etl_oldest_due_timestamp_seconds",
        "checkly_etl_hours_until_loss",
    }
    assert {name.removesuffix("_total") for name in METRICS} == ours | gauges_that_may_be_absent
    found = samples(text)
    assert found["checkly_etl_test_sessions_saved_total"] == 1
    assert found[f'checkly_etl_queue{{account_id="{ACCOUNT}",state="due"}}'] == 0
    assert found['checkly_etl_api_calls_total{outcome="ok"}'] >= 2
    assert found['checkly_etl_passes_total{outcome="partial"}'] == 1, "that of the message without an id"
    assert found[f'checkly_etl_inbox_rejected_total{{inbox="file {tmp_path}/ids.txt"}}'] == 1
    assert found["checkly_etl_pass_duration_seconds_count"] >= 2
    assert time.time() - found[f'checkly_etl_last_success_timestamp_seconds{{account_id="{ACCOUNT}"}}'] < 60
    docs = (Path(__file__).parent.parent / "docs" / "daemon.md").read_text(encoding="utf-8")
    for name in METRICS:
        assert name in docs or f"…{name.removeprefix('checkly_etl_test_sessions')}" in docs, name


@on_one_engine
def test_an_api_that_is_away_makes_it_unhealthy_with_the_reason_until_it_is_back(
    start: Callable[..., Worker], checkly: Simulator, database: Database
) -> None:
    port = free_port()
    start(port=port)
    wait_until(lambda: get(port, "/healthz") == (200, "ok: passes succeed\n"))
    checkly.api_key = "another"
    wait_until(lambda: get(port, "/healthz")[0] == 503)
    body = get(port, "/healthz")[1]
    assert re.match(r"not ok: \d+ passes in a row were due and did not succeed: the API refuses the key", body), body
    assert get(port, "/livez") == (200, "ok: the scheduler ticks\n")
    checkly.api_key = None
    wait_until(lambda: get(port, "/healthz")[0] == 200)


def test_a_warehouse_that_is_not_migrated_is_exit_2_at_the_start(
    checkly: Simulator, empty_url: str, database: Database, tmp_path: Path
) -> None:
    workers = Workers(environment(checkly.url, empty_url))
    try:
        ended = workers.run("daemon")
    finally:
        workers.close()
    assert ended.process.returncode == 2
    assert "checkly-etl migrate" in ended.err


@on_one_engine
def test_an_address_that_is_taken_is_exit_2_at_the_start(start: Callable[..., Worker]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ended = start(port=taken.getsockname()[1])
        assert ended.wait(15) == 2
    assert "observe.listen" in ended.err
    assert "Address already in use" in ended.err


@on_one_engine
def test_settings_that_are_missing_are_exit_2_at_the_start(start: Callable[..., Worker]) -> None:
    ended = start(CHECKLY_API_KEY="")
    assert ended.wait(15) == 2
    assert "CHECKLY_API_KEY" in ended.err


def test_a_warehouse_that_cannot_be_reached_yet_is_waited_for(checkly: Simulator, tmp_path: Path) -> None:
    from tests.servers import OwnPostgres

    checkly.put_test_session(detail(1), entry(1))
    with OwnPostgres() as server:
        server.stop("fast")
        workers = Workers(environment(checkly.url, server.url) | {"CHECKLY_ETL_SCHEDULE__INTERVAL": "1s"})
        try:
            running = workers.start("daemon")
            time.sleep(3)
            assert running.process.poll() is None
            server.start()
            database = Database(server.url)
            wait_until(lambda: scalar(database, "SELECT count(*) FROM test_sessions") == 1, timeout=60)
            database.close()
            running.process.terminate()
            assert running.wait(20) == 0
        finally:
            workers.close()
    assert "(docs/runbook.md#warehouse)" in running.err


@contextmanager
def listener(path: str) -> Iterator[socket.socket]:
    """systemd's side of NOTIFY_SOCKET."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiving:
        receiving.bind("\0" + path[1:] if path[0] == "@" else path)
        receiving.settimeout(15)
        yield receiving


@on_one_engine
@pytest.mark.parametrize("kind", ["a path", "an abstract name"])
def test_systemd_is_told_of_readiness_life_and_the_end(
    start: Callable[..., Worker], kind: str, tmp_path: Path
) -> None:
    path = str(tmp_path / "notify") if kind == "a path" else f"@checkly-etl-test-{free_port()}"
    with listener(path) as systemd:
        running = start(NOTIFY_SOCKET=path, WATCHDOG_USEC="60000000")
        said = {systemd.recv(100).decode(), systemd.recv(100).decode()}
        assert said == {"READY=1", "WATCHDOG=1"}
        running.process.terminate()
        while (word := systemd.recv(100).decode()) == "WATCHDOG=1":
            continue
        assert word == "STOPPING=1"
        assert running.wait(15) == 0


@on_one_engine
def test_a_short_watchdog_is_told_of_life_twice_as_often(start: Callable[..., Worker], tmp_path: Path) -> None:
    with listener(path := str(tmp_path / "notify")) as systemd:
        running = start(NOTIFY_SOCKET=path, WATCHDOG_USEC="1000000")
        said: list[tuple[str, float]] = []
        while len(said) < 6:
            said.append((systemd.recv(100).decode(), time.monotonic()))
        ticks = [moment for word, moment in said if word == "WATCHDOG=1"]
        assert len(ticks) == 5
        assert max(after - before for before, after in pairwise(ticks)) < 1
        running.process.terminate()
        assert running.wait(15) == 0


@on_one_engine
def test_its_log_for_machines_has_a_line_a_pass_with_the_counters(
    start: Callable[..., Worker], checkly: Simulator, database: Database
) -> None:
    checkly.put_test_session(detail(1), entry(1))
    running = start("--log-format", "json")
    wait_until(lambda: scalar(database, "SELECT count(*) FROM etl_runs WHERE outcome IS NOT NULL") >= 2)
    running.process.terminate()
    assert running.wait(15) == 0
    passes = [line for line in map(json.loads, running.err.splitlines()) if line.get("command") == "sync"]
    assert len(passes) >= 2
    assert passes[0]["test_sessions_saved"] == 1
    assert passes[0]["outcome"] == "ok"
    assert isinstance(passes[0]["seconds"], float)


@on_one_engine
def test_the_command_line_has_no_secret_in_it(start: Callable[..., Worker]) -> None:
    running = start()
    command = Path(f"/proc/{running.process.pid}/cmdline")
    if not command.exists():
        pytest.skip("no /proc here")
    assert "secret" not in command.read_text()
    shown = subprocess.run(["ps", "-o", "args=", "-p", str(running.process.pid)], capture_output=True, text=True)
    assert "cu_" not in shown.stdout


# --- one pass in this process --------------------------------------------------------------------------------------


def test_a_bug_in_a_pass_is_told_and_the_daemon_goes_on(
    make_etl: Callable[..., Etl], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    etl = make_etl()
    state = State(loss_warning_hours=24)

    def broken(*_: object) -> Outcome:
        raise RuntimeError("that cannot be")

    with monkeypatch.context() as patch:
        patch.setattr("etl.pipeline.sync", broken)
        for _ in range(2):
            assert daemon.run_pass(etl, state).bug is not None
    assert not state.is_well()[0]
    daemon.run_pass(etl, state)
    assert state.is_well()[0]


def test_a_schema_that_was_migrated_by_a_newer_release_fails_the_pass_and_not_the_daemon(
    make_etl: Callable[..., Etl], database: Database
) -> None:
    etl, state = make_etl(), State(loss_warning_hours=24)
    with database.writing() as connection:
        connection.exec_driver_sql(f"UPDATE {schema.VERSION_TABLE} SET version_num = '9999'")
    outcome = daemon.run_pass(etl, state)
    assert outcome.word == "failed"
    assert "newer" in str(outcome.error)
    with database.writing() as connection:
        connection.exec_driver_sql(f"UPDATE {schema.VERSION_TABLE} SET version_num = '{schema.HEAD}'")
    assert daemon.run_pass(etl, state).word == "ok"


def test_no_connection_is_open_between_two_passes(make_etl: Callable[..., Etl]) -> None:
    etl = make_etl()
    daemon.run_pass(etl, State(loss_warning_hours=24))
    assert etl.database.engine.pool.checkedin() == 0  # type: ignore[attr-defined]


# --- health --------------------------------------------------------------------------------------------------------


def ended(**fields: object) -> Outcome:
    outcome = Outcome()
    for name, value in fields.items():
        setattr(outcome, name, value)
    return outcome


def test_one_due_time_without_success_is_no_reason_yet_and_two_are() -> None:
    state = State(loss_warning_hours=24)
    state.ended(ended(failures=["down"]), 1.0)
    assert state.is_well()[0]
    state.ended(ended(failures=["down again"]), 1.0)
    assert state.is_well() == (False, "2 passes in a row were due and did not succeed: down again")
    state.ended(ended(warnings=["an inbox is down"]), 1.0)
    assert state.is_well()[0]


def test_a_pass_that_outlasts_two_due_times_is_a_reason() -> None:
    state = State(loss_warning_hours=24)
    state.began(Outcome())
    state.skipped()
    state.skipped()
    is_well, why = state.is_well()
    assert not is_well
    assert "a pass has been going on since" in why


def test_a_pass_that_was_interrupted_says_nothing() -> None:
    state = State(loss_warning_hours=24)
    for _ in range(3):
        state.ended(ended(is_interrupted=True, failures=["stopped"]), 1.0)
    assert state.is_well()[0]


def freshness(**fields: object) -> list[dict[str, object]]:
    nothing: dict[str, object] = dict.fromkeys(("oldest_due_at", "last_success_at", "hours_until_loss"))
    return [{"account_id": ACCOUNT, "due": 0, "scheduled": 0, "leased": 0, "dead": 0, **nothing, **fields}]


@pytest.mark.parametrize(("hours", "is_well"), [(25.0, True), (23.0, False), (-1.0, False), (None, True)])
def test_below_the_loss_warning_is_a_reason(hours: float | None, is_well: bool) -> None:
    state = State(loss_warning_hours=24, accounts=[ACCOUNT])
    state.ended(ended(freshness=freshness(hours_until_loss=hours)), 1.0)
    assert state.is_well()[0] == is_well


def test_loss_comes_nearer_while_no_pass_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    state = State(loss_warning_hours=24, accounts=[ACCOUNT])
    state.ended(ended(freshness=freshness(hours_until_loss=25.0)), 1.0)
    later = time.monotonic() + 2 * 3600
    monkeypatch.setattr("etl.daemon.state.time.monotonic", lambda: later)
    state.ticked()
    assert state.is_well() == (False, "Checkly deletes test sessions that are not exported yet, in 23.0 hours")


def test_a_scheduler_that_no_longer_ticks_is_not_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    state = State(loss_warning_hours=24)
    later = time.monotonic() + 61
    monkeypatch.setattr("etl.daemon.state.time.monotonic", lambda: later)
    assert not state.is_live()[0]
    assert not state.is_well()[0]
    state.ticked()
    assert state.is_live()[0]


# --- HTTP ----------------------------------------------------------------------------------------------------------


@contextmanager
def serving(state: State, token: str | None = None, listen: str = "127.0.0.1:0") -> Iterator[int]:
    with Server(listen, token, state, exposition(state, version="1", schema="2")) as server:
        yield int(server.address.rpartition(":")[2])


def test_metrics_ask_for_the_token_and_probes_do_not() -> None:
    with serving(State(loss_warning_hours=24), token="token-of-the-test") as port:
        assert get(port, "/metrics")[0] == 401
        assert get(port, "/metrics", "another")[0] == 401
        assert get(port, "/metrics", "töken")[0] == 401
        assert get(port, "/metrics", "token-of-the-test")[0] == 200
        assert get(port, "/livez")[0] == get(port, "/healthz")[0] == 200
        assert get(port, "/")[0] == 404
        assert "token-of-the-test" not in get(port, "/metrics")[1]


def test_the_counters_go_on_while_a_pass_is_under_way() -> None:
    state = State(loss_warning_hours=24)
    done, going_on = Outcome(), Outcome()
    done.counters["test_sessions_saved"] = 5
    going_on.counters["test_sessions_saved"] = 2
    with serving(state) as port:
        state.ended(done, 1.0)
        state.began(going_on)
        going_on.inboxes["file x"] = InboxCount(True, 3, 1)
        found = samples(get(port, "/metrics")[1])
        assert found["checkly_etl_test_sessions_saved_total"] == 7
        assert found['checkly_etl_inbox_messages_total{inbox="file x"}'] == 3
        state.ended(going_on, 1.0)
        assert samples(get(port, "/metrics")[1])['checkly_etl_inbox_messages_total{inbox="file x"}'] == 3
        assert samples(get(port, "/metrics")[1])["checkly_etl_test_sessions_saved_total"] == 7


def test_accounts_and_inboxes_are_there_from_the_start() -> None:
    state = State(loss_warning_hours=24, accounts=[ACCOUNT], inboxes=["file x"])
    with serving(state) as port:
        found = samples(get(port, "/metrics")[1])
        assert found[f'checkly_etl_queue{{account_id="{ACCOUNT}",state="dead"}}'] == 0
        assert found['checkly_etl_inbox_rejected_total{inbox="file x"}'] == 0
        assert not any("last_success" in name for name in found)
        (nothing,) = freshness()
        other = [*freshness(due=1), {**nothing, "account_id": None}]
        state.ended(ended(freshness=other, inboxes={"file x": InboxCount(False, 3, 1)}), 2.0)
        found = samples(get(port, "/metrics")[1])
        assert found[f'checkly_etl_queue{{account_id="{ACCOUNT}",state="due"}}'] == 1
        assert found['checkly_etl_queue{account_id="",state="due"}'] == 0, "ids that are not assigned yet"
        assert found['checkly_etl_inbox_up{inbox="file x"}'] == 0
        assert found['checkly_etl_inbox_messages_total{inbox="file x"}'] == 3


def test_it_listens_on_ipv6_as_well() -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    with (
        serving(State(loss_warning_hours=24), listen="[::1]:0") as port,
        urllib.request.urlopen(f"http://[::1]:{port}/livez", timeout=5) as response,
    ):
        assert response.status == 200


def test_a_client_that_says_nothing_holds_nobody_up() -> None:
    with (
        serving(State(loss_warning_hours=24)) as port,
        socket.create_connection(("127.0.0.1", port)) as silent,
    ):
        silent.sendall(b"GET /met")
        assert get(port, "/livez")[0] == 200


def test_another_address_than_loopback_needs_a_token(program: Program) -> None:
    run = program("daemon", CHECKLY_ETL_OBSERVE__LISTEN="0.0.0.0:9464")
    assert run.code == 2
    assert "observe.token" in run.err
