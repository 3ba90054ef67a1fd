"""The command line: what a user types, reads and gets back as an exit code."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from etl import accounts, documents, session_queue, warehouse
from etl.cli.arguments import texts_of
from etl.cli.composition import Signalled
from etl.database import Database
from etl.normalize import Drift
from etl.simulator import Simulator, World
from tests.conftest import ACCOUNT, ENGINES, KEY, Program, Run, environment, rows, scalar
from tests.documents import detail, entry, result, uuid

NO_CHECKLY = {"CHECKLY_API_KEY": "", "CHECKLY_ACCOUNT_ID": ""}


# --- what bad input gets ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [("CHECKLY_API_KEY",), ("CHECKLY_ACCOUNT_ID",), tuple(NO_CHECKLY)])
def test_a_missing_key_or_account_is_one_message_that_names_both_variables(
    program: Program, missing: tuple[str, ...]
) -> None:
    run = program("sync", **dict.fromkeys(missing, ""))
    assert run.code == 2
    assert run.err.count("checkly-etl:") == 1
    assert "CHECKLY_API_KEY" in run.err
    assert "CHECKLY_ACCOUNT_ID" in run.err
    assert program("sync", "--json", **dict.fromkeys(missing, "")).json["exit_code"] == 2


def test_a_wrong_key_exits_3_with_no_dead_letter_and_nothing_lost(
    program: Program, simulator: Simulator, database: Database
) -> None:
    simulator.api_key = "another"
    program("enqueue", uuid(1))
    run = program("sync", "--json")
    assert run.code == run.json["exit_code"] == 3
    assert run.json["outcome"] == "failed"
    assert "CHECKLY_API_KEY" in run.err
    assert rows(database, "SELECT state, attempts FROM etl_queue") == [{"state": "queued", "attempts": 0}]


def test_all_mistakes_of_the_settings_are_told_at_once(program: Program, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("export:\n  lookbak: 2d\n  concurrency: many\nobserve: {loss_warning: soon}\n")
    run = program("sync", "--config", str(file), CHECKLY_ETL_EXPORT__LEASE="5", CHECKLY_ETL_EXPORT__SPEED="1")
    assert run.code == 2
    for part in ("lookbak", "concurrency", "loss_warning", "EXPORT__LEASE", "EXPORT__SPEED"):
        assert part in run.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("backfill",), "--since"),
        (("backfill", "--since", "yesterday"), "--since"),
        (("backfill", "--since", "1d", "--until", "2d"), "--until"),
        (("prune", "--before", "2999-01-01"), "--before 2999-01-01 00:00 UTC is still to come"),
        (("sync", "--max-time", "10"), "--max-time"),
        (("sync", "foo"), "unrecognized arguments: foo; see: checkly-etl sync --help"),
        (("dead", "list", "-q", "--foo"), "unrecognized arguments: --foo; see: checkly-etl dead list --help"),
        (("snyc",), "did you mean sync?; see: checkly-etl --help"),
        (("dead", "lst"), "did you mean list?; see: checkly-etl dead --help"),
        (("sync", "--jsno"), "unrecognized arguments: --jsno; did you mean --json?; see: checkly-etl sync --help"),
        (("--quiet", "report", "--verbose", "--outptu=x"), "did you mean --output?; see: checkly-etl report --help"),
        (("--config", "", "status"), "--config: is empty: name a file, or leave it out"),
        (("frobnicate",), "frobnicate"),
        ((), "COMMAND"),
        (("--config", "nowhere.yaml", "status"), "nowhere.yaml"),
        (("dead", "retry"), "--all"),
        (("dead", "show"), "dead list"),
        (("dead", "retry", "nonsense"), "nonsense"),
    ],
)
def test_wrong_usage_exits_2_with_a_message_and_no_traceback(
    program: Program, arguments: tuple[str, ...], said: str
) -> None:
    run = program(*arguments)
    assert run.code == 2
    assert said in run.err
    assert "Traceback" not in run.err
    assert run.out == ""


def test_two_bad_dates_are_one_failure_with_two_problems(program: Program) -> None:
    run = program("backfill", "--since", "x", "--until", "y")
    assert (run.code, run.err.count("checkly-etl: --")) == (2, 2)


def test_nonsense_is_refused_and_the_good_ids_of_the_same_call_are_kept(
    program: Program, database: Database, tmp_path: Path
) -> None:
    report = tmp_path / "checkly-json-report.json"
    report.write_text(f'{{"testSessionId": "{uuid(2)}"}}')
    link = f"https://app.checklyhq.com/accounts/{ACCOUNT}/test-sessions/{uuid(3)}"
    run = program("enqueue", uuid(1).upper(), "nonsense", str(report), link)
    assert run.code == 2
    assert "nonsense" in run.err
    queued = {str(row["test_session_id"]) for row in rows(database, "SELECT test_session_id FROM etl_queue")}
    assert queued == {uuid(1), uuid(2), uuid(3)}


def test_stdin_is_read_for_a_dash(
    program: Program, database: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    log = tmp_path / "ci.log"
    log.write_text(f"ok\nTest session ID: {uuid(5)}\n" + "nothing to see here\n" * 10_000)
    with log.open() as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        run = program("enqueue", "-", "--json")
    assert (run.code, run.json["queued"]) == (0, 1)
    assert str(scalar(database, "SELECT test_session_id FROM etl_queue")) == uuid(5)


def enqueue_from(
    program: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, written: bytes, *more: str
) -> Run:
    log = tmp_path / "ids.txt"
    log.write_bytes(written)
    with log.open() as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        return program("enqueue", "-", *more)


def test_lines_with_more_than_ids_are_counted_shown_and_exit_1(
    program: Program, database: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lines = [f"{uuid(1)}, {uuid(2)}", *(f"run {n}: {uuid(n)}" for n in range(3, 8)), uuid(8)]
    run = enqueue_from(program, monkeypatch, tmp_path, "\n".join(lines).encode())
    assert (run.code, run.out) == (1, "3 queued\n")
    assert "5 lines are not taken" in run.err
    assert [f"run {n}: {uuid(n)}" in run.err for n in range(3, 8)] == [True, True, True, False, False]
    queued = {str(row["test_session_id"]) for row in rows(database, "SELECT test_session_id FROM etl_queue")}
    assert queued == {uuid(1), uuid(2), uuid(8)}
    as_json = enqueue_from(program, monkeypatch, tmp_path, "\n".join(lines).encode(), "--json").json
    assert (as_json["queued"], as_json["lines_not_taken"], as_json["exit_code"]) == (3, 5, 1)


def test_a_text_of_which_nothing_is_taken_is_wrong_usage_and_is_shown(
    program: Program, database: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = enqueue_from(program, monkeypatch, tmp_path, f"run 3: {uuid(3)}\n".encode())
    assert run.code == 2
    assert "stdin holds no test session id; 1 line is not taken" in run.err
    assert f"run 3: {uuid(3)}" in run.err
    run = program("enqueue", "https://chkly.link/l/aBc12")
    assert run.code == 2
    assert "Checkly CLI 8.6 or newer" in run.err
    assert scalar(database, "SELECT count(*) FROM etl_queue") == 0


@pytest.mark.parametrize("command", [("enqueue",), ("sync", "--wait")], ids=" ".join)
@pytest.mark.parametrize("length", [0, 26], ids=["whole", "where the quote is cut"])
@pytest.mark.parametrize("taken", [f"{uuid(1)}\n", ""], ids=["beside an id", "alone"])
def test_a_line_that_is_not_taken_is_quoted_without_a_secret(
    program: Program, database: Database, tmp_path: Path, command: tuple[str, ...], length: int, taken: str
) -> None:
    log = tmp_path / "log.txt"
    log.write_text(f"{taken}GET {uuid(9)} {'x' * length} Authorization: Bearer {KEY}\n" * 2)
    run = program(*command, str(log))
    assert "lines are not taken" in run.err
    kept = str(rows(database, "SELECT error FROM etl_runs"))
    assert KEY[:8] not in run.out + run.err + kept
    assert len(kept) < 1_000


def test_the_id_column_of_another_table_is_not_taken_for_test_sessions(program: Program, tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text(f"STATUS  STARTED     NAME  CHECK ID\nPASSED  2026-11-27  home  {uuid(9)}\n")
    run = program("enqueue", str(log))
    assert (run.code, run.out) == (2, "0 queued\n"), run.err


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-16"])
def test_stdin_may_be_utf_16(
    program: Program, database: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, encoding: str
) -> None:
    run = enqueue_from(program, monkeypatch, tmp_path, f"{uuid(1)}\r\n{uuid(2)}\r\n".encode(encoding))
    assert (run.code, run.out) == (0, "2 queued\n")


def test_a_signal_that_interrupts_no_read_ends_the_wait_for_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that comes just before a read begins; here another thread gets it."""
    silent, writing = os.pipe()
    is_heard, is_given_up = threading.Event(), threading.Event()

    def hear(number: int, _frame: object) -> None:
        is_heard.set()
        raise Signalled(number)

    def interrupt() -> None:
        time.sleep(0.3)
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
        if not is_heard.wait(10):
            is_given_up.set()
        os.close(writing)  # a read that goes on ends here

    before = signal.signal(signal.SIGUSR1, hear)
    thread = threading.Thread(target=interrupt)
    try:
        with os.fdopen(silent) as stdin:
            monkeypatch.setattr("sys.stdin", stdin)
            thread.start()
            with pytest.raises(Signalled):
                texts_of(["-"], str)
    finally:
        thread.join()
        signal.signal(signal.SIGUSR1, before)
    assert not is_given_up.is_set()


