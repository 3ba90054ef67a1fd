"""Every document that the simulator can send keeps to the official description of Checkly's API."""

from __future__ import annotations

import functools
import http.client
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from etl.simulator import Simulator, World

DESCRIPTION = Path(__file__).resolve().parents[2] / "shared" / "checkly-openapi.json"

pytestmark = pytest.mark.skipif(
    not DESCRIPTION.exists(), reason="the official API description (../shared/checkly-openapi.json) is not here"
)

NOW = datetime(2025, 6, 18, 14, 30, tzinfo=UTC)
SESSIONS = "/v1/test-sessions"
GROUPS = "/v1/test-session-error-groups"
UNKNOWN = "99999999-9999-4999-8999-999999999999"


def as_json_schema(node: Any) -> Any:
    """OpenAPI 3.0 says `nullable` where JSON Schema says that the type, and the enum, include null."""
    if isinstance(node, list):
        return [as_json_schema(item) for item in node]
    if not isinstance(node, dict):
        return node
    schema = {key: as_json_schema(value) for key, value in node.items() if key not in ("nullable", "example")}
    if node.get("exclusiveMinimum") is True:
        schema["exclusiveMinimum"] = schema.pop("minimum")
    if node.get("nullable") is not True or node.keys() == {"nullable"}:
        return schema
    if isinstance(node.get("type"), str):
        if "enum" in node:
            schema["enum"] = [*node["enum"], None]
        return schema | {"type": [node["type"], "null"]}
    return {"anyOf": [schema, {"type": "null"}]}


@functools.cache
def schemas() -> dict[str, Any]:
    described = json.loads(DESCRIPTION.read_text("utf-8"))
    return dict(as_json_schema(described["components"]["schemas"]))


