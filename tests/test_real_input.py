"""Against software that nobody here wrote: Prism serving Checkly's official API description, and the official CLI.

Prism plays a Checkly that makes no sense (one answer for every id, a cursor without end, random texts): the exporter
must neither hang, nor crash, nor store anything wrong. The CLI is a client that knows the real API: what it asks of
`checkly-etl simulate` and what it prints must fit what the simulator holds, and what the exporter reads from it.

Both come from npm into /tmp/realclient on first use. Skipped where that cannot be, unless CHECKLY_ETL_TEST_REAL=1.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.conftest import ACCOUNT

ROOT = Path(__file__).parent.parent
TOOLS = ROOT.parent / "shared" / "tools"
SOME_ID = "11111111-1111-4111-8111-111111111111"
ANOTHER_ID = "22222222-2222-4222-8222-222222222222"
NOW = "2026-11-15T12:00:00+00:00"
COMMAND_SECONDS = 90  # no command here may take longer: that would be a hang


def _missing(reason: str) -> NoReturn:
    if os.environ.get("CHECKLY_ETL_TEST_REAL") == "1":
        pytest.fail(f"CHECKLY_ETL_TEST_REAL=1 demands this test, but {reason}", pytrace=False)
    pytest.skip(reason)


def _tool(name: str) -> str:
    path = TOOLS / name
    if not path.is_file():
        _missing(f"there is no ../shared/tools/{name}")
    if shutil.which("npm") is None:
        _missing("npm is not installed")
    return str(path)


@contextmanager
def _alone() -> Iterator[None]:
    """The tools install themselves on first use: not twice at once."""
    with (Path(tempfile.gettempdir()) / "checkly-etl-realclient.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _environment(url: str, folder: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CHECKLY_")}
    return kept | {
        "PYTHONPATH": str(ROOT),
        "CHECKLY_API_URL": url,
        "CHECKLY_ACCOUNT_ID": ACCOUNT,
        "CHECKLY_API_KEY": "cu_secret_key_of_the_tests",
        "CHECKLY_ETL_WAREHOUSE_URL": f"sqlite:///{folder}/warehouse.db",
        "NO_PROXY": "*",
        "no_proxy": "*",
    }


@contextmanager
def _running(command: list[str], log: Path, env: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=env, start_new_session=True
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_until_it_answers(url: str, process: subprocess.Popen[bytes], log: Path, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except urllib.error.HTTPError:
            return  # an answer is an answer
        except OSError:
            time.sleep(0.1)
    _missing(f"{url} never answered: {log.read_text(errors='replace')[-500:]}")


def _get(url: str) -> Any:
    headers = {"Authorization": "Bearer cu_test", "x-checkly-account": ACCOUNT}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as answer:
        return json.load(answer)


# --- the exporter against Prism -------------------------------------------------------------------------------


@contextmanager
def _prism(mode: str, folder: Path, seed: str = "") -> Iterator[str]:
    start = _tool("start_prism.sh")
    port, log = _free_port(), folder / "prism.log"
    url = f"http://127.0.0.1:{port}"
    with ExitStack() as stack:
        with _alone():
            process = stack.enter_context(_running([start, str(port), mode], log, {**os.environ, "SEED": seed}))
            _wait_until_it_answers(url, process, log, seconds=300)
        yield url


class _Exporter:
    """checkly-etl in processes of its own, against `url`, with a warehouse in `folder`."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self.folder = url, folder
        self.must(0, "migrate")

    def __call__(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "etl", *arguments],
            cwd=self.folder,
            env=_environment(self.url, self.folder),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
        )
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode in (0, 1, 2, 3), done
        return done

    def must(self, code: int, *arguments: str, stdin: str = "") -> str:
        """Run a command that must end with this exit code; its stdout."""
        done = self(*arguments, stdin=stdin)
        assert done.returncode == code, (arguments, done.returncode, done.stdout, done.stderr)
        return done.stdout

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        connection = sqlite3.connect(self.folder / "warehouse.db")
        try:
            return connection.execute(sql).fetchall()
        finally:
            connection.close()

    def stored(self) -> set[str]:
        return {id_ for (id_,) in self.query("SELECT test_session_id FROM test_sessions")}

    def assert_every_row_is_of_its_own_document(self) -> None:
        payloads = self.query("SELECT document_id, body FROM etl_payloads WHERE kind = 'test_session'")
        assert {id_ for id_, _ in payloads} == self.stored()
        for id_, body in payloads:
            assert json.loads(body)["testSessionId"].lower() == id_