@pytest.mark.parametrize("command", [("sync",), ("status",), ("enqueue", uuid(1)), ("dead", "list"), ("replay",)])
def test_an_unmigrated_warehouse_exits_2_with_the_command_to_run(
    program: Program, empty_url: str, command: tuple[str, ...]
) -> None:
    run = program(*command, CHECKLY_ETL_WAREHOUSE_URL=empty_url)
    assert run.code == 2
    assert "checkly-etl migrate" in run.err
    if empty_url.startswith("sqlite"):
        assert not Path(empty_url.removeprefix("sqlite:///")).exists(), "only migrate and demo create a file"


def test_a_newer_schema_exits_2_and_says_so(program: Program, database: Database) -> None:
    with database.writing() as connection:
        connection.execute(text("UPDATE etl_schema_version SET version_num = '9999'"))
    for command in ("sync", "migrate"):
        run = program(command)
        assert run.code == 2
        assert "newer" in run.err


def test_migrate_can_be_run_again(program: Program, empty_url: str) -> None:
    first = program("migrate", CHECKLY_ETL_WAREHOUSE_URL=empty_url, **NO_CHECKLY)
    again = program("migrate", CHECKLY_ETL_WAREHOUSE_URL=empty_url, **NO_CHECKLY)
    assert (first.code, again.code) == (0, 0)
    assert first.out.startswith("migrated: ")
    assert again.out.startswith("already current: ")


