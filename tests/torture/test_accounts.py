"""Several accounts (`checkly.accounts`): each with its key, budget, lease and watermark; one in trouble does not
stop the others, and says which one it is. And the retention guard of each."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import urllib3
from sqlalchemy import text

from etl import accounts, documents, session_queue
from etl.database import Database
from etl.simulator import Simulator, World
from tests.conftest import NOW, rows, scalar
from tests.documents import detail, entry, uuid
from tests.harness import Worker, Workers, wait_until, workers

FIRST, SECOND, THIRD, STRANGER = (
    f"{digit * 8}-{digit * 4}-4{digit * 3}-8{digit * 3}-{digit * 12}" for digit in "1239"
)
ACCOUNTS = (FIRST, SECOND, THIRD)
KEYS = {"KEY_ONE": "cu_first_key", "KEY_TWO": "cu_second_key", "KEY_THREE": "cu_third_key"}
KEY_OF = dict(zip(ACCOUNTS, KEYS.values(), strict=True))
NAMES = {FIRST: "shop", SECOND: "payments", THIRD: "internal"}
BUDGETS = {FIRST: 400, SECOND: 300, THIRD: 200}
LIST = "/v1/test-sessions"
SQLITE_TIME = "%Y-%m-%d %H:%M:%S.%f"


@dataclass
class Company:
    """One Checkly for each account, because faults are a Checkly's; `url` is a door that sorts them."""

    checklies: dict[str, Simulator]
    url: str

    def __getitem__(self, account_id: str) -> Simulator:
        return self.checklies[account_id]


@pytest.fixture(scope="module")
def worlds() -> dict[str, World]:
    """Three small ones of different seeds: no session of one is in another."""
    return {id_: World(seed=seed, now=NOW, days=1, account_id=id_) for seed, id_ in enumerate(ACCOUNTS, 1)}


@pytest.fixture
def company(worlds: dict[str, World]) -> Iterator[Company]:
    from tests.torture.test_accounts import Door

    checklies = {id_: Simulator(world, rate_limit=0) for id_, world in worlds.items()}
    for simulator in checklies.values():
        simulator.__enter__()
    with Door({id_: simulator.url for id_, simulator in checklies.items()}) as door:
        yield Company(checklies, door.url)
    for simulator in checklies.values():
        simulator.__exit__(None, None, None)


class Door:
    """Passes a call on to the Checkly of its account; refuses a key that is not the account's, as Checkly does."""

    def __init__(self, urls: dict[str, str]) -> None:
        pool = urllib3.PoolManager(maxsize=32)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def log_message(self, format: str, *args: Any) -> None:
                """Quiet."""

            def do_GET(self) -> None:
                account = (self.headers["x-checkly-account"] or "").lower()
                key = (self.headers["Authorization"] or "").removeprefix("Bearer ")
                status, body, headers = 401, b"{}", urllib3.HTTPHeaderDict()
                if KEY_OF.get(account) == key:
                    try:
                        answer = pool.request(
                            "GET",
                            urls[account] + self.path,
                            headers=dict(self.headers),
                            retries=False,
                            redirect=False,
                        )
                    except urllib3.exceptions.HTTPError:
                        self.close_connection = True
                        return
                    status, body, headers = answer.status, answer.data, answer.headers
                self.send_response(status)
                if "Retry-After" in headers:
                    self.send_header("Retry-After", headers["Retry-After"])
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self._pool = pool
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Door:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._pool.clear()


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    """Three accounts, the first is the default one."""
    return _config(tmp_path / "accounts.yaml")


def _config(
    path: Path,
    retention: dict[str, str] | None = None,
    ids: tuple[str, ...] = ACCOUNTS,
    budgets: dict[str, int] = BUDGETS,
) -> Path:
    lines = ["checkly:", "  retention: 3600d", "  accounts:"]
    for id_, key in zip(ACCOUNTS, KEYS, strict=True):
        if id_ in ids:
            lines += [f"    - id: {id_}", f"      name: {NAMES[id_]}", f"      api_key_env: {key}"]
            lines += [f"      requests_per_minute: {budgets[id_]}"]
            lines += [f"      retention: {retention[id_]}"] if retention else []
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def some(company: Company, warehouse_url: str) -> Iterator[Workers]:
    """Workers with the three keys, and neither CHECKLY_API_KEY nor CHECKLY_ACCOUNT_ID."""
    with workers(company.url, warehouse_url, **KEYS) as started:
        started.secrets = (*started.secrets, *KEYS.values())
        started.env = {
            name: value
            for name, value in started.env.items()
            if name not in ("CHECKLY_API_KEY", "CHECKLY_ACCOUNT_ID", "CHECKLY_ETL_CHECKLY__RETENTION")
            and "REQUESTS_PER_MINUTE" not in name
        }
        yield started