def test_one_answer_for_everything_is_stored_once_and_a_list_without_end_is_an_error(tmp_path: Path) -> None:
    with _prism("static", tmp_path) as url:
        answered = str(_get(f"{url}/v1/test-sessions/{SOME_ID}")["testSessionId"]).lower()
        listed = {entry["id"].lower() for entry in _get(f"{url}/v1/test-sessions")["entries"]}
        assert answered not in {SOME_ID, ANOTHER_ID}
        exporter = _Exporter(url, tmp_path)

        first = json.loads(exporter.must(3, "sync", "--json"))
        assert first["outcome"] == "failed"
        assert "cursor repeats" in first["error"]

        exporter.must(0, "enqueue", SOME_ID, f"https://app.checklyhq.com/test-sessions/{ANOTHER_ID}", answered)
        json.loads(exporter.must(3, "sync", "--json"))
        again = json.loads(exporter.must(3, "backfill", "--since", "1d", "--json"))
        assert "cursor repeats" in again["error"]

        assert exporter.stored() <= {answered}
        exporter.assert_every_row_is_of_its_own_document()
        waiting = dict(exporter.query("SELECT test_session_id, last_error FROM etl_queue WHERE state = 'queued'"))
        assert waiting.keys() >= {SOME_ID, ANOTHER_ID, *listed} - {answered}, "no session is blamed for it for good"

        assert "FAILED" not in exporter.must(1, "doctor"), "it warns of what may be lost alone"
        assert exporter.must(0, "status")


def test_the_descriptions_own_example_of_a_test_session_is_exported(tmp_path: Path) -> None:
    with _prism("static", tmp_path) as url:
        answered = str(_get(f"{url}/v1/test-sessions/{SOME_ID}")["testSessionId"]).lower()
        exporter = _Exporter(url, tmp_path)
        exporter.must(0, "enqueue", answered)
        exporter("sync")
        assert exporter.stored() == {answered}


@pytest.mark.parametrize("seed", ["1", "2", "3"])
def test_a_random_document_that_fits_the_description_is_stored_or_says_why_not(tmp_path: Path, seed: str) -> None:
    with _prism("dynamic", tmp_path, seed) as url:
        answered = str(_get(f"{url}/v1/test-sessions/{SOME_ID}")["testSessionId"]).lower()
        exporter = _Exporter(url, tmp_path)
        exporter.must(0, "enqueue", SOME_ID, answered)
        exporter("sync", "--max-time", "20s", "--json")
        assert exporter.stored() == {answered}
        exporter.assert_every_row_is_of_its_own_document()
        exporter.must(0, "replay")
        assert exporter.stored() == {answered}


def test_answers_that_are_random_each_time_never_crash_it_or_hold_it(tmp_path: Path) -> None:
    with _prism("dynamic", tmp_path) as url:
        exporter = _Exporter(url, tmp_path)
        exporter.must(0, "enqueue", SOME_ID, ANOTHER_ID)
        began = time.monotonic()
        exporter("sync", "--max-time", "20s", "--json")
        assert time.monotonic() - began < 45, "--max-time 20s and schedule.grace 20s are over"
        exporter("doctor")
        exporter.must(0, "status")
        exporter.assert_every_row_is_of_its_own_document()


# --- the official CLI against the simulator -------------------------------------------------------------------


class _Cli:
    """The official Checkly CLI, its only knowledge of us the simulator's URL."""

    def __init__(self, url: str) -> None:
        self.url, self._script = url, _tool("official_cli.sh")
        with _alone():
            version = self._run("--version", seconds=300)
        if version.returncode != 0:
            _missing(f"the official CLI does not start: {version.stderr[-500:]}")

    def _run(self, *arguments: str, seconds: float = COMMAND_SECONDS) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self._script, self.url, *arguments],
            env={**os.environ, "CHECKLY_ACCOUNT_ID": ACCOUNT},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
        )

    def __call__(self, *arguments: str) -> str:
        done = self._run("test-sessions", *arguments)
        assert done.returncode == 0, (arguments, done.stdout, done.stderr)
        return done.stdout

    def json(self, *arguments: str) -> Any:
        return json.loads(self(*arguments, "-o", "json"))

    def ids(self, *arguments: str) -> list[str]:
        return [entry["id"] for entry in self.json("list", *arguments)["data"]]

    def refused(self, *arguments: str) -> str:
        done = self._run("test-sessions", *arguments)
        assert done.returncode != 0, done.stdout
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def simulator_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`checkly-etl simulate` as a user starts it, its clock fixed."""
    _tool("official_cli.sh")
    folder, port = tmp_path_factory.mktemp("simulate"), _free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "etl", "simulate", "--port", str(port), "--now", NOW, "--rate-limit", "0"]
    with _running(command, folder / "log", _environment(url, folder)) as process:
        _wait_until_it_answers(url, process, folder / "log", seconds=30)
        yield url


@pytest.fixture(scope="module")
def cli(simulator_url: str) -> _Cli:
    return _Cli(simulator_url)


@pytest.fixture(scope="module")
def entries(simulator_url: str) -> list[dict[str, Any]]:
    """Every list entry of the simulated account, in the API's order."""
    found: list[dict[str, Any]] = []
    cursor = ""
    while True:
        page = _get(f"{simulator_url}/v1/test-sessions?limit=100{cursor}")
        found += page["entries"]
        if not page.get("nextId"):
            return found
        cursor = f"&nextId={page['nextId']}"