@pytest.mark.parametrize(
    "url",
    ["postgresql://nobody:sesame-street@127.0.0.1:1/nothing", "sqlite:////dev/null/warehouse.db"],
)
def test_an_unreachable_warehouse_exits_without_a_traceback(program: Program, url: str) -> None:
    for command in (("sync", "--json"), ("migrate",), ("status",)):
        run = program(*command, CHECKLY_ETL_WAREHOUSE_URL=url)
        assert run.code in ((3,) if url.startswith("postgresql") else (2, 3))
        assert "Traceback" not in run.err
        assert "sesame-street" not in run.err + run.out


def test_an_unreachable_api_exits_3_with_no_dead_letter(program: Program, database: Database) -> None:
    program("enqueue", uuid(1))
    run = program("sync", CHECKLY_API_URL="http://127.0.0.1:9", CHECKLY_ETL_CHECKLY__TIMEOUT="2s")
    assert run.code == 3
    assert "cannot be reached" in run.err
    assert "Traceback" not in run.err
    assert rows(database, "SELECT state, attempts FROM etl_queue") == [{"state": "queued", "attempts": 0}]


@pytest.mark.parametrize(
    ("file", "env", "said"),
    [
        ("checkly: {api_key: cu_literal_key}", {}, "checkly.api_key"),
        ("", {"CHECKLY_API_KEY_FILE": "key.txt"}, "CHECKLY_API_KEY_FILE"),
        ("", {"CHECKLY_ETL_WAREHOUSE_URL": "mysql://u:sesame@h/d"}, "PostgreSQL"),
    ],
)
def test_secrets_in_the_wrong_place_and_other_databases_exit_2(
    program: Program, tmp_path: Path, file: str, env: dict[str, str], said: str
) -> None:
    (tmp_path / "config.yaml").write_text(file)
    (tmp_path / "key.txt").write_text("cu_from_a_file\n")
    run = program("sync", **env)
    assert run.code == 2
    assert said in run.err
    assert "cu_literal_key" not in run.err
    assert "sesame" not in run.err


