"""The simulator is what all other tests stand on: it must be deterministic, honest and hard to wedge."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import json
import os
import socket
import struct
import subprocess
import sys
import time
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import groupby, pairwise
from typing import Any
from urllib.parse import quote, urlencode

import pytest

from etl.simulator import Simulator, World

NOW = datetime(2025, 6, 18, 14, 30, tzinfo=UTC)
KEY = {"Authorization": "Bearer some-key"}
SESSIONS = "/v1/test-sessions"
UNKNOWN = "99999999-9999-4999-8999-999999999999"

Json = dict[str, Any]


class Reply:
    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def call(
    simulator: Simulator,
    path: str,
    method: str = "GET",
    headers: dict[str, str] | None = None,
    body: bytes | None = None,
) -> Reply:
    connection = http.client.HTTPConnection(simulator.url.removeprefix("http://"), timeout=10)
    try:
        connection.request(method, path, body, KEY if headers is None else headers)
        answer = connection.getresponse()
        content = answer.read()
        return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, content)
    finally:
        connection.close()


def walk(simulator: Simulator, **query: str) -> list[Json]:
    entries: list[Json] = []
    while True:
        page = call(simulator, f"{SESSIONS}?{urlencode(query)}").json
        assert page["length"] == len(page["entries"])
        entries += page["entries"]
        if not page.get("nextId"):
            return entries
        query["nextId"] = page["nextId"]


@pytest.fixture(scope="module")
def world() -> World:
    return World(1, NOW)


@pytest.fixture
def simulator(world: World) -> Iterator[Simulator]:
    with Simulator(world, rate_limit=0) as simulator:
        yield simulator


def visible_ids(world: World) -> list[str]:
    """Oldest first."""
    return [id_ for created, id_ in world.timetable() if created <= world.at()]


def of_status(world: World, status: str) -> list[Json]:
    documents = (world.detail(id_) for id_ in visible_ids(world))
    return [document for document in documents if document and document["status"] == status]


class Clock:
    """A clock that a test sets, and that runs on from there if it wants."""

    def __init__(self, start: datetime) -> None:
        self.moment = start

    def __call__(self) -> datetime:
        return self.moment


def time_of(text: str) -> datetime:
    return datetime.fromisoformat(text)


# -- determinism -----------------------------------------------------------------------------------------

FINGERPRINT = """
import hashlib, json, sys
from datetime import UTC, datetime
from etl.simulator import World
world = World(int(sys.argv[1]), datetime(2025, 6, 18, 14, 30, tzinfo=UTC), days=5)
digest = hashlib.sha256()
for _, id_ in world.timetable():
    detail = world.detail(id_)
    digest.update(json.dumps([detail, world.entry(id_)]).encode())
    for row in (detail or {}).get("results", [])[:3]:
        digest.update(json.dumps(world.result(id_, row["testSessionResultId"])).encode())