def _visible(world: World) -> set[str]:
    return {id_ for created, id_ in world.timetable() if created <= world.at()}


def _exported(database: Database) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {id_: set() for id_ in ACCOUNTS}
    for row in rows(database, "SELECT account_id, test_session_id FROM test_sessions"):
        found[str(row["account_id"])].add(str(row["test_session_id"]))
    return found


def _account(database: Database, id_: str) -> dict[str, Any]:
    return {str(row["account_id"]): row for row in rows(database, "SELECT * FROM etl_accounts")}[id_]


def _queue(database: Database, id_: str, account_id: str) -> None:
    """One session of an account, known by its id only."""
    with database.writing() as connection:
        session_queue.enqueue(connection, [id_])
        connection.execute(text("UPDATE etl_queue SET account_id = :account_id"), {"account_id": account_id})


# --- each its own -------------------------------------------------------------------------------------------------


def test_each_account_has_its_key_its_budget_its_lease_and_its_watermark(
    some: Workers, config_file: Path, company: Company, worlds: dict[str, World], database: Database
) -> None:
    worker = some.run("sync", "--config", str(config_file))
    assert worker.process.returncode == 0, worker.err
    assert _exported(database) == {id_: _visible(world) for id_, world in worlds.items()}
    for id_ in ACCOUNTS:
        row = _account(database, id_)
        assert (row["name"], row["discovery_token"]) == (NAMES[id_], None)
        assert row["discovered_until"] is not None
        assert row["last_success_at"] is not None
        spent = sum(
            row["calls"] for row in rows(database, "SELECT * FROM etl_rate_grants") if str(row["account_id"]) == id_
        )
        assert spent >= len(company[id_].requests) > 0, "each pays from its own budget"
    listed = rows(database, "SELECT DISTINCT account_id FROM etl_payloads WHERE kind = 'test_session'")
    assert {str(row["account_id"]) for row in listed} == set(ACCOUNTS)


def test_a_budget_that_is_spent_holds_up_its_own_account_only(
    some: Workers, config_file: Path, worlds: dict[str, World], database: Database
) -> None:
    with database.writing() as connection:
        accounts.register(connection, FIRST, name="shop", retention=timedelta(days=3600))
        accounts.take(connection, FIRST, wanted=400, per_minute=400)
    first_only = some.start("sync", "--config", str(config_file), "--max-time", "3s", "-v")
    with database.writing() as connection:
        connection.execute(text("UPDATE etl_accounts SET name = name"))
    others = _config(config_file.with_name("others.yaml"), ids=(SECOND, THIRD))
    assert some.run("sync", "--config", str(others)).process.returncode == 0, some.started[-1].err
    assert first_only.wait() == 1, f"its list was never read, which is near loss: {first_only.err}"
    exported = _exported(database)
    assert exported[FIRST] == set()
    assert exported[SECOND] == _visible(worlds[SECOND])


# --- side by side -------------------------------------------------------------------------------------------------


def test_a_backlog_beyond_its_budget_holds_up_no_other_account(
    some: Workers, tmp_path: Path, company: Company, worlds: dict[str, World], database: Database
) -> None:
    """With the accounts one after the other, the second was asked nothing in two passes, and nobody said so."""
    file = _config(tmp_path / "small.yaml", budgets=BUDGETS | {FIRST: 5})
    assert len(_visible(worlds[FIRST])) > 5
    worker = some.run("sync", "--config", str(file), "--max-time", "15s", "--json", timeout=60)
    assert worker.process.returncode == 0, worker.err
    exported = _exported(database)
    assert exported[SECOND] == _visible(worlds[SECOND])
    assert exported[THIRD] == _visible(worlds[THIRD])
    assert 0 < len(exported[FIRST]) < len(_visible(worlds[FIRST]))
    told = json.loads(worker.out)
    assert told["outcome"] == "partial"
    assert f"of account {FIRST}" in told["error"], "an account that was not finished is said"
    assert _account(database, SECOND)["last_success_at"] is not None
    assert _account(database, FIRST)["last_success_at"] is None


