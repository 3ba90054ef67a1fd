"""The API and the way to it go wrong: 40 % of all calls in ten ways at once, then each way and each refusal alone.

A fault of the way may cost time, never a session: when it is over, every row is as it would have been without it,
and there is no dead letter (guarantee 5). Whose fault a failure is, decides what is left in the queue and which
exit code says so (guarantee 8).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from etl.database import Database
from etl.simulator import Simulator, World
from etl.simulator.faults import KINDS, Faults
from tests.conftest import KEY, Program, Run, rows, scalar
from tests.documents import detail, entry, error_group, uuid
from tests.harness import TIMES, Content, everything, make_due, same_rows, workers

Fault = dict[str, Any]
SHARE = 0.4  # of all calls
LIST, DETAIL, GROUP = r"^/v1/test-sessions\?", r"^/v1/test-sessions/", "^/v1/test-session-error-groups"
SHORT = {"CHECKLY_ETL_CHECKLY__TIMEOUT": "1s", "CHECKLY_ETL_CHECKLY__MAX_BODY": "1 MB"}
_429 = {"kind": "status", "status": 429}
STATUSES: list[Fault] = [
    *({"kind": "status", "status": status} for status in (500, 502, 503, 504, 520)),
    {"kind": "status", "status": 503, "headers": {"Retry-After": "0.1"}},
    {**_429, "headers": {"Retry-After": "0.05"}},
]
OTHERS: list[Fault] = [
    {"kind": "delay", "seconds": 1.3},
    {"kind": "reset"},
    {"kind": "cut"},
    {"kind": "garbage"},
    {"kind": "redirect"},
    {"kind": "trickle", "seconds": 0.01, "headers_too": True},
    {"kind": "wrong_id"},
    {"kind": "not_utf8"},
    {"kind": "gzip_bomb", "size": 3_000_000},
]


def ten_ways(share: float) -> list[Fault]:
    """All kinds, each of the same part of `share` of all calls."""
    parts = [(fault, share / len(KINDS) / len(STATUSES)) for fault in STATUSES]
    parts += [(fault, share / len(KINDS)) for fault in OTHERS]
    faults, left = [], 1.0
    for fault, part in parts:  # the first that applies wins: each takes its part of what the ones before it left
        faults.append({**fault, "probability": part / left})
        left -= part
    return faults


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short retries come sooner, and the list has several pages."""
    monkeypatch.setattr("etl.checkly.retry.FIRST_BACKOFF", 0.01)
    monkeypatch.setattr("etl.checkly.client.PAGE_SIZE", 10)


# --- ten ways at once ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(max(1, TIMES // 5)))  # on each database
def test_everything_arrives_though_40_percent_of_all_calls_fail_in_ten_ways(
    program: Program,
    simulator: Simulator,
    database: Database,
    engine_name: str,
    peace: Callable[[str], Content],
    seed: int,
) -> None:
    simulator.faults = Faults(seed)
    for fault in ten_ways(SHARE):
        simulator.add_fault(**fault)
    if seed == 0:
        simulator.add_fault(**_429, times=1)  # without Retry-After: a pause of five seconds
    saved = 0
    for number in range(30):
        run = truthful_sync(program, database)
        saved += run.json["test_sessions_saved"]
        assert_nothing_is_dead(database)
        if number >= 3 and run.code == 0 and not scalar(database, "SELECT max(attempts) FROM etl_queue"):
            break
        make_due(database)
    else:
        pytest.fail("30 passes were not enough")
    assert_share_of_failures(simulator, SHARE)

    simulator.clear_faults()
    make_due(database)
    run = truthful_sync(program, database)
    assert run.code == 0
    wanted = peace(engine_name)
    same_rows(wanted, everything(database))
    assert saved + run.json["test_sessions_saved"] == len(wanted["test_sessions"]), "each was written once"


def test_three_workers_share_a_queue_while_40_percent_of_all_calls_fail(
    small_world: World, warehouse_url: str, database: Database, engine_name: str, peace: Callable[[str], Content]
) -> None:
    """In processes of their own, with the retries' real waits."""
    with Simulator(small_world, rate_limit=0) as simulator, workers(simulator.url, warehouse_url, **SHORT) as some:
        for fault in ten_ways(SHARE):
            simulator.add_fault(**fault)
        for _ in range(2):
            running = [some.start("sync", "--json") for _ in range(3)]
            codes = {worker.wait() for worker in running}
            assert codes <= {0, 1, 3}, [worker.err for worker in running]
            make_due(database)
        assert_nothing_is_dead(database)
        simulator.clear_faults()
        assert some.run("sync").process.returncode == 0, some.started[-1].err
    same_rows(peace(engine_name), everything(database))


