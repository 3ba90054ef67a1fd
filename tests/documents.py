"""Small documents as Checkly sends them, for tests that need to say exactly what is in one."""

from __future__ import annotations

from typing import Any

from tests.conftest import ACCOUNT

Json = dict[str, Any]
STARTED = "2026-11-14T10:00:00.000Z"
STOPPED = "2026-11-14T10:05:00.000Z"


def uuid(number: int) -> str:
    """A readable UUID."""
    return f"{number:08x}-0000-4000-8000-000000000000"


def result(number: int, **fields: Any) -> Json:
    """A FINAL result that passed; `fields` replace or add."""
    return {
        "testSessionResultId": uuid(0xA000 + number),
        "testSessionResultLink": f"https://app.checklyhq.com/results/{number}",
        "checkId": uuid(0xC000 + number),
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
        "startedAt": STARTED,
        "stoppedAt": "2026-11-14T10:00:01.500Z",
    } | fields


def detail(number: int, **fields: Any) -> Json:
    """A PASSED session with two results; `fields` replace or add."""
    return {
        "testSessionId": uuid(number),
        "testSessionLink": f"https://app.checklyhq.com/test-sessions/{uuid(number)}",
        "name": f"session {number}",
        "status": "PASSED",
        "errorGroupIds": [],
        "startedAt": STARTED,
        "stoppedAt": STOPPED,
        "timeElapsed": 300000,
        "metadata": {"environment": "production", "branchName": "main", "commitId": "abc"},
        "results": [result(1), result(2)],
    } | fields


def running(number: int, **fields: Any) -> Json:
    """A RUNNING session with one finished and one pending result."""
    pending = result(2, resultType="PENDING", status="RUNNING", startedAt=None, stoppedAt=None)
    return detail(number, status="RUNNING", stoppedAt=None, results=[result(1), pending]) | fields


def entry(number: int, **fields: Any) -> Json:
    """The list entry of a session; `fields` replace or add."""
    return {
        "id": uuid(number),
        "accountId": ACCOUNT,
        "projectId": uuid(0xB000),
        "name": f"session {number}",
        "provider": "GITHUB",
        "errorGroupIds": [],
        "running": [],
        "passed": [],
        "failed": [],
        "cancelled": [],
        "status": "PASSED",
        "region": "eu-central-1",
        "privateLocationId": None,
        "invoker": {"name": "Ada", "picture": None},
        "repoUrl": None,
        "commitId": "abc",
        "commitOwner": "ada",
        "commitMessage": "Fix it",
        "branchName": "main",
        "environment": "production",
        "startedAt": STARTED,
        "stoppedAt": STOPPED,
        "created_at": STARTED,
        "updated_at": STOPPED,
    } | fields


def error_group(number: int, **fields: Any) -> Json:
    """An error group without Playwright metadata."""
    return {
        "id": uuid(0xE000 + number),
        "projectId": uuid(0xB000),
        "environments": ["production"],
        "errorHash": "hash",
        "rawErrorMessage": "Error: expected 1 to be 2",
        "cleanedErrorMessage": "Error: expected <n> to be <n>",
        "firstSeen": STARTED,
        "lastSeen": STOPPED,
        "archivedUntilNextEvent": False,
        "pwtMetadata": None,
        "rootCauseAnalyses": [],
    } | fields