def test_an_account_that_hangs_holds_up_no_other_account(
    some: Workers, config_file: Path, company: Company, worlds: dict[str, World], database: Database
) -> None:
    company[FIRST].add_fault(match="/v1/", kind="delay", seconds=120)
    worker = some.run("sync", "--config", str(config_file), "--max-time", "15s", "--json", timeout=90)
    assert _exported(database)[SECOND] == _visible(worlds[SECOND])
    assert _exported(database)[THIRD] == _visible(worlds[THIRD])
    # Its list was never read to its end, so nobody knows what Checkly is about to delete.
    assert worker.process.returncode == 1, worker.err
    (near,) = [line for line in worker.err.splitlines() if "could not be read to its end" in line]
    assert FIRST in near
    assert "never before" in near


def test_a_list_that_was_not_read_is_near_loss_only_when_retention_is(
    some: Workers, tmp_path: Path, company: Company, database: Database
) -> None:
    file = _config(tmp_path / "plans.yaml", retention=dict.fromkeys(ACCOUNTS, "7d"))
    assert some.run("sync", "--config", str(file)).process.returncode == 0
    company[FIRST].add_fault(match="/v1/", kind="delay", seconds=120)
    for days, code in ((5, 0), (6.5, 1)):
        moment = datetime.now(UTC) - timedelta(days=days)
        with database.writing() as connection:
            until = {"until": moment.strftime("%Y-%m-%d %H:%M:%S.%f+00" if not database.is_sqlite else SQLITE_TIME)}
            connection.execute(text("UPDATE etl_accounts SET discovered_until = :until"), until)
        worker = some.run("sync", "--config", str(file), "--max-time", "5s", timeout=90)
        assert worker.process.returncode == code, worker.err
        assert ("could not be read to its end" in worker.err) == bool(code)


def test_one_task_per_account_asks_only_for_its_own(
    some: Workers, config_file: Path, company: Company, worlds: dict[str, World], database: Database
) -> None:
    """Its task needs no key but its own."""
    keys: dict[str, Any] = {"KEY_ONE": "", "KEY_THREE": ""}
    worker = some.run("sync", "--config", str(config_file), "--account", NAMES[SECOND], **keys)
    assert worker.process.returncode == 0, worker.err
    assert _exported(database) == {FIRST: set(), SECOND: _visible(worlds[SECOND]), THIRD: set()}
    assert company[FIRST].requests == company[THIRD].requests == []
    both = ("--account", FIRST, "--account", THIRD.upper())
    worker = some.run("backfill", "--since", "3000d", "--config", str(config_file), *both)
    assert worker.process.returncode == 0, worker.err
    assert _exported(database) == {id_: _visible(world) for id_, world in worlds.items()}
    worker = some.run("sync", "--config", str(config_file), "--account", "nobody")
    assert worker.process.returncode == 2
    assert "'nobody' is not in the settings; they have: shop, payments, internal" in worker.err


# --- one in trouble -----------------------------------------------------------------------------------------------


def _break(company: Company, id_: str, trouble: str) -> dict[str, Any]:
    """The trouble, and the settings of the worker that go with it."""
    match trouble:
        case "refused":
            return {list(KEYS)[ACCOUNTS.index(id_)]: "cu_a_key_of_yesterday"}
        case "paused":
            company[id_].add_fault(match=LIST, kind="status", status=429, headers={"Retry-After": "3000"})
        case "outage":
            company[id_].add_fault(match="/v1/", kind="reset")
        case "forbidden":
            company[id_].add_fault(match="/v1/", kind="status", status=403)
        case "plan":
            company[id_].add_fault(match="/v1/", kind="status", status=402)
    return {}