def test_the_example_needs_no_key_for_what_needs_no_api(program: Program, tmp_path: Path) -> None:
    shutil.copy(Path(__file__).parent.parent / "config.example.yaml", tmp_path / "config.yaml")
    for command in (("status",), ("report",), ("replay",), ("migrate",), ("dead", "list"), ("enqueue", uuid(1))):
        assert program(*command, **NO_CHECKLY).code == 0, command
    run = program("sync", CHECKLY_API_KEY="")
    assert run.code == 2
    assert run.err.startswith("checkly-etl: Checkly asks for CHECKLY_API_KEY and CHECKLY_ACCOUNT_ID")


def test_a_key_may_come_from_a_file(program: Program, simulator: Simulator, tmp_path: Path) -> None:
    (tmp_path / "key.txt").write_text("cu_from_a_file\n")
    run = program("doctor", CHECKLY_API_KEY="", CHECKLY_API_KEY_FILE=str(tmp_path / "key.txt"))
    assert run.code == 0
    assert simulator.requests[-1].headers["authorization"] == "Bearer cu_from_a_file"


# --- commands -----------------------------------------------------------------------------------------------------


def test_a_newcomer_gets_from_nothing_to_a_full_warehouse(program: Program, empty_url: str) -> None:
    program.env["CHECKLY_ETL_WAREHOUSE_URL"] = empty_url
    assert program("migrate").code == 0
    assert program("doctor").code == 0
    run = program("sync")
    assert run.code == 0
    assert run.out.startswith("sync ok: test sessions ")
    assert "exported test session" in run.err
    status = program("status")
    assert status.code == 0
    assert "last success   20" in status.out


def test_json_is_one_object_with_the_names_of_the_runs_row(program: Program, database: Database) -> None:
    run = program("sync", "--json")
    row = rows(database, "SELECT * FROM etl_runs")[0]
    for name in ("test_sessions_saved", "test_sessions_unchanged", "results_saved", "api_requests", "throttled_ms"):
        assert run.json[name] == row[name]
    assert (run.json["outcome"], run.json["exit_code"], run.json["error"]) == ("ok", 0, None)
    status = program("status", "--json").json
    assert status["test_sessions"] == run.json["test_sessions_saved"]
    assert status["freshness"][0]["account_id"] == ACCOUNT
    plan = program("backfill", "--since", "3000d", "--plan", "--json").json
    assert plan["to_fetch"] == 0


def test_global_options_stand_before_or_after_the_command(program: Program) -> None:
    before = program("-q", "--log-format", "json", "sync")
    after = program("backfill", "--since", "3000d", "--force", "--log-format", "json", "-v")
    assert before.err == ""
    assert all(line.startswith("{") for line in after.err.splitlines())
    assert after.err


def test_dead_letters_are_listed_shown_retried_and_discarded(
    program: Program, simulator: Simulator, database: Database
) -> None:
    simulator.put_test_session(detail(1, results=[result(1, status=7)]), entry(1))
    for number in (2, 3):
        program("enqueue", uuid(number))
    run = program("sync")
    assert run.code == 1
    assert "checkly-etl dead list" in run.err

    listed = program("dead", "list", "--json").json["dead"]
    assert {letter["error_kind"] for letter in listed} == {"payload", "not_found"}
    shown = program("dead", "show", uuid(1))
    assert "$.results[0].status" in shown.out
    assert "what to do" in shown.out

    assert program("dead", "discard", uuid(2)).out == "1 discarded\n"
    for action in ("show", "retry", "discard"):
        run = program("dead", action, uuid(2))
        assert (run.code, f"was discarded; checkly-etl enqueue --force {uuid(2)}" in run.err) == (2, True), action
    assert program("enqueue", uuid(2)).code == 1, "a discarded one comes back by force only"
    assert program("enqueue", "--force", uuid(2)).code == 0
    program("sync")

    simulator.put_test_session(detail(1), entry(1))
    assert program("dead", "retry", "--all").code == 0
    program("sync")
    assert scalar(database, "SELECT count(*) FROM test_sessions WHERE test_session_id = :id", id=uuid(1)) == 1
    assert program("dead", "retry", uuid(9)).code == 2