def truthful_sync(program: Program, database: Database) -> Run:
    """A pass whose exit code says what happened, without a traceback; 0 means that nothing is left to wish for."""
    before = _last_success(database)
    run = program("sync", "--json", "-v", **SHORT)
    assert "Traceback" not in run.err, run.err
    assert run.code in (0, 1, 3), run.err
    assert run.json["exit_code"] == run.code
    assert (run.json["error"] is None) == (run.code == 0 or bool(run.json["test_sessions_dead"]))
    assert (_last_success(database) != before) == (run.code != 3), "a pass that failed is no success"
    assert scalar(database, "SELECT count(*) FROM etl_queue WHERE state = 'leased'") == 0
    last = rows(database, "SELECT outcome, error FROM etl_runs ORDER BY started_at DESC LIMIT 1")[0]
    assert (last["outcome"], last["error"]) == (run.json["outcome"], run.json["error"])
    if run.code == 0:
        assert scalar(database, "SELECT discovered_until FROM etl_accounts") is not None
        assert scalar(database, "SELECT count(*) FROM error_groups WHERE fetched_at IS NULL") == 0
    return run


def _last_success(database: Database) -> Any:
    found = rows(database, "SELECT last_success_at FROM etl_accounts")
    return found[0]["last_success_at"] if found else None


def assert_nothing_is_dead(database: Database) -> None:
    assert rows(database, "SELECT test_session_id, error_kind, last_error FROM etl_queue WHERE state = 'dead'") == []


def assert_share_of_failures(simulator: Simulator, share: float) -> None:
    """The hell was as hot as promised, and of every kind."""
    faults = simulator.faults.as_json()
    failed = sum(fault["hits"] for fault in faults)
    assert share - 0.15 < failed / len(simulator.requests) < share + 0.15
    if len(simulator.requests) > 300:
        assert {fault["kind"] for fault in faults if fault["hits"]} == set(KINDS)


# --- one way, and all calls ---------------------------------------------------------------------------------------


@pytest.fixture
def empty_world() -> World:
    """An account with nothing in it but what the test puts there."""
    return World(seed=1, now=datetime(2000, 1, 1, tzinfo=UTC), days=1)


@pytest.fixture
def checkly(empty_world: World, program: Program) -> Iterator[Simulator]:
    """The Checkly of `program`: twelve sessions, each with an error group of its own."""
    with Simulator(empty_world, rate_limit=0) as serving:
        for number in range(1, 13):
            put(serving, number)
        program.env["CHECKLY_API_URL"] = serving.url
        yield serving


def put(checkly: Simulator, number: int) -> None:
    groups = [error_group(number)["id"]]
    checkly.put_error_group(error_group(number))
    checkly.put_test_session(detail(number, errorGroupIds=groups), entry(number, errorGroupIds=groups))


def enqueue(program: Program, *numbers: int) -> None:
    assert program("enqueue", *(uuid(number) for number in numbers)).code == 0


NO_ANSWER: list[Fault] = [
    *STATUSES[:5],
    *(fault for fault in OTHERS if fault["kind"] not in ("wrong_id", "gzip_bomb")),
]


@pytest.mark.parametrize("engine_name", ["sqlite"], indirect=True)  # no database is asked here
@pytest.mark.parametrize("discover", ["true", "false"])
@pytest.mark.parametrize("fault", NO_ANSWER, ids=lambda fault: f"{fault['kind']}{fault.get('status', '')}")
def test_an_outage_of_any_kind_ends_the_pass_soon_and_blames_nobody(
    program: Program, checkly: Simulator, database: Database, fault: Fault, discover: str
) -> None:
    enqueue(program, *range(1, 13))
    checkly.add_fault(**fault)
    began = time.monotonic()
    run = program("sync", "--json", **SHORT, CHECKLY_ETL_EXPORT__DISCOVER=discover)
    assert time.monotonic() - began < 10
    assert (run.code, run.json["outcome"]) == (3, "failed")
    assert "Traceback" not in run.err
    assert "run again" in run.json["error"]
    assert waiting(database) == [("queued", 0, None)] * 12

    checkly.clear_faults()
    run = program("sync", "--json")
    assert (run.code, run.json["test_sessions_saved"]) == (0, 12), run.err