@pytest.mark.parametrize("trouble", ["refused", "paused", "outage", "forbidden"])
@pytest.mark.parametrize("which", ACCOUNTS, ids=["first", "second", "third"])
def test_an_account_in_trouble_does_not_stop_the_others_and_is_named(
    trouble: str,
    which: str,
    some: Workers,
    config_file: Path,
    company: Company,
    worlds: dict[str, World],
    database: Database,
) -> None:
    """Exit 3; the others export everything; afterwards it catches up."""
    env = _break(company, which, trouble)
    worker = some.run("sync", "--config", str(config_file), "--json", timeout=60, **env)
    assert worker.process.returncode == 3, worker.err
    told = json.loads(worker.out)
    assert told["outcome"] == "failed"
    assert which in told["error"] or NAMES[which] in told["error"], f"which account? {told['error']}"
    for other in ACCOUNTS:
        if other != which:
            assert other not in told["error"]
            assert _exported(database)[other] == _visible(worlds[other])
            assert _account(database, other)["last_success_at"] is not None
    assert _account(database, which)["last_success_at"] is None
    assert _account(database, which)["discovery_token"] is None, "its lease is given back"
    assert _account(database, which)["discovered_until"] is None, "it has not seen the list"

    company[which].clear_faults()
    if trouble == "paused":
        again = some.run("sync", "--config", str(config_file), timeout=60)
        assert again.process.returncode == 3, "the pause is kept"
        assert sum(request.status == 429 for request in company[which].requests) == 1, "and nobody asks meanwhile"
        with database.writing() as connection:
            connection.execute(text("UPDATE etl_accounts SET paused_until = NULL"))
    assert some.run("sync", "--config", str(config_file)).process.returncode == 0, some.started[-1].err
    assert _exported(database)[which] == _visible(worlds[which])


def test_an_account_whose_plan_lacks_the_list_goes_on_by_ids_only(
    some: Workers, config_file: Path, company: Company, worlds: dict[str, World], database: Database
) -> None:
    """402 on the list: carry on in id-only mode and say so (design §4)."""
    company[SECOND].add_fault(match=rf"{LIST}\?", kind="status", status=402)
    one = sorted(_visible(worlds[SECOND]))[0]
    _queue(database, one, SECOND)
    worker = some.run("sync", "--config", str(config_file))
    assert worker.process.returncode == 0, worker.err
    said = [line for line in worker.err.splitlines() if "402" in line]
    assert said, worker.err
    assert SECOND in said[0] or NAMES[SECOND] in said[0], f"which account? {said[0]}"
    assert _exported(database) == {FIRST: _visible(worlds[FIRST]), SECOND: {one}, THIRD: _visible(worlds[THIRD])}


def test_an_account_refused_as_a_whole_with_402_ends_alone(
    some: Workers, config_file: Path, company: Company, worlds: dict[str, World], database: Database
) -> None:
    _break(company, SECOND, "plan")
    one = sorted(_visible(worlds[SECOND]))[0]
    _queue(database, one, SECOND)
    worker = some.run("sync", "--config", str(config_file))
    assert worker.process.returncode == 3, worker.err
    assert SECOND in worker.err
    assert _exported(database)[THIRD] == _visible(worlds[THIRD])
    waiting = rows(database, "SELECT state, attempts FROM etl_queue WHERE test_session_id = :id", id=one)
    assert waiting == [{"state": "queued", "attempts": 0}], "unblamed"


def test_all_three_in_trouble_at_once_are_all_told(
    some: Workers, config_file: Path, company: Company, database: Database
) -> None:
    env = _break(company, FIRST, "refused")
    _break(company, SECOND, "paused")
    _break(company, THIRD, "outage")
    worker = some.run("sync", "--config", str(config_file), "--json", timeout=60, **env)
    assert worker.process.returncode == 3
    error = json.loads(worker.out)["error"]
    for id_ in ACCOUNTS:
        assert id_ in error or NAMES[id_] in error, f"{NAMES[id_]} is not named in: {error}"
    assert scalar(database, "SELECT count(*) FROM etl_queue WHERE state = 'leased'") == 0