def test_status_says_how_many_it_does_not_list(program: Program, database: Database) -> None:
    failures = {session_queue.Failure(uuid(number), "payload", "no good"): 1 for number in range(1, 45)}
    drift = Drift()
    for number in range(21):
        drift.note("test_session", f"$.new{number}", "as in this")
    with database.writing() as connection:
        session_queue.enqueue(connection, [failure.test_session_id for failure in failures])
        session_queue.bury(connection, failures)
        warehouse.save_drift(connection, [drift])
    run = program("status")
    assert "… and 24 more\n" in run.out
    assert "… and 1 more\n" in run.out
    told = program("status", "--json").json
    assert told["not_listed"] == {"dead": 24, "stale": 0, "inbox_rejects": 0, "drift": 1}
    assert [len(told[name]) for name in ("dead", "drift")] == [20, 20]


def test_the_doctor_says_what_does_not_work_and_what_to_do(program: Program, simulator: Simulator) -> None:
    assert program("doctor").code == 0
    simulator.api_key = "another"
    run = program("doctor")
    assert run.code == 3
    assert "CHECKLY_API_KEY" in run.out
    simulator.api_key = None
    simulator.add_fault(match="/v1/test-sessions", kind="status", status=402)
    assert program("doctor").code == 1
    assert program("doctor", CHECKLY_ETL_WAREHOUSE_URL="sqlite:///none.db").code == 2


def test_max_time_ends_a_pass_with_its_claims_given_back(
    program: Program, simulator: Simulator, database: Database
) -> None:
    simulator.add_fault(match="/v1/test-sessions/", kind="delay", seconds=0.3)
    run = program("sync", "--max-time", "1s", "--json", CHECKLY_ETL_EXPORT__CONCURRENCY="2")
    assert (run.code, run.json["outcome"]) == (0, "partial")
    assert scalar(database, "SELECT count(*) FROM etl_queue WHERE state = 'leased'") == 0
    left = scalar(database, "SELECT count(*) FROM etl_queue WHERE state = 'queued'")
    assert left > 0
    assert run.json["error"] == f"stopped by --max-time, {left} test sessions still due"
    assert scalar(database, "SELECT error FROM etl_runs") == run.json["error"]


def test_a_quiet_pass_that_max_time_ends_says_nothing(program: Program, simulator: Simulator) -> None:
    simulator.add_fault(match="/v1/test-sessions/", kind="delay", seconds=0.3)
    run = program("sync", "-q", "--max-time", "1s", CHECKLY_ETL_EXPORT__CONCURRENCY="2")
    assert (run.code, run.out, run.err) == (0, "", "")
    run = program("sync", "--max-time", "1s", CHECKLY_ETL_EXPORT__CONCURRENCY="2")
    assert "stopped before the end" in run.err


@pytest.mark.parametrize(
    "fault", [{"kind": "delay", "seconds": 20}, {"kind": "status", "status": 503, "headers": {"Retry-After": "20"}}]
)
def test_a_pass_in_which_no_call_was_answered_within_max_time_exits_3(
    program: Program, simulator: Simulator, database: Database, fault: dict[str, Any]
) -> None:
    simulator.add_fault(match="/v1/", **fault)
    run = program("sync", "-q", "--max-time", "1s", CHECKLY_ETL_SCHEDULE__GRACE="1s")
    assert run.code == 3
    assert "no call was answered within --max-time" in run.err
    assert scalar(database, "SELECT outcome FROM etl_runs") == "failed"


def test_sessions_about_to_be_lost_make_the_pass_exit_1(
    program: Program, simulator: Simulator, database: Database
) -> None:
    simulator.add_fault(match=f"/v1/test-sessions/{uuid(1)}", kind="status", status=500)
    simulator.put_test_session(detail(1), entry(1))
    assert program("sync", "-q").code == 0
    run = program("sync", "-q", CHECKLY_ETL_CHECKLY__RETENTION="1d")
    assert run.code == 1
    assert "deletes test sessions that are not exported" in run.err


def test_what_another_process_exports_is_not_ours_to_warn_of(program: Program, database: Database) -> None:
    created_at = datetime.now(UTC) - timedelta(hours=160)
    listed = session_queue.Listed(uuid(5), created_at, documents.known(b"{}"))
    with database.writing() as connection:
        accounts.register(connection, uuid(7), name="of another process", retention=timedelta(days=7))
        session_queue.enqueue_listed(connection, [listed], account_id=uuid(7), source=session_queue.DISCOVERY)
    run = program("sync", "-q")
    assert (run.code, run.err) == (0, "")
    run = program("doctor")
    assert run.code == 0, run.out
    assert scalar(database, "SELECT hours_until_loss FROM v_freshness WHERE account_id = :id", id=uuid(7)) < 24