digest.update(json.dumps(world.error_groups()).encode())
print(digest.hexdigest())
"""


def fingerprint(seed: int, hash_seed: str) -> str:
    environment = os.environ | {"PYTHONHASHSEED": hash_seed}
    command = [sys.executable, "-c", FINGERPRINT, str(seed)]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout


def test_the_same_seed_and_now_give_the_same_bytes_in_every_process() -> None:
    assert fingerprint(3, "1") == fingerprint(3, "2")
    assert fingerprint(3, "1") != fingerprint(4, "1")


def test_two_simulators_of_one_seed_answer_with_the_same_bytes(world: World, simulator: Simulator) -> None:
    id_ = visible_ids(world)[-30]
    with Simulator(World(1, NOW), rate_limit=0) as twin:
        for path in (f"{SESSIONS}?limit=50", f"{SESSIONS}/{id_}", "/v1/test-session-error-groups?limit=100"):
            assert call(simulator, path).body == call(twin, path).body


def test_a_now_without_a_time_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="time zone"):
        World(1, datetime(2025, 6, 18))  # noqa: DTZ001


# -- the list --------------------------------------------------------------------------------------------


def test_a_cursor_walks_every_session_once(world: World, simulator: Simulator) -> None:
    entries = walk(simulator, limit="100")
    assert [entry["id"] for entry in reversed(entries)] == visible_ids(world)
    created = [entry["created_at"] for entry in entries]
    assert created == sorted(created, reverse=True)


def test_a_page_has_20_entries_unless_told(simulator: Simulator) -> None:
    assert call(simulator, SESSIONS).json["length"] == 20
    assert call(simulator, f"{SESSIONS}?limit=").json["length"] == 20
    assert call(simulator, f"{SESSIONS}?limit=7").json["length"] == 7


def test_a_cursor_stays_in_place_while_new_sessions_arrive(world: World, simulator: Simulator) -> None:
    first = call(simulator, f"{SESSIONS}?limit=5").json
    fresh = {**first["entries"][0], "id": UNKNOWN, "created_at": "2025-06-18T14:29:59.999Z"}
    simulator.put_test_session({"testSessionId": UNKNOWN, "status": "RUNNING"}, fresh)
    second = call(simulator, f"{SESSIONS}?limit=5&nextId={first['nextId']}").json
    expected = list(reversed(visible_ids(world)))[:10]
    assert [entry["id"] for entry in first["entries"] + second["entries"]] == expected
    assert call(simulator, f"{SESSIONS}?limit=1").json["entries"][0]["id"] == UNKNOWN


def test_the_last_page_has_no_cursor(world: World, simulator: Simulator) -> None:
    entry = world.entry(visible_ids(world)[4])
    assert entry
    end = time_of(entry["created_at"]).timestamp()
    page = call(simulator, f"{SESSIONS}?limit=4&to={end}").json
    assert page["length"] == 4
    assert page.get("nextId") is None


def test_from_is_inclusive_and_to_exclusive(world: World, simulator: Simulator) -> None:
    ids = visible_ids(world)[100:104]
    first, last = (world.entry(id_) for id_ in (ids[0], ids[-1]))
    assert first
    assert last
    begin, end = (time_of(entry["created_at"]).timestamp() for entry in (first, last))
    assert begin % 1, "the test needs a fraction of a second"
    found = walk(simulator, **{"from": str(begin), "to": str(end)})
    assert [entry["id"] for entry in reversed(found)] == ids[:-1]


@pytest.mark.parametrize("spelling", ["{}", "{}[]"])
@pytest.mark.parametrize(
    ("name", "field", "values"),
    [
        ("statuses", "status", ["RUNNING", "CANCELLED"]),
        ("providers", "provider", ["VERCEL", "PW_REPORTER"]),
        ("branches", "branchName", ["main"]),
    ],
)
def test_arrays_filter_in_both_spellings(
    simulator: Simulator, spelling: str, name: str, field: str, values: list[str]
) -> None:
    query = urlencode({spelling.format(name): values, "limit": 100}, doseq=True)
    page = call(simulator, f"{SESSIONS}?{query}").json
    assert {entry[field] for entry in page["entries"]} == set(values)
    everything = Counter(entry[field] for entry in walk(simulator, limit="100"))
    assert page["length"] == min(100, sum(everything[value] for value in values))


def test_users_are_commit_owners_and_invokers(simulator: Simulator) -> None:
    entries = call(simulator, f"{SESSIONS}?users=mlopez&limit=100").json["entries"]
    by_owner = [entry for entry in entries if entry["commitOwner"] == "mlopez"]
    by_invoker = [entry for entry in entries if (entry.get("invoker") or {}).get("name") == "mlopez"]
    assert by_owner
    assert by_invoker
    assert all(entry in by_owner or entry in by_invoker for entry in entries)


def test_no_users_finds_what_nobody_started(simulator: Simulator) -> None:
    entries = walk(simulator, noUsers="true", limit="100")
    assert entries
    assert all(not entry["commitOwner"] and not entry.get("invoker") for entry in entries)
    with_users = walk(simulator, noUsers="true", users="mlopez", limit="100")
    assert len(with_users) > len(entries)


def test_text_search_looks_at_names_branches_and_commits(simulator: Simulator) -> None:
    entries = walk(simulator, textSearch="WISH LIST", limit="100")
    assert entries
    assert all("wish list" in f"{e['commitMessage']} {e['name']}".lower() for e in entries)


def test_an_error_group_finds_its_sessions(world: World, simulator: Simulator) -> None:
    group = next(g for g in world.error_groups() if "certificate has expired" in g["cleanedErrorMessage"])
    found = {entry["id"] for entry in walk(simulator, errorGroupId=group["id"], limit="100")}
    expected = {
        document["testSessionId"]
        for status in ("FAILED", "CANCELLED", "PASSED")
        for document in of_status(world, status)
        if group["id"] in document["errorGroupIds"]
    }
    assert found == expected != set()


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=101",
        "limit=-1",
        "limit=ten",
        "from=yesterday",
        "to=nan",
        "nextId=",
        "nextId=garbage",
        "nextId=MTIzOmFiYw==",
        "statuses=GREEN",
        "statuses[]=GREEN",
        "providers=GITLAB",
        "noUsers=maybe",
        "textSearch=ab",
        f"textSearch={'a' * 201}",
    ],
)
def test_a_bad_query_is_a_400_that_names_the_parameter(simulator: Simulator, query: str) -> None:
    reply = call(simulator, f"{SESSIONS}?{query}")
    assert reply.status == 400
    assert reply.json["statusCode"] == 400
    assert query.partition("=")[0].removesuffix("[]") in reply.json["message"]


def test_an_entry_belongs_to_the_account_that_asked(simulator: Simulator) -> None:
    asked = "AAAAAAAA-0000-4000-8000-000000000001"
    page = call(simulator, SESSIONS, headers=KEY | {"x-checkly-account": asked}).json
    assert {entry["accountId"] for entry in page["entries"]} == {asked.lower()}
    page = call(simulator, SESSIONS).json
    assert {entry["accountId"] for entry in page["entries"]} == {simulator.account_id}


# -- one session -----------------------------------------------------------------------------------------


def test_the_list_and_the_detail_tell_the_same_story(world: World) -> None:
    for id_ in visible_ids(world):
        entry, detail = world.entry(id_), world.detail(id_)
        assert entry
        assert detail
        metadata = detail.get("metadata", {})
        for name in ("environment", "commitId", "commitOwner", "commitMessage", "branchName", "repoUrl"):
            assert entry[name] == metadata.get(name)
        for name in ("name", "status", "startedAt", "errorGroupIds"):
            assert entry[name] == detail[name]
        finals = Counter(row["status"] for row in detail["results"] if row["resultType"] != "ATTEMPT")
        for status in ("RUNNING", "PASSED", "FAILED", "CANCELLED"):
            assert len(entry[status.lower()]) == finals[status]


def test_the_groups_of_a_session_are_those_of_its_results(world: World) -> None:
    for id_ in visible_ids(world):
        detail = world.detail(id_)
        assert detail
        of_results = {group for row in detail["results"] for group in row["errorGroupIds"]}
        assert set(detail["errorGroupIds"]) == of_results


@pytest.mark.parametrize(
    ("path", "status"),
    [
        (f"{SESSIONS}/not-a-uuid", 400),
        (f"{SESSIONS}/{UNKNOWN}", 404),
        (f"{SESSIONS}/{UNKNOWN}/completion", 404),
        (f"{SESSIONS}/{UNKNOWN}/results/nonsense", 400),
        (f"{SESSIONS}/{UNKNOWN}/results/{UNKNOWN}", 404),
        (f"{SESSIONS}/{UNKNOWN}/completion?maxWaitSeconds=0", 400),
        (f"{SESSIONS}/{UNKNOWN}/completion?maxWaitSeconds=31", 400),
        ("/v1/test-session-error-groups?page=0", 400),
        ("/v1/test-session-error-groups?limit=101", 400),
        ("/v1/test-session-error-groups/projects/x", 400),
        (f"/v1/test-session-error-groups/{UNKNOWN}", 404),
        ("/v1/checks", 404),
        ("/", 404),
    ],
)
def test_what_is_not_there_is_said_in_the_apis_own_words(simulator: Simulator, path: str, status: int) -> None:
    reply = call(simulator, path)
    assert reply.status == status
    assert reply.headers["content-type"].startswith("application/json")
    assert set(reply.json) == {"statusCode", "error", "message"}
    assert reply.json["statusCode"] == status


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_any_other_method_is_a_405(simulator: Simulator, method: str) -> None:
    reply = call(simulator, SESSIONS, method, body=b'{"a": 1}')
    assert (reply.status, reply.json["error"]) == (405, "Method Not Allowed")


def test_ids_are_found_in_any_case(world: World, simulator: Simulator) -> None:
    id_ = visible_ids(world)[0]
    assert call(simulator, f"{SESSIONS}/{id_.upper()}").json["testSessionId"] == id_


def test_attempts_of_an_execution_share_their_sequence_with_the_list(world: World, simulator: Simulator) -> None:
    detail = next(d for d in of_status(world, "PASSED") if any(r["resultType"] == "ATTEMPT" for r in d["results"]))
    attempt = next(row for row in detail["results"] if row["resultType"] == "ATTEMPT")
    of_check = [
        row
        for row in detail["results"]
        if (row["name"], row["runLocation"]) == (attempt["name"], attempt["runLocation"])
    ]
    base = f"{SESSIONS}/{detail['testSessionId']}/results"
    results = [call(simulator, f"{base}/{row['testSessionResultId']}").json for row in of_check]
    assert len(results) >= 2
    assert len({result["sequenceId"] for result in results}) == 1
    entry = world.entry(detail["testSessionId"])
    assert entry
    assert results[0]["sequenceId"] in entry["passed"]
    assert [result["attempts"] for result in results] == list(range(1, len(results) + 1))
    assert results[-1]["resultType"] == "FINAL"


def test_every_check_type_has_the_details_of_its_own(world: World) -> None:
    details = {
        "API": "apiCheckResult",
        "BROWSER": "browserCheckResult",
        "MULTI_STEP": "multiStepCheckResult",
        "PLAYWRIGHT": "playwrightCheckResult",
        "AGENTIC": "agenticCheckResult",
    }
    seen = set()
    for id_ in visible_ids(world)[-80:-10]:
        detail = world.detail(id_)
        assert detail
        for row in detail["results"]:
            result = world.result(id_, row["testSessionResultId"])
            assert result
            present = {name for name in details.values() if name in result}
            expected = details.get(row["checkType"])
            assert present == ({expected} if expected and row["startedAt"] else set())
            seen.add(row["checkType"])
    assert seen >= {*details, "TCP", "URL", "DNS", "SSL", "ICMP", "GRPC", "TRACEROUTE"}


# -- completion ------------------------------------------------------------------------------------------


def test_completion_of_a_final_session_is_its_detail(world: World, simulator: Simulator) -> None:
    path = f"{SESSIONS}/{visible_ids(world)[0]}"
    assert call(simulator, f"{path}/completion").body == call(simulator, path).body


def test_completion_of_a_running_session_is_a_408_when_the_wait_ends(world: World, simulator: Simulator) -> None:
    id_ = of_status(world, "RUNNING")[0]["testSessionId"]
    begin = time.monotonic()
    reply = call(simulator, f"{SESSIONS}/{id_}/completion?maxWaitSeconds=1")
    assert (reply.status, reply.json["error"]) == (408, "Request Timeout")
    assert 0.9 < time.monotonic() - begin < 2


def test_completion_waits_until_the_session_has_ended() -> None:
    start = time.monotonic()
    jump = timedelta(0)
    world = World(1, days=2, clock=lambda: NOW + jump + timedelta(seconds=time.monotonic() - start))
    running = of_status(world, "RUNNING")[0]["testSessionId"]
    jump = _end_of(world, running) - world.clock() - timedelta(milliseconds=300)
    with Simulator(world) as simulator:
        begin = time.monotonic()
        reply = call(simulator, f"{SESSIONS}/{running}/completion?maxWaitSeconds=5")
        assert reply.status == 200
        assert reply.json["status"] in ("PASSED", "FAILED")
        assert 0.1 < time.monotonic() - begin < 1.5


# -- a world that lives ------------------------------------------------------------------------------------


def _end_of(world: World, test_session_id: str) -> datetime:
    """Asks the future."""
    begin = world.at()
    for second in range(900):
        later = begin + second * 1000
        detail = world.detail(test_session_id, later)
        if detail and detail["status"] != "RUNNING":
            return time_of(detail["stoppedAt"])
    raise AssertionError("it does not end within 15 minutes")


def test_two_or_three_sessions_run_now_and_end_within_minutes() -> None:
    clock = Clock(NOW)
    world = World(1, days=3, clock=clock)
    running = [document["testSessionId"] for document in of_status(world, "RUNNING")]
    assert 2 <= len(running) <= 3
    for id_ in running:
        assert timedelta(seconds=20) < _end_of(world, id_) - NOW < timedelta(minutes=8)


def test_a_running_session_fills_up_ends_and_is_grouped_later() -> None:
    clock = Clock(NOW)
    worlds = (World(seed, days=3, clock=clock) for seed in range(1, 9))
    world, id_ = next(
        (world, document["testSessionId"])
        for world in worlds
        for document in of_status(world, "RUNNING")
        if "FAILED" in str(world.detail(document["testSessionId"], world.at() + 900_000))
    )
    end = _end_of(world, id_)
    rows_ended = []
    entries = []
    with Simulator(world) as simulator:
        for moment in (NOW, end - timedelta(seconds=15), end, end + timedelta(seconds=19)):
            clock.moment = moment
            detail = call(simulator, f"{SESSIONS}/{id_}").json
            rows_ended.append(sum(row["resultType"] != "PENDING" for row in detail["results"]))
            entries.append(next(e for e in walk(simulator, limit="100") if e["id"] == id_))
            assert detail["errorGroupIds"] == []
            assert detail["status"] == entries[-1]["status"]
            assert (detail["status"] == "RUNNING") is (moment < end)
        clock.moment = end + timedelta(seconds=20)
        detail = call(simulator, f"{SESSIONS}/{id_}").json
        entry = next(e for e in walk(simulator, limit="100") if e["id"] == id_)
        group = call(simulator, f"/v1/test-session-error-groups/{detail['errorGroupIds'][0]}").json
    assert rows_ended == sorted(rows_ended)
    assert rows_ended[0] < rows_ended[2]
    assert detail["errorGroupIds"] == entry["errorGroupIds"] != []
    assert time_of(group["lastSeen"]) > NOW - timedelta(minutes=5)
    updated = [time_of(e["updated_at"]) for e in [*entries, entry]]
    assert updated == sorted(updated)
    assert updated[-1] > updated[-2] > updated[0]


def test_new_sessions_arrive_in_a_living_world_but_not_within_the_first_minutes() -> None:
    clock = Clock(NOW)
    world = World(1, days=2, clock=clock)
    with Simulator(world) as simulator:
        before = len(walk(simulator, limit="100"))
        clock.moment = NOW + timedelta(minutes=4)
        assert len(walk(simulator, limit="100")) == before
        clock.moment = NOW + timedelta(hours=24)
        after = walk(simulator, limit="100")
        assert before + 5 < len(after)
        assert call(simulator, f"{SESSIONS}/{after[0]['id']}").status == 200


def test_with_a_fixed_now_time_stands_still(world: World) -> None:
    assert world.at() == world.at() == round(NOW.timestamp() * 1000)
    running = of_status(world, "RUNNING")
    assert running
    assert all(row["stoppedAt"] is None for d in running for row in d["results"] if row["resultType"] == "PENDING")


# -- keys and accounts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer "}, {"Authorization": "Basic abc"}])
def test_without_a_key_the_answer_is_401(simulator: Simulator, headers: dict[str, str]) -> None:
    for path in (SESSIONS, f"/next/accounts/{simulator.account_id}"):
        reply = call(simulator, path, headers=headers)
        assert (reply.status, reply.json["error"]) == (401, "Unauthorized")


def test_a_given_key_is_the_only_one_that_opens(world: World) -> None:
    with Simulator(world, api_key="right") as simulator:
        assert call(simulator, SESSIONS, headers={"Authorization": "Bearer wrong"}).status == 401
        assert call(simulator, SESSIONS, headers={"Authorization": "Bearer right"}).status == 200


def test_accounts_have_worlds_of_their_own_and_strangers_none(world: World) -> None:
    mine, other = "aaaaaaaa-0000-4000-8000-000000000001", "AAAAAAAA-0000-4000-8000-000000000002"
    with Simulator(accounts={mine: world, other: World(2, NOW, days=3)}, rate_limit=0) as simulator:

        def entries(account: str) -> list[Json]:
            reply = call(simulator, f"{SESSIONS}?limit=100", headers=KEY | {"x-checkly-account": account})
            return list(reply.json["entries"])

        assert simulator.account_id == mine
        assert {e["accountId"] for e in entries(mine)} == {mine}
        assert {e["accountId"] for e in entries(other)} == {other.lower()}
        assert {e["id"] for e in entries(mine)}.isdisjoint(e["id"] for e in entries(other))
        stranger = KEY | {"x-checkly-account": UNKNOWN}
        for path in (SESSIONS, f"{SESSIONS}/{UNKNOWN}", f"/next/accounts/{UNKNOWN}"):
            assert call(simulator, path, headers=stranger).status == 403


def test_the_official_cli_finds_the_account(simulator: Simulator) -> None:
    account = call(simulator, f"/next/accounts/{simulator.account_id}").json
    assert account == {"id": simulator.account_id, "name": "Acme QA", "runtimeId": "2025.04"}


# -- the rate limit ----------------------------------------------------------------------------------------


def test_the_limiter_is_a_sliding_window_with_a_retry_after(world: World) -> None:
    with Simulator(world, rate_limit=3, rate_window=0.6) as simulator:
        begin = time.monotonic()
        statuses = [call(simulator, f"{SESSIONS}?limit=1").status for _ in range(3)]
        refused = call(simulator, f"{SESSIONS}?limit=1")
        assert [*statuses, refused.status] == [200, 200, 200, 429]
        assert refused.headers["retry-after"] == "1"
        assert refused.json["error"] == "Too Many Requests"
        time.sleep(max(0.0, begin + 0.65 - time.monotonic()))
        assert call(simulator, f"{SESSIONS}?limit=1").status == 200


def test_the_limit_is_each_accounts_own_and_only_for_v1(world: World) -> None:
    with Simulator(world, rate_limit=1) as simulator:
        for account in (simulator.account_id, UNKNOWN):
            headers = KEY | {"x-checkly-account": account}
            assert call(simulator, f"{SESSIONS}?limit=1", headers=headers).status == 200
            refused = call(simulator, f"{SESSIONS}?limit=1", headers=headers)
            assert refused.status == 429
            assert 58 <= int(refused.headers["retry-after"]) <= 60
            assert call(simulator, f"/next/accounts/{account}", headers=headers).status == 200
        assert [request.status for request in simulator.requests] == [200, 429, 200] * 2


def test_a_faulted_request_takes_its_place_in_the_window(world: World) -> None:
    with Simulator(world, rate_limit=1) as simulator:
        simulator.add_fault(kind="status", status=500, times=1)
        assert [call(simulator, SESSIONS).status for _ in range(2)] == [500, 429]


# -- faults ------------------------------------------------------------------------------------------------


def test_faults_are_ordered_listed_counted_and_cleared_over_http(simulator: Simulator) -> None:
    path = "/_simulator/faults"
    order = {"kind": "status", "status": 502, "match": "limit=3", "skip": 1, "times": 2}
    assert call(simulator, path, "POST", body=json.dumps([order]).encode()).status == 201
    statuses = [call(simulator, f"{SESSIONS}?limit=3").status for _ in range(5)]
    assert statuses == [200, 502, 502, 200, 200]
    assert call(simulator, f"{SESSIONS}?limit=2").status == 200
    (listed,) = call(simulator, path).json
    assert listed.items() >= order.items()
    assert listed["hits"] == 2
    assert call(simulator, path, "DELETE").json == []
    assert call(simulator, path).json == []
    assert len(simulator.requests) == 6, "the simulator's own routes are not recorded"


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (b"{", "Expecting"),
        (b"[1]", "JSON object"),
        (b"{}", "kind is missing"),
        (b'{"kind": "explode"}', "kind must be one of status"),
        (b'{"kind": "status", "status": 99}', "status must be"),
        (b'{"kind": "status", "status": true}', "status must be"),
        (b'{"kind": "delay", "seconds": -1}', "seconds must be"),
        (b'{"kind": "reset", "match": "("}', "match must be a regular expression"),
        (b'{"kind": "reset", "times": 0}', "times must be"),
        (b'{"kind": "reset", "probability": 2}', "probability must be"),
        (b'{"kind": "status", "headers": {"A": "b\\r\\nC: d"}}', "headers must be"),
        (b'{"kind": "reset", "when": "now"}', "when is not a field"),
    ],
)
def test_a_bad_fault_is_a_400_that_says_what_is_wrong(simulator: Simulator, body: bytes, complaint: str) -> None:
    reply = call(simulator, "/_simulator/faults", "POST", body=body)
    assert reply.status == 400
    assert complaint in reply.json["message"]
    assert simulator.faults.as_json() == []


def test_a_status_fault_sends_its_headers_and_body(simulator: Simulator) -> None:
    simulator.add_fault(kind="status", status=503, headers={"Retry-After": "2"}, body="out of order", times=1)
    reply = call(simulator, SESSIONS)
    assert (reply.status, reply.headers["retry-after"], reply.body) == (503, "2", b"out of order")
    simulator.add_fault(kind="status", status=402, times=1)
    assert call(simulator, SESSIONS).json["error"] == "Payment Required"


def test_a_delay_comes_before_the_normal_answer(simulator: Simulator) -> None:
    simulator.add_fault(kind="delay", seconds=0.2)
    begin = time.monotonic()
    assert call(simulator, SESSIONS).status == 200
    assert time.monotonic() - begin >= 0.2


def test_a_reset_gives_no_answer_and_is_recorded(simulator: Simulator) -> None:
    simulator.add_fault(kind="reset", times=1)
    with pytest.raises(ConnectionResetError):
        call(simulator, SESSIONS)
    assert [request.status for request in simulator.requests] == [0]
    assert call(simulator, SESSIONS).status == 200


def test_a_cut_ends_in_the_middle_of_the_body(simulator: Simulator) -> None:
    whole = call(simulator, SESSIONS).body
    simulator.add_fault(kind="cut")
    with pytest.raises(http.client.IncompleteRead) as caught:
        call(simulator, SESSIONS)
    assert caught.value.partial == whole[: len(whole) // 2]
    assert caught.value.expected == len(whole) - len(whole) // 2


def test_garbage_is_a_200_in_html(simulator: Simulator) -> None:
    simulator.add_fault(kind="garbage")
    reply = call(simulator, SESSIONS)
    assert reply.status == 200
    assert reply.headers["content-type"].startswith("text/html")
    assert reply.body.startswith(b"<!DOCTYPE html>")


def test_a_redirect_names_its_location(simulator: Simulator) -> None:
    simulator.add_fault(kind="redirect", location="http://127.0.0.1:9/login")
    reply = call(simulator, SESSIONS)
    assert (reply.status, reply.headers["location"]) == (302, "http://127.0.0.1:9/login")


@pytest.mark.parametrize("headers_too", [False, True])
def test_a_trickle_sends_byte_by_byte(simulator: Simulator, headers_too: bool) -> None:
    simulator.add_fault(kind="trickle", seconds=0.001, headers_too=headers_too)
    begin = time.monotonic()
    reply = call(simulator, f"{SESSIONS}/{UNKNOWN}")
    assert reply.status == 404
    assert time.monotonic() - begin > 0.001 * (len(reply.body) + 100 * headers_too)


def test_a_wrong_id_is_a_good_document_of_another_session(world: World, simulator: Simulator) -> None:
    simulator.add_fault(kind="wrong_id")
    id_ = visible_ids(world)[0]
    reply = call(simulator, f"{SESSIONS}/{id_}")
    assert reply.status == 200
    assert reply.json["testSessionId"] != id_
    assert len(reply.json["testSessionId"]) == 36


def test_not_utf8_is_json_but_for_its_bytes(simulator: Simulator) -> None:
    simulator.add_fault(kind="not_utf8")
    reply = call(simulator, f"{SESSIONS}?limit=1")
    with pytest.raises(UnicodeDecodeError):
        reply.body.decode()
    assert json.loads(reply.body.decode("latin-1"))


def test_a_gzip_bomb_is_small_on_the_wire(simulator: Simulator) -> None:
    simulator.add_fault(kind="gzip_bomb", size=20_000_003)
    reply = call(simulator, SESSIONS)
    assert reply.headers["content-encoding"] == "gzip"
    assert len(reply.body) < 50_000
    assert len(gzip.decompress(reply.body)) == 20_000_003


def test_a_probable_fault_hits_about_as_often_as_said(world: World) -> None:
    outcomes = []
    for _ in range(2):
        with Simulator(world, rate_limit=0) as simulator:
            simulator.add_fault(kind="status", probability=0.3)
            outcomes.append([call(simulator, f"{SESSIONS}?limit=1").status for _ in range(60)])
    assert outcomes[0] == outcomes[1], "the dice are seeded"
    assert 8 <= outcomes[0].count(503) <= 30


# -- the wire ----------------------------------------------------------------------------------------------


def test_large_bodies_are_compressed_for_those_who_accept_it(simulator: Simulator) -> None:
    plain = call(simulator, SESSIONS)
    packed = call(simulator, SESSIONS, headers=KEY | {"Accept-Encoding": "gzip, deflate"})
    assert "content-encoding" not in plain.headers
    assert packed.headers["content-encoding"] == "gzip"
    assert len(packed.body) < len(plain.body) / 2
    assert gzip.decompress(packed.body) == plain.body
    small = call(simulator, f"{SESSIONS}/{UNKNOWN}", headers=KEY | {"Accept-Encoding": "gzip"})
    assert "content-encoding" not in small.headers


def test_one_connection_carries_many_requests(simulator: Simulator) -> None:
    connection = http.client.HTTPConnection(simulator.url.removeprefix("http://"), timeout=5)
    for path, method in ((SESSIONS, "GET"), (SESSIONS, "POST"), ("/nowhere", "GET"), (SESSIONS, "HEAD")) * 5:
        connection.request(method, path, b"{}" if method == "POST" else None, KEY)
        connection.getresponse().read()
        assert connection.sock is not None, "the server hung up"
    connection.close()


def test_requests_are_recorded_with_what_they_asked_and_got(simulator: Simulator) -> None:
    begin = time.monotonic()
    call(simulator, f"{SESSIONS}?statuses[]=FAILED&statuses[]=PASSED&limit=2", headers=KEY | {"X-Trace": "Abc"})
    (request,) = simulator.requests
    assert (request.method, request.path, request.status) == ("GET", SESSIONS, 200)
    assert request.query == {"statuses[]": ["FAILED", "PASSED"], "limit": ["2"]}
    assert request.headers["x-trace"] == "Abc"
    assert request.headers["authorization"] == "Bearer some-key"
    assert begin <= request.at <= time.monotonic()
    simulator.clear_requests()
    assert simulator.requests == []


def test_the_end_hangs_up_on_everybody_at_once(world: World) -> None:
    with Simulator(world) as simulator:
        host, _, port = simulator.url.removeprefix("http://").partition(":")
        idle = socket.create_connection((host, int(port)), timeout=5)
        waiting = socket.create_connection((host, int(port)), timeout=5)
        running = of_status(world, "RUNNING")[0]["testSessionId"]
        waiting.sendall(f"GET {SESSIONS}/{running}/completion HTTP/1.1\r\nAuthorization: Bearer k\r\n\r\n".encode())
        while not simulator.requests:
            time.sleep(0.005)
        begin = time.monotonic()
    assert time.monotonic() - begin < 1
    assert idle.recv(1) == b""
    idle.close()
    waiting.close()


def test_a_client_that_hangs_up_leaves_no_trace(simulator: Simulator, capfd: pytest.CaptureFixture[str]) -> None:
    simulator.add_fault(kind="delay", seconds=0.05, times=1)
    host, _, port = simulator.url.removeprefix("http://").partition(":")
    rude = socket.create_connection((host, int(port)), timeout=5)
    rude.sendall(f"GET {SESSIONS} HTTP/1.1\r\nAuthorization: Bearer k\r\n\r\n".encode())
    rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    rude.close()
    time.sleep(0.1)
    assert call(simulator, SESSIONS).status == 200
    assert capfd.readouterr().err == ""


def test_serve_forever_ends_with_a_keyboard_interrupt_quietly() -> None:
    program = (
        "import signal\n"
        "from etl.simulator import Simulator, World\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored, where the tests run in the background
        "simulator = Simulator(World(days=1))\n"
        "print(simulator.url, flush=True)\n"
        "simulator.serve_forever()\n"
    )
    command = [sys.executable, "-W", "error", "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stderr
        url = process.stdout.readline().strip()
        with urllib.request.urlopen(urllib.request.Request(f"{url}{SESSIONS}", headers=KEY)) as answer:
            assert json.load(answer)["entries"]
        process.send_signal(2)
        try:
            assert process.wait(5) == 0
        finally:
            process.kill()
        assert process.stderr.read() == ""


# -- what tests put in -------------------------------------------------------------------------------------


def test_a_session_that_was_put_is_sent_as_it_is(simulator: Simulator) -> None:
    raw = b'{"testSessionId": "%s",  "name": "\\u0000", "status": "RUNNING"}' % UNKNOWN.encode()
    simulator.put_test_session(raw, None)
    path = f"{SESSIONS}/{UNKNOWN}"
    assert call(simulator, path).body == raw
    assert UNKNOWN not in [e["id"] for e in walk(simulator, limit="100")], "known by its id only"
    simulator.put_test_session(raw.replace(b"RUNNING", b"PASSED"), None)
    assert call(simulator, f"{path}/completion").json["status"] == "PASSED"
    simulator.put_test_session(b"no json", {"id": UNKNOWN, "created_at": "2025-06-01T00:00:00Z", "more": 1})
    assert call(simulator, path).body == b"no json"
    (entry,) = [e for e in walk(simulator, limit="100") if e["id"] == UNKNOWN]
    assert entry == {"id": UNKNOWN, "created_at": "2025-06-01T00:00:00Z", "more": 1}


def test_a_session_that_was_put_replaces_the_worlds_own(world: World, simulator: Simulator) -> None:
    id_ = visible_ids(world)[50]
    count = len(walk(simulator, limit="100"))
    call(simulator, f"{SESSIONS}/{id_}")
    simulator.put_test_session({"testSessionId": id_, "status": "PASSED", "results": []}, None)
    assert call(simulator, f"{SESSIONS}/{id_}").json["results"] == []
    entries = walk(simulator, limit="100")
    assert len(entries) == count
    assert world.entry(id_) in entries, "without an entry the list stays as it is"


def test_results_of_a_session_that_was_put_have_details(world: World, simulator: Simulator) -> None:
    detail = next(d for d in of_status(world, "FAILED") if any(r["resultType"] == "ATTEMPT" for r in d["results"]))
    moved = json.loads(json.dumps(detail).replace(detail["testSessionId"], UNKNOWN))
    simulator.put_test_session(moved, None)
    sequences = defaultdict(set)
    for row in moved["results"]:
        path = f"{SESSIONS}/{UNKNOWN}/results/{row['testSessionResultId']}"
        sequences[row["name"], row["runLocation"]].add(call(simulator, path).json["sequenceId"])
    assert {len(ids) for ids in sequences.values()} == {1}


def test_a_session_that_was_removed_is_gone_everywhere(world: World, simulator: Simulator) -> None:
    id_ = visible_ids(world)[-5]
    call(simulator, f"{SESSIONS}/{id_}")
    simulator.remove_test_session(id_)
    for path in (f"{SESSIONS}/{id_}", f"{SESSIONS}/{id_}/completion"):
        assert call(simulator, path).status == 404
    assert id_ not in [entry["id"] for entry in walk(simulator, limit="100")]
    with Simulator(world, rate_limit=0) as other:
        assert call(other, f"{SESSIONS}/{id_}").status == 200, "the world itself is as it was"


def test_a_put_session_without_any_id_is_refused(simulator: Simulator) -> None:
    with pytest.raises(ValueError, match="no id"):
        simulator.put_test_session(b"no json", None)


def test_an_error_group_that_was_put_is_found_in_every_way(simulator: Simulator) -> None:
    group = {"id": UNKNOWN, "projectId": UNKNOWN, "cleanedErrorMessage": "new"}
    simulator.put_error_group(group)
    assert call(simulator, f"/v1/test-session-error-groups/{UNKNOWN}").json == group
    assert call(simulator, "/v1/test-session-error-groups").json[0] == group
    assert call(simulator, f"/v1/test-session-error-groups/projects/{UNKNOWN}").json == [group]


# -- error groups ------------------------------------------------------------------------------------------


def test_error_groups_come_in_pages(world: World, simulator: Simulator) -> None:
    groups = world.error_groups()
    assert 12 <= len(groups) <= 20
    pages = [call(simulator, f"/v1/test-session-error-groups?limit=8&page={n}").json for n in (1, 2, 3, 4)]
    assert [group for page in pages for group in page] == groups
    assert pages[3] == []
    assert len(call(simulator, "/v1/test-session-error-groups").json) == 10


def test_a_projects_error_groups_are_its_own(world: World, simulator: Simulator) -> None:
    projects = {group["projectId"] for group in world.error_groups()}
    assert len(projects) == 2
    found = []
    for project in projects:
        page = call(simulator, f"/v1/test-session-error-groups/projects/{quote(project)}?limit=100").json
        assert {group["projectId"] for group in page} == {project}
        found += page
    assert len(found) == len(world.error_groups())


def test_first_and_last_seen_are_those_of_the_results_that_refer_to_a_group(world: World) -> None:
    seen = defaultdict(list)
    environments = defaultdict(set)
    for id_ in visible_ids(world):
        detail, entry = world.detail(id_), world.entry(id_)
        assert detail
        assert entry
        for row in detail["results"]:
            for group_id in row["errorGroupIds"]:
                seen[group_id].append(row["stoppedAt"])
                if entry["environment"]:
                    environments[group_id].add(entry["environment"])
    groups = {group["id"]: group for group in world.error_groups()}
    assert set(seen) == set(groups)
    for id_, group in groups.items():
        assert (group["firstSeen"], group["lastSeen"]) == (min(seen[id_]), max(seen[id_]))
        assert set(group["environments"]) >= environments[id_]
        assert len(group["errorHash"]) == 64


def test_error_groups_have_all_the_faces_that_the_api_knows(world: World) -> None:
    groups = world.error_groups()
    analyses = [a for group in groups for a in group.get("rootCauseAnalyses", ())]
    assert any(a["analysis"] for a in analyses)
    assert any(a["analysis"] is None for a in analyses), "one is still being made"
    assert any("rootCauseAnalyses" not in group for group in groups)
    assert any(group.get("rootCauseAnalyses") == [] for group in groups)
    assert {group["archivedUntilNextEvent"] for group in groups} == {True, False}
    assert any(group["pwtMetadata"] for group in groups)
    assert any(group["pwtMetadata"] is None for group in groups)


# -- is the world believable? ------------------------------------------------------------------------------


class Run:
    """One execution: its FINAL, and the attempts before it."""

    def __init__(self, entry: Json, final: Json, attempts: int) -> None:
        self.name: str = final["name"]
        self.status: str = final["status"]
        self.attempts = attempts
        self.branch = entry["branchName"]
        self.commit = entry["commitId"]
        self.place = (entry["environment"], final["runLocation"])
        self.started = final["startedAt"]
        self.has_ended = final["resultType"] == "FINAL" and self.status in ("PASSED", "FAILED")
        self.duration = 0.0
        if final["stoppedAt"]:
            self.duration = (time_of(final["stoppedAt"]) - time_of(self.started)).total_seconds()

    @property
    def day(self) -> int:
        """Days ago."""
        return (NOW.date() - time_of(self.started).date()).days


@pytest.fixture(scope="module")
def runs(world: World) -> list[Run]:
    runs = []
    for id_ in visible_ids(world):
        entry, detail = world.entry(id_), world.detail(id_)
        assert entry
        assert detail
        attempts: Counter[tuple[str, str]] = Counter()
        for row in detail["results"]:
            key = row["name"], row["runLocation"]
            if row["resultType"] == "ATTEMPT":
                attempts[key] += 1
            else:
                runs.append(Run(entry, row, attempts.pop(key, 0)))
    return [run for run in runs if run.has_ended]


def test_the_world_has_the_size_of_a_real_account(world: World) -> None:
    ids = visible_ids(world)
    details = [detail for id_ in ids if (detail := world.detail(id_))]
    entries = [entry for id_ in ids if (entry := world.entry(id_))]
    rows = [row for detail in details for row in detail["results"]]
    assert 1400 <= len(ids) <= 1650
    assert 18_000 <= len(rows) <= 26_000
    assert len({row["testSessionResultId"] for row in rows}) == len(rows)
    assert 28 <= len({row["checkId"] for row in rows if row.get("checkId")}) <= 36
    assert len({row["checkType"] for row in rows}) >= 10
    assert len({row["runLocation"] for row in rows}) == 4
    assert {entry["environment"] for entry in entries} == {"production", "staging", "preview", None}
    assert {entry["provider"] for entry in entries} == {"GITHUB", "VERCEL", "API", "TRIGGER", "PW_REPORTER"}
    statuses = Counter(detail["status"] for detail in details)
    assert statuses["RUNNING"] in (2, 3)
    assert 15 <= statuses["CANCELLED"] <= 70
    assert statuses["PASSED"] > statuses["FAILED"] > 300
    executions = [sum(row["resultType"] != "ATTEMPT" for row in detail["results"]) for detail in details]
    assert min(executions) >= 5
    assert max(executions) <= 25
    assert any(row.get("checkId") is None for row in rows)
    assert 50 < sum(row["isDegraded"] for row in rows) < 500
    assert any(row["resultType"] == "PENDING" for row in rows)
    days = Counter(time_of(entry["created_at"]).weekday() for entry in entries)
    assert days[1] > 2 * days[6], "people work on Tuesdays"
    hours = Counter(time_of(entry["created_at"]).hour for entry in entries)
    assert sum(hours[h] for h in range(8, 18)) > 3 * sum(hours[h] for h in (22, 23, 0, 1, 2, 3, 4, 5))


def test_rows_stand_in_the_order_of_time_with_attempts_before_their_final(world: World) -> None:
    for id_ in visible_ids(world):
        detail = world.detail(id_)
        assert detail
        started = [row["startedAt"] for row in detail["results"] if row["startedAt"]]
        assert started == sorted(started)
        open_attempts: set[tuple[str, str]] = set()
        for row in detail["results"]:
            key = row["name"], row["runLocation"]
            if row["resultType"] == "ATTEMPT":
                assert row["status"] == "FAILED"
                open_attempts.add(key)
            else:
                open_attempts.discard(key)
        assert not open_attempts


def test_a_retry_flaky_check_passes_at_a_later_try(runs: list[Run]) -> None:
    by_check = Counter(run.name for run in runs if run.status == "PASSED" and run.attempts)
    totals = Counter(run.name for run in runs)
    for name in ("Checkout: pay with credit card", "Payments API: capture and refund"):
        assert 0.1 < by_check[name] / totals[name] < 0.3
    others = [by_check[name] / totals[name] for name in totals if totals[name] > 100]
    assert sum(rate > 0.05 for rate in others) == 2


def test_a_commit_flaky_check_passes_and_fails_on_one_commit(runs: list[Run]) -> None:
    seen = defaultdict(set)
    for run in runs:
        if run.commit:
            seen[run.name, run.commit, run.place].add(run.status)
    mixed = Counter(name for (name, *_), statuses in seen.items() if len(statuses) == 2)
    assert {name for name, _ in mixed.most_common(2)} == {
        "Cart: badge shows the number of items",
        "Payments API: webhook arrives signed",
    }
    assert mixed["Visual: product page (WebKit)"] < 10, "flip-flaky is not commit-flaky"


def test_a_flip_flaky_check_changes_its_mind_between_commits(runs: list[Run]) -> None:
    history = defaultdict(list)
    for run in sorted(runs, key=lambda run: run.started):
        history[run.name, run.branch, run.place].append(run.status)
    flips: Counter[str] = Counter()
    for (name, *_), statuses in history.items():
        flips[name] += sum(one != next_ for one, next_ in pairwise(statuses))
    for name in ("Visual: product page (WebKit)", "Ledger API: balance after a transfer"):
        assert flips[name] > 60
    assert flips["Home page answers"] < 25


def test_an_incident_nine_days_ago_broke_many_checks_at_once(runs: list[Run]) -> None:
    begin, end = NOW - timedelta(hours=9 * 24 + 2), NOW - timedelta(hours=9 * 24 - 1.5)
    during = [
        run for run in runs if begin <= time_of(run.started) <= end and run.place[0] in ("production", "staging")
    ]
    failed = {run.name for run in during if run.status == "FAILED"}
    assert len(failed) >= 12
    assert sum(run.status == "FAILED" for run in during) > 0.4 * len(during)
    share = sum(run.status == "FAILED" for run in runs) / len(runs)
    assert 0.02 < share < 0.12, "and the ordinary day is not like that"


def test_one_check_gets_slower_during_the_last_week(runs: list[Run]) -> None:
    """The same comparison as v_duration_regressions makes."""

    def p95(values: list[float]) -> float:
        return sorted(values)[(95 * len(values) + 99) // 100 - 1]

    durations: dict[Any, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        if run.status == "PASSED" and run.attempts == 0:
            durations[run.name, run.place][run.day].append(run.duration)
    ratios = {}
    for key, by_day in durations.items():
        recent = [value for day in range(7) for value in by_day.get(day, ())]
        baseline = [p95(by_day[day]) for day in range(7, 14) if day in by_day]
        if len(recent) >= 15 and len(baseline) >= 5:
            ratios[key] = p95(recent) / max(baseline)
    (worst, _), *_ = sorted(ratios, key=lambda key: -ratios[key])
    assert worst == "Search: filter shoes by size and colour"
    assert max(ratios.values()) > 1.35
    others = [ratio for (name, _), ratio in ratios.items() if name != worst]
    assert max(others) < 1.35


def test_one_check_is_broken_on_main_since_yesterday(runs: list[Run]) -> None:
    name = "Checkout: pay with gift card"
    main = [run for run in runs if run.name == name and run.branch == "main"]
    main = sorted((run for run in main if run.place[0] in ("production", "staging")), key=lambda run: run.started)
    since = NOW - timedelta(hours=26)
    after = [run for run in main if time_of(run.started) >= since]
    assert len(after) >= 5
    assert {run.status for run in after} == {"FAILED"}
    assert main[-len(after) - 1].status == "PASSED"
    assert NOW - time_of(after[-1].started) < timedelta(hours=1)


def test_cancelled_sessions_hold_a_mix_of_verdicts(world: World) -> None:
    mixes = [{row["status"] for row in detail["results"]} for detail in of_status(world, "CANCELLED")]
    assert all("CANCELLED" in mix for mix in mixes)
    assert sum(mix >= {"CANCELLED", "FAILED", "PASSED"} for mix in mixes) >= 5


def test_a_branch_moves_forward_and_is_merged_with_a_pull_request(world: World) -> None:
    details = [detail for id_ in visible_ids(world) if (detail := world.detail(id_))]
    metadata = [detail["metadata"] for detail in details if "branchName" in detail.get("metadata", {})]
    branches = Counter(m["branchName"] for m in metadata)
    assert branches["main"] > 500
    assert len(branches) > 60
    merges = {m["commitMessage"] for m in metadata if m["commitMessage"].startswith("Merge pull request #")}
    assert len(merges) > 60
    for url in {m["repoUrl"] for m in metadata}:
        main = [m["commitId"] for m in metadata if (m["branchName"], m["repoUrl"]) == ("main", url)]
        heads = [commit for commit, _ in groupby(main)]
        assert len(heads) == len(set(heads)), "main never goes back"
    github = [m["github"] for m in metadata if "github" in m]
    assert {g["eventName"] for g in github} >= {"pull_request", "push", "deployment_status", "schedule"}
    assert all(g["sha"] == m["commitId"] for m in metadata if (g := m.get("github")))


def test_optional_fields_are_absent_here_and_there(world: World) -> None:
    details = [detail for id_ in visible_ids(world) if (detail := world.detail(id_))]
    entries = [entry for id_ in visible_ids(world) if (entry := world.entry(id_))]
    assert any("commitOwner" not in d.get("metadata", {}) for d in details)
    assert any("github" not in d.get("metadata", {}) for d in details)
    assert any("invoker" not in e for e in entries)
    assert any(e.get("invoker", 0) is None for e in entries)
    assert any(e.get("projectId") is None for e in entries)
    assert any("checkId" not in row for d in details for row in d["results"])


def test_a_small_world_is_quick_and_whole() -> None:
    begin = time.monotonic()
    world = World(5, NOW, days=1)
    assert time.monotonic() - begin < 1
    assert 2 <= len(of_status(world, "RUNNING")) <= 3
    assert len(visible_ids(world)) >= 10
    assert hashlib.sha256(json.dumps(world.error_groups()).encode()).digest()