def test_a_backfill_and_its_plan_go_on_past_an_account_in_trouble(
    some: Workers, config_file: Path, company: Company, worlds: dict[str, World], database: Database
) -> None:
    """The plan cannot be told then: exit 3, and it names the account."""
    env = _break(company, FIRST, "refused")
    plan = some.run("backfill", "--since", "3000d", "--plan", "--config", str(config_file), **env)
    assert plan.process.returncode == 3, plan.err
    assert FIRST in plan.err
    worker = some.run("backfill", "--since", "3000d", "--config", str(config_file), **env)
    assert worker.process.returncode == 3, worker.err
    assert FIRST in worker.err
    assert _exported(database)[SECOND] == _visible(worlds[SECOND])


# --- whose id is it -----------------------------------------------------------------------------------------------


def test_ids_without_an_account_are_offered_to_one_account_after_the_other(
    some: Workers, config_file: Path, company: Company, worlds: dict[str, World], database: Database
) -> None:
    """The default one first. What none of them has is a dead letter that names all who were asked."""
    of_first, of_second, of_third = (sorted(_visible(worlds[id_]))[0] for id_ in ACCOUNTS)
    env: dict[str, Any] = {"CHECKLY_ETL_EXPORT__DISCOVER": "false"}
    ids = (of_first, of_second, of_third, uuid(7))
    assert some.run("enqueue", "--config", str(config_file), *ids).process.returncode == 0
    worker = some.run("sync", "--config", str(config_file), **env)
    assert worker.process.returncode == 1, "one is a dead letter"
    assert _exported(database) == {FIRST: {of_first}, SECOND: {of_second}, THIRD: {of_third}}
    (letter,) = rows(database, "SELECT test_session_id, error_kind, last_error FROM etl_queue WHERE state = 'dead'")
    assert (str(letter["test_session_id"]), letter["error_kind"]) == (uuid(7), "not_found")
    assert letter["last_error"].endswith(f"asked were the accounts {FIRST}, {SECOND}, {THIRD}")
    assert not [request for request in company[SECOND].requests if of_first in request.path], "found by the first"
    # Somebody waits for it: the same in `sync --wait`.
    worker = some.run("sync", "--config", str(config_file), "--wait", sorted(_visible(worlds[THIRD]))[1])
    assert worker.process.returncode == 0, worker.err


def test_an_id_in_the_lists_of_two_accounts_is_exported_once_by_the_one_that_it_names(
    some: Workers, config_file: Path, company: Company, worlds: dict[str, World], database: Database
) -> None:
    for id_ in (FIRST, SECOND):
        company[id_].put_test_session(detail(7), entry(7, accountId=SECOND, name=f"as {NAMES[id_]} lists it"))
    for _ in range(2):
        assert some.run("sync", "--config", str(config_file)).process.returncode == 0, some.started[-1].err
    calls = {id_: [r for r in company[id_].requests if r.path.endswith(uuid(7))] for id_ in (FIRST, SECOND)}
    assert (len(calls[FIRST]), len(calls[SECOND])) == (0, 1)
    assert uuid(7) in _exported(database)[SECOND]


def test_ids_that_wait_for_an_account_out_of_the_settings_are_told(
    some: Workers, config_file: Path, company: Company, database: Database
) -> None:
    _queue(database, uuid(7), STRANGER)
    with database.writing() as connection:
        connection.execute(text("UPDATE etl_queue SET available_at = '2000-01-01 00:00:00.000000'"))
    worker = some.run("sync", "--config", str(config_file))
    assert worker.process.returncode == 0, "another process may export it"
    (line,) = [line for line in worker.err.splitlines() if STRANGER in line]
    assert "is not in these settings, and 1 test sessions" in line
    doctor = some.run("doctor", "--config", str(config_file))
    assert doctor.process.returncode == 1
    assert f"account {STRANGER} is not in these settings" in doctor.out