def test_no_secret_reaches_any_output(program: Program, simulator: Simulator, database: Database) -> None:
    from etl.tables import metadata

    simulator.add_fault(kind="status", status=500, probability=0.5)
    for command in (("sync", "-v"), ("status", "--json"), ("doctor",), ("dead", "list"), ("sync", "--json", "-v")):
        run = program(*command)
        assert KEY not in run.out + run.err
    with database.reading() as connection:
        for table in metadata.sorted_tables:
            assert KEY not in str(connection.execute(table.select()).all()), table.name


# --- processes ----------------------------------------------------------------------------------------------------


def start(env: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    """checkly-etl in a process of its own."""
    root = Path(__file__).parent.parent
    return subprocess.Popen(
        [sys.executable, "-m", "etl", *arguments],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(root), "HOME": "/nonexistent", **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Wait for a condition; fails when it does not come."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "what was waited for did not happen"
        time.sleep(0.02)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_pass_with_its_claims_given_back(
    warehouse_url: str, database: Database, small_world: World, number: int, code: int
) -> None:
    with Simulator(small_world, rate_limit=0) as simulator:
        simulator.add_fault(match="/v1/test-sessions/", kind="delay", seconds=0.2)
        process = start(environment(simulator.url, warehouse_url), "sync")
        until(lambda: scalar(database, "SELECT count(*) FROM test_sessions") >= 3)
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert process.returncode == code, err
    assert "Traceback" not in err
    assert out.startswith("sync interrupted")
    assert "run it again" in err
    assert scalar(database, "SELECT count(*) FROM etl_queue WHERE state = 'leased'") == 0
    assert scalar(database, "SELECT count(*) FROM etl_queue WHERE attempts > 0") == 0
    assert rows(database, "SELECT outcome FROM etl_runs") == [{"outcome": "interrupted"}]


def test_the_key_stands_in_no_process_list(warehouse_url: str, small_world: World) -> None:
    with Simulator(small_world, rate_limit=0) as simulator:
        simulator.add_fault(kind="delay", seconds=0.5)
        process = start(environment(simulator.url, warehouse_url), "sync")
        until(lambda: bool(simulator.requests))
        command_line = Path(f"/proc/{process.pid}/cmdline")
        if command_line.exists():
            assert KEY.encode() not in command_line.read_bytes()
        process.terminate()
        process.communicate(timeout=30)


def test_the_simulator_serves_until_it_is_told_to_stop() -> None:
    process = start({}, "simulate", "--port", "0", "--seed", "3", "--now", "2026-01-01", "--api-key", "k")
    assert process.stdout is not None
    assert process.stdout.readline().startswith("A simulated Checkly API answers at http://127.0.0.1:")
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 143
    assert err == ""


def test_the_demo_fills_a_warehouse_and_says_what_is_in_it(tmp_path: Path) -> None:
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-m", "etl", "demo"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(root), "HOME": "/nonexistent"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    for part in (
        "test sessions since",
        "decided executions passed",
        "retry-flaky",
        "Freshest failure",
        "to try next",
    ):
        assert part in done.stdout
    demo = Database(f"sqlite:///{tmp_path}/demo/warehouse.db")
    assert scalar(demo, "SELECT count(*) FROM test_sessions") > 1000
    demo.close()
    page = tmp_path / "demo" / "report.html"
    assert page.as_uri() in done.stdout
    assert page.stat().st_size > 150_000


def test_a_quiet_sync_that_went_well_says_nothing_at_all(program: Program) -> None:
    run = program("sync", "-q")
    assert (run.code, run.out, run.err) == (0, "", "")


@pytest.mark.parametrize("redirection", ["2>&-", ">&-", "| true", "| head -1", "<&-"])
def test_a_closed_stream_changes_neither_the_work_nor_the_exit_code(
    warehouse_url: str, database: Database, small_world: World, redirection: str
) -> None:
    root = Path(__file__).parent.parent
    with Simulator(small_world, rate_limit=0) as simulator:
        env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(root), **environment(simulator.url, warehouse_url)}
        command = f"'{sys.executable}' -m etl sync --json {redirection}; echo ${{PIPESTATUS[0]}} >&2"
        done = subprocess.run(["bash", "-c", command], env=env, capture_output=True, text=True, timeout=60)
    assert done.stderr.splitlines()[-1] == "0", done.stderr
    assert "Traceback" not in done.stderr
    assert scalar(database, "SELECT count(*) FROM test_sessions") > 10