@pytest.mark.parametrize("engine_name", ["sqlite"], indirect=True)
@pytest.mark.parametrize("seconds", ["0.2", None], ids=["with", "without"])
def test_an_account_that_is_throttled_for_ever_ends_the_pass_and_keeps_its_pause(
    program: Program, checkly: Simulator, database: Database, monkeypatch: pytest.MonkeyPatch, seconds: str | None
) -> None:
    # The contract's five minutes, in three seconds.
    for module in ("checkly.retry", "pipeline.pacing"):
        monkeypatch.setattr(f"etl.{module}.LONGEST_PAUSE", 3.0)
    enqueue(program, *range(1, 13))
    checkly.add_fault(**_429, headers={"Retry-After": seconds} if seconds else {})
    began = time.monotonic()
    run = program("sync", "--json", **SHORT)
    assert time.monotonic() - began < 10
    assert run.code == 3, run.err
    assert "try again later" in run.json["error"] or "run again" in run.json["error"]
    assert waiting(database) == [("queued", 0, None)] * 12


@pytest.mark.parametrize("engine_name", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    "fault", [f for f in OTHERS if f["kind"] in ("wrong_id", "gzip_bomb")], ids=lambda f: f["kind"]
)
def test_answers_that_are_never_usable_are_dead_letters_and_none_is_stored(
    program: Program, checkly: Simulator, database: Database, fault: Fault
) -> None:
    checkly.add_fault(**fault, match=DETAIL)
    run = program("sync", "--json", **SHORT)
    assert (run.code, run.json["test_sessions_dead"]) == (1, 12)
    assert scalar(database, "SELECT count(*) FROM test_sessions") == 0
    assert scalar(database, "SELECT count(*) FROM etl_payloads") == 0
    checkly.clear_faults()
    assert program("dead", "retry", "--all").code == 0
    run = program("sync", "--json")
    assert (run.code, run.json["test_sessions_saved"]) == (0, 12)


# --- refusals -----------------------------------------------------------------------------------------------------

ONE = r"^/v1/test-sessions/00000005"
QUEUED, SAVED = ("queued", 0, None), None  # a session that was saved has no row


def dead(kind: str) -> tuple[str, int, str]:
    return ("dead", 1, kind)