@pytest.mark.parametrize("spelling", ["argument", "upper case", "file", "with a result"])
def test_a_link_that_names_another_configured_account_goes_there(
    spelling: str, some: Workers, config_file: Path, worlds: dict[str, World], database: Database, tmp_path: Path
) -> None:
    one = sorted(_visible(worlds[SECOND]))[0]
    link = f"https://app.checklyhq.com/accounts/{SECOND}/test-sessions/{one}"
    match spelling:
        case "upper case":
            link = f"https://app.checklyhq.com/accounts/{SECOND.upper()}/test-sessions/{one.upper()}"
        case "with a result":
            link += f"/results/{uuid(7)}"
        case "file":
            (tmp_path / "ci.log").write_text(f"Running...\nsee {link}\n")
            link = str(tmp_path / "ci.log")
    worker = some.run("enqueue", "--config", str(config_file), link)
    assert worker.process.returncode == 0, worker.err
    queued = rows(database, "SELECT test_session_id, account_id FROM etl_queue")
    assert [(str(row["test_session_id"]), str(row["account_id"])) for row in queued] == [(one, SECOND)]
    worker = some.run("sync", "--config", str(config_file), CHECKLY_ETL_EXPORT__DISCOVER="false")
    assert worker.process.returncode == 0, worker.err
    assert _exported(database) == {FIRST: set(), SECOND: {one}, THIRD: set()}


def test_a_link_of_an_account_that_is_not_configured_is_tried_with_the_default_one(
    some: Workers, config_file: Path, worlds: dict[str, World], database: Database
) -> None:
    one = sorted(_visible(worlds[FIRST]))[0]
    link = f"https://app.checklyhq.com/accounts/{STRANGER}/test-sessions/{one}"
    assert some.run("enqueue", "--config", str(config_file), link).process.returncode == 0
    worker = some.run("sync", "--config", str(config_file), CHECKLY_ETL_EXPORT__DISCOVER="false")
    assert worker.process.returncode == 0, worker.err
    assert _exported(database)[FIRST] == {one}, "no row waits for an account that nobody reads"


def test_a_link_to_the_right_account_frees_an_id_that_died_in_the_default_one(
    some: Workers, config_file: Path, worlds: dict[str, World], database: Database
) -> None:
    """A link to the wrong account was tried with that one only and is dead; the right link tells where it belongs."""
    theirs = sorted(_visible(worlds[SECOND]))[0]
    env: dict[str, Any] = {"CHECKLY_ETL_EXPORT__DISCOVER": "false"}
    link = "https://app.checklyhq.com/accounts/{}/test-sessions/{}"
    some.run("enqueue", "--config", str(config_file), link.format(FIRST, theirs))
    assert some.run("sync", "--config", str(config_file), **env).process.returncode == 1
    worker = some.run("enqueue", "--config", str(config_file), link.format(SECOND, theirs))
    assert worker.process.returncode == 0
    worker = some.run("sync", "--config", str(config_file), **env)
    assert worker.process.returncode == 0, worker.err
    assert _exported(database)[SECOND] == {theirs}
    assert rows(database, "SELECT * FROM etl_queue WHERE state = 'dead'") == []


def test_two_links_of_two_accounts_in_one_text_go_each_to_its_own(
    some: Workers, config_file: Path, worlds: dict[str, World], database: Database
) -> None:
    second, third = sorted(_visible(worlds[SECOND]))[0], sorted(_visible(worlds[THIRD]))[0]
    pasted = " and ".join(
        f"https://app.checklyhq.com/accounts/{account}/test-sessions/{id_}"
        for account, id_ in ((SECOND, second), (THIRD, third))
    )
    assert some.run("enqueue", "--config", str(config_file), pasted).process.returncode == 0
    assert (
        some.run("sync", "--config", str(config_file), CHECKLY_ETL_EXPORT__DISCOVER="false").process.returncode == 0
    )
    assert _exported(database) == {FIRST: set(), SECOND: {second}, THIRD: {third}}


# --- two workers --------------------------------------------------------------------------------------------------


def test_workers_on_different_accounts_of_one_warehouse_do_not_meet(
    some: Workers, company: Company, worlds: dict[str, World], database: Database, tmp_path: Path
) -> None:
    """Each worker knows one account; each exports exactly its own, at the same time."""
    running: list[Worker] = []
    for id_ in ACCOUNTS:
        company[id_].add_fault(match="/v1/", kind="delay", seconds=0.05)
        running.append(some.start("sync", "--config", str(_config(tmp_path / f"{NAMES[id_]}.yaml", ids=(id_,)))))
    assert [worker.wait() for worker in running] == [0, 0, 0], running[0].err
    assert _exported(database) == {id_: _visible(world) for id_, world in worlds.items()}
    for id_ in ACCOUNTS:
        details = [request.path for request in company[id_].requests if request.path.startswith("/v1/test-sessions/")]
        assert len(details) == len(set(details)), "nobody fetches what is another's"