def in_a_shell(command: str, **env: str) -> subprocess.CompletedProcess[str]:
    """`command` in bash, where checkly-etl is this checkout's."""
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parent.parent), **env}
    function = f"checkly-etl() {{ '{sys.executable}' -m etl \"$@\"; }}"
    return subprocess.run(
        ["bash", "-c", f"{function}; {command}"], env=env, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", ["-h", "sync --help", "--version"])
def test_help_that_nobody_reads_to_its_end_is_no_error(command: str, unbuffered: str) -> None:
    done = in_a_shell(f"checkly-etl {command} | true; exit ${{PIPESTATUS[0]}}", PYTHONUNBUFFERED=unbuffered)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", ["status", "status --json", "migrate", "dead list", "enqueue --json 1"])
def test_a_disk_that_is_full_for_the_result_is_told_in_a_sentence(
    command: str, unbuffered: str, new_warehouse: Callable[[str], str]
) -> None:
    env = environment("http://127.0.0.1:9", new_warehouse("sqlite"))
    done = in_a_shell(f"checkly-etl {command} >/dev/full", PYTHONUNBUFFERED=unbuffered, **env)
    assert done.returncode == 2
    assert done.stderr.endswith("checkly-etl: the result cannot be written to stdout: No space left on device\n")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&1 | true", "2>/dev/full >/dev/full"])
@pytest.mark.parametrize("command", ["enqueue junk", "enqueue junk --json", "frobnicate", "frobnicate --json"])
def test_a_problem_counts_when_nobody_can_be_told(
    command: str, redirection: str, new_warehouse: Callable[[str], str]
) -> None:
    env = environment("http://127.0.0.1:9", new_warehouse("sqlite"))
    done = in_a_shell(f"trap '' PIPE; checkly-etl {command} {redirection}; exit ${{PIPESTATUS[0]}}", **env)
    assert done.returncode == 2


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_problem_is_told_and_counts_when_nobody_reads_the_result(
    warehouse_url: str, database: Database, unbuffered: str
) -> None:
    root = Path(__file__).parent.parent
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(root), **environment("http://127.0.0.1:9", warehouse_url)}
    command = f"'{sys.executable}' -m etl enqueue nonsense > >(exec true); echo $? >&2"
    done = subprocess.run(
        ["bash", "-c", f"trap '' PIPE; {command}"],
        env=env | {"PYTHONUNBUFFERED": unbuffered},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr.splitlines()[-1] == "2", done.stderr
    assert "nonsense" in done.stderr


def test_a_hung_call_does_not_hold_the_process_at_its_end(
    warehouse_url: str, database: Database, small_world: World
) -> None:
    with Simulator(small_world, rate_limit=0) as simulator:
        simulator.add_fault(match="/v1/test-sessions/", kind="delay", seconds=40, skip=3)
        env = {**environment(simulator.url, warehouse_url), "CHECKLY_ETL_SCHEDULE__GRACE": "1s"}
        began = time.monotonic()
        process = start(env, "sync", "--max-time", "2s")
        out, err = process.communicate(timeout=30)
        assert time.monotonic() - began < 15
    assert process.returncode == 0, err
    assert out.startswith("sync partial")
    assert scalar(database, "SELECT count(*) FROM etl_queue WHERE state = 'leased'") == 0


def test_every_json_object_tells_its_outcome_and_exit_code(program: Program) -> None:
    program("enqueue", uuid(1))
    program("sync")
    for command in (
        ("status",),
        ("dead", "list"),
        ("dead", "show", "--json", uuid(1)),
        ("dead", "show", uuid(9)),
        ("enqueue", "junk"),
        ("enqueue", uuid(2)),
        ("backfill", "--since", "3000d", "--plan"),
        ("dead", "retry", "-v", uuid(1)),
        ("dead", "discard", "--all"),
        ("replay",),
        ("sync", "--frobnicate"),
    ):
        run = program(*command, "--json")
        assert run.json["exit_code"] == run.code, command
        assert {"outcome", "error"} <= run.json.keys(), command
        assert (run.json["error"] is None) == (run.code == 0), command


@contextmanager
def database_setting(database: Database, setting: str, value: str) -> Iterator[None]:
    """A setting of the PostgreSQL database for new connections, while it lasts."""
    with database.writing() as connection:
        name = connection.execute(text("SELECT current_database()")).scalar_one()
        connection.execute(text(f'ALTER DATABASE "{name}" SET {setting} TO {value}'))
    database.close()
    try:
        yield
    finally:
        with database.writing() as connection:
            connection.execute(text("SET TRANSACTION READ WRITE"))
            connection.execute(text(f'ALTER DATABASE "{name}" RESET {setting}'))


def test_a_warehouse_that_is_read_only_exits_3(program: Program, engine_name: str, database: Database) -> None:
    if engine_name == "sqlite":
        pytest.skip("root may write any file")
    with database_setting(database, "default_transaction_read_only", "on"):
        run = program("sync", "--json")
    assert (run.code, run.json["exit_code"]) == (3, 3)
    assert "read-only" in run.err
    assert "Traceback" not in run.err


def test_a_date_style_of_the_database_changes_nothing(program: Program, engine_name: str, database: Database) -> None:
    if engine_name == "sqlite":
        pytest.skip("SQLite has none")
    with database_setting(database, "datestyle", "'German'"):
        assert program("sync").code == 0
        assert program("status").code == 0


def test_the_demo_replaces_its_own_warehouse_only(program: Program, tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    precious = tmp_path / "demo" / "warehouse.db"
    precious.write_text("precious")
    run = program("demo")
    assert run.code == 2
    assert "demo/warehouse.db" in run.err
    assert precious.read_text() == "precious"


@pytest.mark.parametrize("engine_name", ENGINES[:1], indirect=True)
def test_a_second_demo_in_a_folder_is_refused_while_the_first_one_runs(program: Program, tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    folder = os.open(tmp_path / "demo", os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)  # as the first one does
        run = program("demo")
    finally:
        os.close(folder)
    assert run.code == 2
    assert f"another demo runs in {tmp_path / 'demo'}" in run.err
    assert list((tmp_path / "demo").iterdir()) == []


def test_a_refused_key_is_named_by_its_account_and_variable(program: Program, simulator: Simulator) -> None:
    simulator.api_key = "another"
    run = program("sync")
    assert ACCOUNT in run.err
    assert "CHECKLY_API_KEY" in run.err


def test_a_password_that_is_a_common_word_changes_no_key_of_a_json_object(program: Program) -> None:
    run = program("status", "--json", HTTP_PROXY="http://u:test@127.0.0.1:1", HTTPS_PROXY="http://u:null@127.0.0.1:1")
    assert {"test_sessions", "outcome", "error"} <= run.json.keys()
    assert run.json["error"] is None


# --- where it is started ------------------------------------------------------------------------------------------

# Root without its right to enter any folder, as any other user is.
WITHOUT_RIGHTS = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")


def from_folder(folder: str, *command: str, **env: str) -> Run:
    """checkly-etl started in a folder that is closed to it, or one that is gone."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("only root can close a folder behind itself")
    make = {"closed": "mkdir closed && cd closed && chmod 000 .", "gone": "mkdir gone && cd gone && rmdir ../gone"}
    done = subprocess.run(
        ["bash", "-c", f'{make[folder]} && exec "$@"', "-", *WITHOUT_RIGHTS, sys.executable, "-m", "etl", *command],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parent.parent), **env},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return Run(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("command", ["status", "doctor"])
@pytest.mark.parametrize("folder", ["closed", "gone"])
def test_a_folder_that_cannot_be_entered_does_not_matter_to_who_needs_nothing_in_it(
    folder: str,
    command: str,
    new_warehouse: Callable[[str], str],
    simulator: Simulator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    run = from_folder(folder, command, **environment(simulator.url, new_warehouse("sqlite")))
    assert (run.code, run.err) == (0, "")


@pytest.mark.parametrize("command", ["status", "migrate", "doctor", "demo", "report"])
@pytest.mark.parametrize(
    ("folder", "said"),
    [
        ("closed", "by this user|this user may not|Permission denied"),
        ("gone", "in the current folder, and that is gone|the folder demo cannot be used here"),
    ],
)
def test_a_warehouse_in_a_folder_that_cannot_be_entered_is_told_in_a_sentence(
    folder: str, said: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = from_folder(folder, command, CHECKLY_API_URL="http://127.0.0.1:9")
    assert run.code == (2 if folder == "gone" or command in ("doctor", "demo") else 3)
    assert "Traceback" not in run.err
    assert re.search(said, run.err + run.out)