def inlined(node: Any) -> Any:
    """Without references (none is recursive): following them takes most of a validation's time."""
    if isinstance(node, list):
        return [inlined(item) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        name = node["$ref"].removeprefix("#/components/schemas/")
        others = {key: value for key, value in node.items() if key != "$ref"}
        return inlined({**schemas()[name], **others})
    return {key: inlined(value) for key, value in node.items()}


@functools.cache
def validator(name: str) -> jsonschema.Draft202012Validator:
    schema = inlined(schemas()[name])
    formats = jsonschema.FormatChecker()
    assert {"date-time", "uuid"} <= set(formats.checkers), "install rfc3339-validator"
    return jsonschema.Draft202012Validator(schema, format_checker=formats)


def check(name: str, document: Any) -> None:
    problems = [f"{error.json_path}: {error.message[:200]}" for error in validator(name).iter_errors(document)]
    assert not problems, f"{name} {problems[:5]}"


@pytest.fixture(scope="module")
def world() -> World:
    return World(1, NOW)


@pytest.fixture(scope="module")
def simulator(world: World) -> Iterator[Simulator]:
    with Simulator(world, rate_limit=0) as simulator:
        yield simulator


@pytest.fixture(scope="module")
def connection(simulator: Simulator) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection(simulator.url.removeprefix("http://"), timeout=10)
    yield connection
    connection.close()


def get(connection: http.client.HTTPConnection, path: str, key: str = "Bearer k") -> tuple[int, Any]:
    connection.request("GET", path, headers={"Authorization": key})
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def visible_ids(world: World) -> list[str]:
    return [id_ for created, id_ in world.timetable() if created <= world.at()]


def test_the_validator_bites() -> None:
    with pytest.raises(AssertionError, match="testSessionId"):
        check("FindOneTestSessionResponse", {})
    entry = {"id": "no-uuid", "accountId": UNKNOWN, "name": "n", "provider": "API", "region": "r"}
    entry |= {"startedAt": "yesterday", "created_at": "2025-06-18T14:30:00.000Z"}
    with pytest.raises(AssertionError, match=r"\$\.id.*\$\.startedAt"):
        check("TestSessionListEntry", entry)


def test_every_page_of_the_list(world: World, connection: http.client.HTTPConnection) -> None:
    count, cursor = 0, ""
    while True:
        status, page = get(connection, f"{SESSIONS}?limit=100{cursor}")
        assert status == 200
        check("ListTestSessionsResponse", page)
        count += page["length"]
        if not page.get("nextId"):
            break
        cursor = f"&nextId={page['nextId']}"
    assert count == len(visible_ids(world))


def test_every_field_of_an_entry_and_of_a_detail_is_described(world: World) -> None:
    described = schemas()
    for id_ in visible_ids(world):
        entry, detail = world.entry(id_), world.detail(id_)
        assert entry
        assert detail
        for name, document in (
            ("TestSessionListEntry", entry),
            ("FindOneTestSessionResponse", detail),
            ("TestSessionMetadata", detail.get("metadata", {})),
            *(("TestSessionResult", row) for row in detail["results"]),
        ):
            assert document.keys() <= described[name]["properties"].keys()


@pytest.mark.parametrize("part", range(8))
def test_every_detail(world: World, connection: http.client.HTTPConnection, part: int) -> None:
    for id_ in visible_ids(world)[part::8]:
        status, detail = get(connection, f"{SESSIONS}/{id_}")
        assert status == 200
        check("FindOneTestSessionResponse", detail)


def test_completions_of_final_sessions(world: World, connection: http.client.HTTPConnection) -> None:
    for id_ in visible_ids(world)[:-10:25]:
        status, detail = get(connection, f"{SESSIONS}/{id_}/completion?maxWaitSeconds=1")
        assert status == 200
        check("AwaitTestSessionCompletionResponse", detail)


def test_results_of_every_kind(world: World, connection: http.client.HTTPConnection) -> None:
    """All results of some sessions, and all kinds (type, outcome, try) from all sessions."""
    seen = set()
    described = schemas()["FindOneTestSessionResultResponse"]["properties"].keys()
    for number, id_ in enumerate(reversed(visible_ids(world))):
        detail = world.detail(id_)
        assert detail
        for row in detail["results"]:
            kind = row["checkType"], row["resultType"], row["status"], row["hasErrors"], row["startedAt"] is None
            if kind in seen and number > 12:
                continue
            seen.add(kind)
            status, result = get(connection, f"{SESSIONS}/{id_}/results/{row['testSessionResultId']}")
            assert status == 200
            check("FindOneTestSessionResultResponse", result)
            assert result.keys() <= described
            assert {name: result[name] for name in row} == row
    assert len(seen) > 40


def test_every_error_group_alone_and_in_the_lists(world: World, connection: http.client.HTTPConnection) -> None:
    analysis = validator("analysis")
    status, groups = get(connection, f"{GROUPS}?limit=100")
    assert status == 200
    check("TestSessionErrorGroupsList", groups)
    for group in groups:
        assert get(connection, f"{GROUPS}/{group['id']}") == (200, group)
        check("TestSessionErrorGroup", group)
        for root_cause in group.get("rootCauseAnalyses", ()):
            if root_cause["analysis"] is not None:
                analysis.validate(root_cause["analysis"])
    for project_id in {group["projectId"] for group in groups}:
        status, of_project = get(connection, f"{GROUPS}/projects/{project_id}?limit=100")
        assert status == 200
        check("TestSessionErrorGroupsList", of_project)


def test_every_error(simulator: Simulator, connection: http.client.HTTPConnection) -> None:
    for path, expected in (
        (f"{SESSIONS}?limit=0", 400),
        (f"{SESSIONS}/x", 400),
        (f"{SESSIONS}/{UNKNOWN}", 404),
        (f"{GROUPS}/{UNKNOWN}", 404),
    ):
        status, error = get(connection, path)
        assert (status, error["statusCode"]) == (expected, expected)
        check("ApiError", error)
    status, error = get(connection, SESSIONS, key="")
    assert status == 401
    check("ApiError", error)
    check("UnauthorizedError", error)
    for ordered, name in (
        (402, "ApiError"),
        (408, "ApiError"),
        (403, "ForbiddenError"),
        (429, "TooManyRequestsError"),
    ):
        simulator.add_fault(kind="status", status=ordered, times=1)
        status, error = get(connection, SESSIONS)
        assert status == ordered
        check("ApiError", error)
        check(name, error)


def test_documents_of_a_session_in_every_phase_of_its_life() -> None:
    world = World(3, days=2, clock=lambda: NOW)
    start = world.at()
    for seconds in range(0, 420, 13):
        at = start + int(timedelta(seconds=seconds).total_seconds() * 1000)
        for created, id_ in world.timetable():
            if not start - 300_000 < created < at:
                continue
            detail = world.detail(id_, at)
            assert detail
            check("FindOneTestSessionResponse", detail)
            check("TestSessionListEntry", world.entry(id_, at))
            for row in detail["results"][-3:]:
                result = world.result(id_, row["testSessionResultId"], at)
                check("FindOneTestSessionResultResponse", result)