def test_three_workers_on_all_accounts_discover_each_account_once_at_a_time(
    some: Workers, config_file: Path, company: Company, worlds: dict[str, World], database: Database
) -> None:
    for id_ in ACCOUNTS:
        company[id_].add_fault(match="/v1/", kind="delay", seconds=0.1)
    trio = [some.start("sync", "--config", str(config_file)) for _ in range(3)]
    assert [worker.wait() for worker in trio] == [0, 0, 0], trio[0].err
    assert _exported(database) == {id_: _visible(world) for id_, world in worlds.items()}
    for id_ in ACCOUNTS:
        details = [request.path for request in company[id_].requests if request.path.startswith("/v1/test-sessions/")]
        assert len(details) == len(set(details)), "a session is claimed once"


# --- the retention guard ------------------------------------------------------------------------------------------


def test_the_retention_guard_counts_each_account_by_its_own_retention(
    some: Workers, company: Company, database: Database, tmp_path: Path
) -> None:
    """The same age, three plans: lost already, lost soon, and far from lost. Exit 1, and all three are told by
    `status`; the log names those that are near."""
    created = datetime.now(UTC) - timedelta(days=6, hours=12)
    for number, id_ in enumerate(ACCOUNTS, 1):
        moment = created.isoformat(timespec="milliseconds")[:-6] + "Z"
        for _, old in company[id_].world.timetable():
            company[id_].remove_test_session(old)
        company[id_].put_test_session(
            detail(number), entry(number, accountId=id_, created_at=moment, startedAt=moment)
        )
        company[id_].add_fault(
            match=f"{LIST}/", kind="status", status=500, headers={"Retry-After": "60"}
        )  # seen, but not to be had
    file = str(_config(tmp_path / "plans.yaml", retention={FIRST: "7d", SECOND: "30d", THIRD: "8d"}))
    began = time.monotonic()
    worker = some.run("sync", "--config", file, timeout=100, CHECKLY_ETL_OBSERVE__LOSS_WARNING="24h")
    assert time.monotonic() - began < 60
    hours = {
        str(row["account_id"]): row["hours_until_loss"]
        for row in rows(database, "SELECT account_id, hours_until_loss FROM v_freshness")
    }
    assert hours[FIRST] == pytest.approx(12, abs=0.1)
    assert hours[THIRD] == pytest.approx(36, abs=0.1)
    assert hours[SECOND] == pytest.approx((30 - 6.5) * 24, abs=0.1)
    assert worker.process.returncode == 1, worker.err
    near = [line for line in worker.err.splitlines() if "warning" in line and "deletes" in line]
    assert [FIRST in line for line in near] == [True], worker.err
    status = some.run("status", "--config", file)
    for told in ("in 12.0 hours", "in 36.0 hours", "in 23.5 days"):
        assert told in status.out or told.replace(".0", ".1") in status.out, status.out

    wider = some.run("sync", "--config", file, timeout=100, CHECKLY_ETL_OBSERVE__LOSS_WARNING="48h")
    assert wider.process.returncode == 1
    near = [line for line in wider.err.splitlines() if "warning" in line and "deletes" in line]
    assert len(near) == 2, wider.err
    assert {id_ for id_ in ACCOUNTS if any(id_ in line for line in near)} == {FIRST, THIRD}

    for id_ in ACCOUNTS:
        company[id_].clear_faults()
    with database.writing() as connection:
        connection.execute(text("UPDATE etl_queue SET available_at = '2000-01-01 00:00:00.000000'"))
    assert some.run("sync", "--config", file).process.returncode == 0, "all is exported: nothing is near any more"


def test_the_guard_warns_even_when_the_account_itself_cannot_be_read(
    some: Workers, company: Company, database: Database, tmp_path: Path
) -> None:
    """That is when it is needed: exit 3 says refused, and the warning says until when."""
    created = datetime.now(UTC) - timedelta(days=6, hours=12)
    with database.writing() as connection:
        accounts.register(connection, SECOND, name="payments", retention=timedelta(days=7))
        listed = session_queue.Listed(uuid(1), created, documents.known(b"{}"))
        session_queue.enqueue_listed(connection, [listed], account_id=SECOND, source=session_queue.DISCOVERY)
    file = _config(tmp_path / "plans.yaml", retention=dict.fromkeys(ACCOUNTS, "7d"))
    env = _break(company, SECOND, "refused")
    worker = some.run("sync", "--config", str(file), **env)
    assert worker.process.returncode == 3
    near = [line for line in worker.err.splitlines() if "warning" in line and "deletes" in line]
    assert near, worker.err
    assert SECOND in near[0]