# Where; the status; the exit code; what is said; of the session number 5, what is left; of the eleven others.
REFUSALS: list[tuple[str, int, int, str, Any, Any]] = [
    (ONE, 400, 1, "rejects the request (400)", dead("rejected"), SAVED),
    (ONE, 401, 3, "CHECKLY_API_KEY", QUEUED, ...),
    (ONE, 402, 1, "plan does not allow it (402)", dead("rejected"), SAVED),
    (ONE, 403, 1, "refuses access (403)", dead("forbidden"), SAVED),
    (ONE, 404, 1, "no longer (404)", dead("not_found"), SAVED),
    (ONE, 405, 1, "rejects the request (405)", dead("rejected"), SAVED),
    (ONE, 410, 1, "no longer (410)", dead("not_found"), SAVED),
    (ONE, 422, 1, "rejects the request (422)", dead("rejected"), SAVED),
    (ONE, 451, 1, "rejects the request (451)", dead("rejected"), SAVED),
    (ONE, 408, 0, "the API answered 408", ("queued", 1, "unavailable"), SAVED),
    (ONE, 500, 0, "the API answered 500", ("queued", 1, "unavailable"), SAVED),
    (ONE, 501, 0, "the API answered 501", ("queued", 1, "unavailable"), SAVED),
    (ONE, 304, 0, "answered 304", ("queued", 1, "unavailable"), SAVED),
    (ONE, 204, 0, "answered 204", ("queued", 1, "unavailable"), SAVED),
    (DETAIL, 400, 1, "(400)", dead("rejected"), dead("rejected")),
    (DETAIL, 401, 3, "CHECKLY_API_KEY", QUEUED, QUEUED),
    (DETAIL, 402, 1, "(402)", dead("rejected"), dead("rejected")),
    (DETAIL, 403, 1, "(403)", dead("forbidden"), dead("forbidden")),
    (DETAIL, 404, 1, "(404)", dead("not_found"), dead("not_found")),
    (DETAIL, 410, 1, "(410)", dead("not_found"), dead("not_found")),
    (DETAIL, 422, 1, "(422)", dead("rejected"), dead("rejected")),
    (DETAIL, 500, 3, "run again", QUEUED, QUEUED),
    (LIST, 400, 3, "discovery failed", SAVED, SAVED),
    (LIST, 401, 3, "CHECKLY_API_KEY", QUEUED, QUEUED),
    (LIST, 402, 0, "checkly-etl enqueue", SAVED, SAVED),
    (LIST, 403, 3, "check the account id", QUEUED, QUEUED),
    (LIST, 404, 3, "CHECKLY_API_URL", QUEUED, QUEUED),
    (LIST, 410, 3, "CHECKLY_API_URL", QUEUED, QUEUED),
    (LIST, 422, 3, "discovery failed", SAVED, SAVED),
    (LIST, 500, 3, "discovery failed", SAVED, SAVED),
    (GROUP, 400, 0, "asked for by itself", SAVED, SAVED),
    (GROUP, 401, 3, "CHECKLY_API_KEY", SAVED, SAVED),
    (GROUP, 404, 0, "asked for by itself", SAVED, SAVED),
    (GROUP, 422, 0, "asked for by itself", SAVED, SAVED),
    (GROUP, 500, 1, "the next pass tries again", SAVED, SAVED),
    ("", 401, 3, "CHECKLY_API_KEY", QUEUED, QUEUED),
    ("", 402, 3, "neither it nor the list (402)", QUEUED, QUEUED),
    ("", 403, 3, "check the account id", QUEUED, QUEUED),
    ("", 404, 3, "CHECKLY_API_URL", QUEUED, QUEUED),
]
PLACES = {ONE: "one", DETAIL: "all", LIST: "list", GROUP: "groups", "": "everything"}


@pytest.mark.parametrize("engine_name", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("match", "status", "code", "said", "of_five", "of_others"),
    REFUSALS,
    ids=[f"{PLACES[match]}-{status}" for match, status, *_ in REFUSALS],
)
def test_a_refusal_reaches_as_far_as_it_means_and_no_further(
    program: Program,
    checkly: Simulator,
    database: Database,
    match: str,
    status: int,
    code: int,
    said: str,
    of_five: Any,
    of_others: Any,
) -> None:
    enqueue(program, *range(1, 13))
    checkly.add_fault(match=match, kind="status", status=status)
    run = program("sync", "--json", "-v", **SHORT)
    assert run.code == run.json["exit_code"] == code, run.err
    assert said in run.err
    assert "Traceback" not in run.err
    assert (
        run.json["outcome"] == {0: "partial" if "queued" in str(of_five) else "ok", 1: "partial", 3: "failed"}[code]
    )
    left = states(database)
    assert left.pop(uuid(5), SAVED) == of_five
    if of_others is not ...:  # where the pass ended early, some of them had come before
        assert [left.get(uuid(number), SAVED) for number in range(1, 13) if number != 5] == [of_others] * 11
    assert scalar(database, "SELECT count(*) FROM test_sessions") == 12 - len(states(database))
    assert scalar(database, "SELECT count(*) FROM etl_queue WHERE state = 'leased'") == 0

    checkly.clear_faults()
    for letter in rows(database, "SELECT test_session_id FROM etl_queue WHERE state = 'dead'"):
        assert program("dead", "retry", str(letter["test_session_id"])).code == 0
    make_due(database)
    run = program("sync", "--json")
    assert run.code == 0, run.err
    assert scalar(database, "SELECT count(*) FROM test_sessions") == 12
    assert scalar(database, "SELECT count(*) FROM etl_queue") == 0


@pytest.mark.parametrize("engine_name", ["sqlite"], indirect=True)
@pytest.mark.parametrize("status", [402, 403])
def test_a_plan_without_error_groups_costs_no_call_for_each_of_them(
    program: Program, checkly: Simulator, database: Database, status: int
) -> None:
    """They mean the account, not one document: it is not asked twelve times, and in each pass again."""
    checkly.add_fault(match=GROUP, kind="status", status=status)
    for _ in range(2):
        checkly.clear_requests()
        run = program("sync", "--json", **SHORT)
        assert run.code in (0, 1), run.err
        calls = [request for request in checkly.requests if "error-groups" in request.path]
        assert len(calls) <= 3, f"{len(calls)} calls"
    assert scalar(database, "SELECT count(*) FROM test_sessions") == 12