def _ids(entries: list[dict[str, Any]]) -> list[str]:
    return [entry["id"] for entry in entries]


def test_the_cli_lists_what_the_simulator_holds(cli: _Cli, entries: list[dict[str, Any]]) -> None:
    assert len(entries) > 500
    assert cli.ids() == _ids(entries[:20])
    table = cli("list", "--limit", "5")
    assert all(id_ in table for id_ in _ids(entries[:5]))
    assert entries[5]["id"] not in table


def test_the_cli_pages_through_the_list(cli: _Cli, entries: list[dict[str, Any]]) -> None:
    seen: list[str] = []
    more: tuple[str, ...] = ()
    for _ in range(3):
        page = cli.json("list", "--limit", "40", *more)
        seen += _ids(page["data"])
        more = ("--cursor", page["pagination"]["nextId"])
    assert seen == _ids(entries[:120])


def test_the_clis_filters_are_understood(cli: _Cli, entries: list[dict[str, Any]]) -> None:
    def expected(**wanted: set[str]) -> list[str]:
        return _ids([e for e in entries if all(e[name] in values for name, values in wanted.items())])[:100]

    branch = next(e["branchName"] for e in entries if e["branchName"] not in (None, "main"))
    group = next(e["errorGroupIds"][0] for e in entries if e["errorGroupIds"])
    assert cli.ids("-l", "100", "--status", "running") == expected(status={"RUNNING"})
    assert cli.ids("-l", "100", "--status", "failed", "--status", "cancelled") == expected(
        status={"FAILED", "CANCELLED"}
    )
    assert cli.ids("-l", "100", "--branch", branch) == expected(branchName={branch})
    assert cli.ids("-l", "100", "--provider", "vercel", "--branch", branch, "--branch", "main") == expected(
        provider={"VERCEL"}, branchName={branch, "main"}
    )
    assert (
        cli.ids("-l", "100", "--error-group", group)
        == _ids([e for e in entries if group in e["errorGroupIds"]])[:100]
    )


def test_the_clis_range_is_that_of_creation(cli: _Cli, entries: list[dict[str, Any]]) -> None:
    since, until = datetime(2026, 11, 10, tzinfo=UTC), datetime(2026, 11, 12, tzinfo=UTC)
    inside = [e for e in entries if since <= datetime.fromisoformat(e["created_at"]) < until]
    assert 0 < len(inside) <= 100
    assert cli.ids("-l", "100", "--from", since.isoformat(), "--to", until.isoformat()) == _ids(inside)


def test_the_cli_gets_a_test_session_its_results_and_error_groups(
    cli: _Cli, simulator_url: str, entries: list[dict[str, Any]]
) -> None:
    id_ = next(e["id"] for e in entries if e["status"] == "FAILED" and e["errorGroupIds"])
    detail = _get(f"{simulator_url}/v1/test-sessions/{id_}")
    shown = cli.json("get", id_)
    assert (shown["testSessionId"], shown["status"], shown["errorGroupIds"]) == (
        id_,
        "FAILED",
        detail["errorGroupIds"],
    )
    result_ids = [result["testSessionResultId"] for result in detail["results"]]
    assert [result["testSessionResultId"] for result in shown["results"]] == result_ids

    page = cli("get", id_)
    assert all(result_id in page for result_id in result_ids)

    bad = next(result for result in detail["results"] if result["errorGroupIds"])
    result = cli.json("get", id_, "--result", bad["testSessionResultId"])
    assert result["testSessionResultId"] == bad["testSessionResultId"]
    assert result["sequenceId"]

    group = cli.json("get", id_, "--error-group", bad["errorGroupIds"][0])
    assert group == _get(f"{simulator_url}/v1/test-session-error-groups/{bad['errorGroupIds'][0]}")
    assert cli("get", id_, "--result", bad["testSessionResultId"])
    assert cli("get", id_, "--error-group", bad["errorGroupIds"][0], "--full-error")


def test_the_cli_is_told_that_a_test_session_does_not_exist(cli: _Cli) -> None:
    assert "does not exist" in cli.refused("get", SOME_ID)


def test_what_the_cli_prints_can_be_enqueued_and_is_exported(
    cli: _Cli, simulator_url: str, entries: list[dict[str, Any]], tmp_path: Path
) -> None:
    exporter = _Exporter(simulator_url, tmp_path)
    failed = [e["id"] for e in entries if e["status"] == "FAILED"]

    exporter.must(0, "enqueue", "-", stdin=cli("list", "-l", "5", "--status", "failed", "-o", "json"))
    assert {id_ for (id_,) in exporter.query("SELECT test_session_id FROM etl_queue")} == set(failed[:5])

    # The page of a session names its results, checks and error groups as well.
    exporter.must(0, "enqueue", "-", stdin=cli("get", failed[7]))
    wanted = {*failed[:5], failed[7]}
    assert {id_ for (id_,) in exporter.query("SELECT test_session_id FROM etl_queue")} == wanted

    exporter("sync", "--max-time", "60s")
    assert exporter.stored() >= wanted