def test_a_pause_of_one_account_is_waited_for_by_its_own_calls_only(
    some: Workers, config_file: Path, company: Company, worlds: dict[str, World], database: Database
) -> None:
    """Two workers: while one waits 30 s for the first account, the other exports the rest."""
    company[FIRST].add_fault(match=LIST, kind="status", status=429, headers={"Retry-After": "30"}, times=1)
    waiting = some.start("sync", "--config", str(config_file))
    wait_until(lambda: any(request.status == 429 for request in company[FIRST].requests))
    others = _config(config_file.with_name("others.yaml"), ids=(SECOND, THIRD))
    assert some.run("sync", "--config", str(others)).process.returncode == 0
    assert waiting.process.poll() is None, "it had nothing to wait for"
    assert _exported(database)[SECOND] == _visible(worlds[SECOND])
    assert waiting.wait() == 0
    assert _exported(database) == {id_: _visible(world) for id_, world in worlds.items()}


@pytest.mark.parametrize("revive", [("enqueue",), ("enqueue", "--force"), ("dead", "retry")], ids=" ".join)
def test_an_id_that_died_everywhere_begins_with_the_default_account_when_it_is_revived(
    some: Workers,
    config_file: Path,
    company: Company,
    worlds: dict[str, World],
    database: Database,
    revive: tuple[str, ...],
) -> None:
    """It was queued before Checkly showed it, say."""
    (late,) = sorted(_visible(worlds[FIRST]))[:1]
    company[FIRST].add_fault(match=late, kind="status", status=404)
    env: dict[str, Any] = {"CHECKLY_ETL_EXPORT__DISCOVER": "false"}
    assert some.run("enqueue", "--config", str(config_file), late).process.returncode == 0
    assert some.run("sync", "--config", str(config_file), **env).process.returncode == 1
    assert scalar(database, "SELECT state FROM etl_queue") == "dead"
    company[FIRST].clear_faults()
    command, *options = revive
    worker = some.run(command, *options, "--config", str(config_file), late)
    assert worker.process.returncode == 0, worker.err
    worker = some.run("sync", "--config", str(config_file), **env)
    assert worker.process.returncode == 0, worker.err
    assert _exported(database)[FIRST] == {late}


def test_an_id_that_was_offered_does_not_hide_that_a_list_could_not_be_read(
    some: Workers, config_file: Path, company: Company, worlds: dict[str, World], database: Database
) -> None:
    company[SECOND].add_fault(match=r"^/v1/test-sessions\?", kind="status", status=500)
    (of_second,) = sorted(_visible(worlds[SECOND]))[:1]
    assert some.run("enqueue", "--config", str(config_file), of_second).process.returncode == 0
    assert some.run("sync", "--config", str(config_file)).process.returncode == 3
    assert of_second in _exported(database)[SECOND]
    assert str(scalar(database, "SELECT account_id FROM etl_accounts WHERE last_success_at IS NULL")) == SECOND


def test_an_account_that_is_refused_is_offered_ids_after_the_others(
    some: Workers, config_file: Path, company: Company, worlds: dict[str, World], database: Database
) -> None:
    """And is told of once, not for each time that an id was offered."""
    company[FIRST].add_fault(match="/v1/", kind="delay", seconds=0.5)  # it offers when the second one has ended
    (of_third,) = sorted(_visible(worlds[THIRD]))[:1]
    assert some.run("enqueue", "--config", str(config_file), of_third).process.returncode == 0
    worker = some.run("sync", "--config", str(config_file), KEY_TWO="cu_wrong")
    assert worker.process.returncode == 3, worker.err
    assert of_third in _exported(database)[THIRD]
    assert str(scalar(database, "SELECT error FROM etl_runs")).count("refuses the key") == 1