def test_one_error_group_that_cannot_be_read_holds_up_no_other(
    program: Program, checkly: Simulator, database: Database
) -> None:
    """Where there are many, the few new ones are asked for one by one, in order: the first must not be the last."""
    for number in range(1, 151):
        checkly.put_error_group(error_group(number))
    groups = [error_group(number)["id"] for number in range(1, 151)]
    checkly.put_test_session(detail(20, errorGroupIds=groups), entry(20, errorGroupIds=groups))
    assert program("sync").code == 0
    new = [error_group(number)["id"] for number in (0, 200)]
    for number in (0, 200):
        checkly.put_error_group(error_group(number))
    checkly.put_test_session(detail(21, errorGroupIds=new), entry(21, errorGroupIds=new))
    checkly.add_fault(match=new[0], kind="status", status=500)
    program("sync", **SHORT)
    unknown = rows(database, "SELECT error_group_id FROM error_groups WHERE fetched_at IS NULL")
    assert {str(row["error_group_id"]) for row in unknown} <= {new[0]}


def test_a_200_that_says_nothing_is_the_ways_fault_wherever_it_comes(
    program: Program, checkly: Simulator, database: Database
) -> None:
    """`null`, an empty body, an empty object, a list where an object belongs: none ends a pass with a traceback."""
    for body in ("", "null", "[]", "{}", '""', "0", '{"entries": null}', '{"entries": [null, 1, "x", [], {}]}'):
        for match in (LIST, ONE, GROUP):
            checkly.add_fault(match=match, kind="garbage", body=body)
            run = program("sync", "--json", **SHORT)
            assert run.code in (0, 1, 3), (body, match)
            assert "Traceback" not in run.err, (body, match, run.err)
            assert scalar(database, "SELECT count(*) FROM etl_queue WHERE state = 'leased'") == 0
            checkly.clear_faults()
            enqueue(program, 5)
    run = program("sync", "--json")
    assert run.code == 0, run.err
    assert scalar(database, "SELECT count(*) FROM test_sessions") == 12


def test_one_account_in_trouble_holds_up_no_other(
    new_warehouse: Callable[[str], str],
    small_world: World,
    program: Program,
    database: Database,
    engine_name: str,
    peace: Callable[[str], Content],
    tmp_path: Any,
) -> None:
    """The first of three is refused or down in turn; the others end as if it did not exist."""
    ours, first, third = program.env.pop("CHECKLY_ACCOUNT_ID"), uuid(0x11), uuid(0x33)
    accounts = [{"id": first, "api_key_env": "KEY_1"}, {"id": ours, "api_key_env": "KEY_2"}]
    accounts.append({"id": third, "api_key_env": "KEY_3"})
    keys = {f"KEY_{number}": f"{KEY}_{number}" for number in (1, 2, 3)}
    empty = World(seed=2, now=datetime(2000, 1, 1, tzinfo=UTC), days=1, account_id=third)
    with Simulator(accounts={ours: small_world, third: empty}, rate_limit=0) as simulator:
        program.env["CHECKLY_API_URL"] = simulator.url
        run = program("sync", "--json", **keys, CHECKLY_ETL_CHECKLY__ACCOUNTS=json.dumps(accounts))
    assert run.code == 3
    assert first in run.json["error"]
    assert "KEY_1" in run.json["error"]
    succeeded = rows(database, "SELECT account_id FROM etl_accounts WHERE last_success_at IS NOT NULL ORDER BY 1")
    assert [str(row["account_id"]) for row in succeeded] == sorted([ours, third])
    same_rows(peace(engine_name), everything(database))


def waiting(database: Database) -> list[tuple[str, int, str | None]]:
    return list(states(database).values())


def states(database: Database) -> dict[str, tuple[str, int, str | None]]:
    """State, attempts and kind of error of each row of the queue."""
    found = rows(database, "SELECT test_session_id, state, attempts, error_kind FROM etl_queue ORDER BY 1")
    return {str(row["test_session_id"]): (row["state"], row["attempts"], row["error_kind"]) for row in found}
