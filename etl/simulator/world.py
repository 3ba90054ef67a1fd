"""A Checkly account as it can be seen at one moment: the API's documents, as plain dicts.

Hides how a planned test session looks while it runs, when it has ended, and when its errors have been
grouped. Pure but for the clock, which is read only by a world that lives. The same (seed, now) gives
the same documents, byte for byte.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from etl.simulator.catalog import PLAYWRIGHT_TYPES, PRIVATE, PRIVATE_LOCATION_ID, Check
from etl.simulator.timeline import (
    EPOCH,
    MINUTE,
    ErrorGroup,
    Occurrence,
    Result,
    TestSession,
    Timeline,
    stable_uuid,
)

Json = dict[str, Any]

ACCOUNT_ID = "33333333-3333-4333-8333-333333333333"
APP = "https://app.checklyhq.com"
ASSETS = "https://assets.simulator.invalid"  # a name that can never resolve: nobody is to be called


class World:
    """`now=None` follows the clock: test sessions begin, run and end while you watch.

    With a fixed `now` time stands still, and what is RUNNING runs for ever. `clock` replaces the wall
    clock of a living world, so that a test can let time pass.
    """

    def __init__(
        self,
        seed: int = 1,
        now: datetime | None = None,
        days: int = 90,
        *,
        account_id: str = ACCOUNT_ID,
        clock: Callable[[], datetime] | None = None,
    ) -> None:
        if now is not None and now.tzinfo is None:
            raise ValueError("now has no time zone")
        if days < 1:
            raise ValueError("days must be 1 or more")
        tick = clock or (lambda: datetime.now(UTC))
        start = _milliseconds(now or tick())
        self.seed = seed
        self.days = days
        self.account_id = account_id.lower()
        self.now = EPOCH + timedelta(milliseconds=start)
        self.clock: Callable[[], datetime] = (lambda: self.now) if now is not None else tick
        timeline = Timeline(seed, start, days)
        self._planned = {planned.id: planned for planned in timeline.test_sessions}
        self._groups = timeline.groups

    def at(self) -> int:
        """The moment that the documents show, in milliseconds since 1970."""
        return _milliseconds(self.clock())

    def timetable(self) -> list[tuple[int, str]]:
        """(creation time in ms, id) of every test session, those to come included, oldest first."""
        return [(planned.created_ms, planned.id) for planned in self._planned.values()]

    def is_settled(self, test_session_id: str, at: int) -> bool:
        """No document about it changes after `at`."""
        return self._planned[test_session_id].settled_ms <= at

    # -- test sessions ---------------------------------------------------------------------------------

    def detail(self, test_session_id: str, at: int | None = None) -> Json | None:
        """FindOneTestSessionResponse; None when there is no such test session (yet)."""
        at = self.at() if at is None else at
        planned = self._find(test_session_id, at)
        if planned is None:
            return None
        is_running = at < planned.stopped_ms
        document: Json = {
            "testSessionId": planned.id,
            "testSessionLink": self._link(planned),
            "name": planned.name,
            "status": "RUNNING" if is_running else planned.status,
            "errorGroupIds": planned.group_ids if at >= planned.settled_ms else [],
            "startedAt": _iso(planned.started_ms),
            "stoppedAt": None if is_running else _iso(planned.stopped_ms),
            "timeElapsed": max(0, min(at, planned.stopped_ms) - planned.started_ms),
        }
        if is_running and planned.oddity % 2:
            del document["stoppedAt"]
        metadata = _metadata(planned)
        if metadata:
            document["metadata"] = metadata
        document["results"] = [self._row(planned, result, at) for result in _visible(planned, at)]
        return document

    def entry(self, test_session_id: str, at: int | None = None) -> Json | None:
        """TestSessionListEntry; None when there is no such test session (yet)."""
        at = self.at() if at is None else at
        planned = self._find(test_session_id, at)
        if planned is None:
            return None
        is_running = at < planned.stopped_ms
        has_git = _has_git(planned)
        invoker = None
        if planned.invoker and has_git:
            picture = None if planned.oddity % 3 else f"https://avatars.simulator.invalid/{planned.invoker}"
            invoker = {"name": planned.invoker, "picture": picture}
        is_private = PRIVATE in planned.locations
        document: Json = {
            "id": planned.id,
            "accountId": self.account_id,
            "projectId": planned.project_id,
            "name": planned.name,
            "provider": planned.provider,
            "errorGroupIds": planned.group_ids if at >= planned.settled_ms else [],
            **_sequences(planned, at),
            "status": "RUNNING" if is_running else planned.status,
            "region": planned.locations[0],
            "privateLocationId": PRIVATE_LOCATION_ID if is_private else None,
            "invoker": invoker,
            "repoUrl": _repository_url(planned) if has_git else None,
            "commitId": planned.commit.sha if has_git else None,
            "commitOwner": planned.commit.owner if _has_owner(planned) else None,
            "commitMessage": planned.commit.message if has_git else None,
            "branchName": planned.commit.branch if has_git else None,
            "environment": planned.environment if _has_environment(planned) else None,
            "startedAt": _iso(planned.started_ms),
            "stoppedAt": None if is_running else _iso(planned.stopped_ms),
            "created_at": _iso(planned.created_ms),
            "updated_at": _iso(_updated_ms(planned, at)),
        }
        if not planned.invoker and planned.oddity < 20:
            del document["invoker"]
        if planned.oddity == 99 and planned.provider != "PW_REPORTER":
            document["projectId"] = None
        return document

    def result(self, test_session_id: str, result_id: str, at: int | None = None) -> Json | None:
        """FindOneTestSessionResultResponse; None when there is no such result (yet)."""
        at = self.at() if at is None else at
        planned = self._find(test_session_id, at)
        visible = _visible(planned, at) if planned else ()
        result = next((result for result in visible if result.result_id == result_id), None)
        if planned is None or result is None:
            return None
        row = self._row(planned, result, at)
        row.setdefault("checkId", None)
        is_private = result.run_location == PRIVATE
        has_ended = row["resultType"] != "PENDING"
        document: Json = {
            "id": result.result_id,
            **row,
            "privateLocationId": PRIVATE_LOCATION_ID if is_private else None,
            "filePath": _file_path(result.check),
            "isCancelled": row["status"] == "CANCELLED",
            "overMaxResponseTime": has_ended and _is(result, "too_slow"),
            "attempts": result.attempt if has_ended else 0,
            "sequenceId": result.sequence_id,
            "scheduleError": None,
            "traceId": hashlib.md5(result.result_id.encode(), usedforsecurity=False).hexdigest()
            if result.check.type in ("API", "BROWSER")
            else None,
            "created_at": row["startedAt"] or _iso(planned.created_ms),
            "updated_at": row["stoppedAt"],
        }
        if has_ended and row["startedAt"]:
            document.update(_type_details(planned, result, at))
        return document

    # -- error groups ----------------------------------------------------------------------------------

    def error_groups(self, at: int | None = None) -> list[Json]:
        """TestSessionErrorGroupsList without pages, the one seen last first."""
        at = self.at() if at is None else at
        documents = [document for id_ in self._groups if (document := self.error_group(id_, at))]
        return sorted(documents, key=lambda document: (document["lastSeen"], document["id"]), reverse=True)

    def error_group(self, error_group_id: str, at: int | None = None) -> Json | None:
        """TestSessionErrorGroup; None when there is no such group (yet)."""
        at = self.at() if at is None else at
        group = self._groups.get(error_group_id)
        seen = [occurrence for occurrence in group.occurrences if occurrence.visible_ms <= at] if group else []
        if group is None or not seen:
            return None
        failure = group.failure
        first = min(occurrence.seen_ms for occurrence in seen)
        document: Json = {
            "id": group.id,
            "projectId": group.project_id,
            "environments": sorted({occurrence.environment for occurrence in seen}),
            "errorHash": hashlib.sha256(failure.cleaned.encode()).hexdigest(),
            "rawErrorMessage": failure.raw,
            "cleanedErrorMessage": failure.cleaned,
            "firstSeen": _iso(first),
            "lastSeen": _iso(max(occurrence.seen_ms for occurrence in seen)),
            "archivedUntilNextEvent": failure.archived,
            "pwtMetadata": _playwright_tests(seen),
        }
        analyses = _root_cause_analyses(group, first, at)
        if analyses is not None:
            document["rootCauseAnalyses"] = analyses
        return document

    # -- parts -----------------------------------------------------------------------------------------

    def _find(self, test_session_id: str, at: int) -> TestSession | None:
        planned = self._planned.get(test_session_id)
        return planned if planned and planned.created_ms <= at else None

    def _link(self, planned: TestSession) -> str:
        return f"{APP}/accounts/{self.account_id}/test-sessions/{planned.id}"

    def _row(self, planned: TestSession, result: Result, at: int) -> Json:
        """TestSessionResult."""
        check = result.check
        has_ended = _has_ended(planned, result, at)
        has_begun = result.begins is not None and planned.started_ms + result.begins <= at
        is_failed = has_ended and result.failure is not None
        is_error = result.failure is not None and result.failure.is_error
        row: Json = {
            "testSessionResultId": result.result_id,
            "testSessionResultLink": f"{self._link(planned)}/results/{result.result_id}",
            "checkId": result.check_id,
            "checkType": check.type,
            "name": check.name,
            "runLocation": result.run_location,
            "errorGroupIds": [result.group_id] if result.group_id and at >= planned.settled_ms else [],
            "resultType": result.result_type if has_ended else "PENDING",
            "status": result.status if has_ended else "RUNNING",
            "hasErrors": is_failed and is_error,
            "hasFailures": is_failed and not is_error,
            "isDegraded": has_ended and result.is_degraded,
            "aborted": has_ended and result.status == "CANCELLED",
            "responseTime": result.response_ms if has_ended else None,
            "startedAt": _iso(planned.started_ms + (result.begins or 0)) if has_begun else None,
            "stoppedAt": _iso(planned.started_ms + result.ends) if has_ended and result.ends else None,
        }
        if result.check_id is None and planned.oddity % 2:
            del row["checkId"]
        if row["resultType"] == "PENDING" and not has_begun:
            del row["responseTime"]
        return row


# -- what can be seen when -------------------------------------------------------------------------------


def _has_ended(planned: TestSession, result: Result, at: int) -> bool:
    if at >= planned.stopped_ms:
        return True
    # What a cancel will cut off is not known to be cut off before the cancel.
    is_cut_off = result.ends is None or result.status == "CANCELLED"
    return not is_cut_off and planned.started_ms + (result.ends or 0) <= at


def _visible(planned: TestSession, at: int) -> Iterable[Result]:
    """Each execution has one row from the start; a row more for each attempt that failed by now."""
    if at >= planned.stopped_ms:
        return planned.results
    return [result for result in planned.results if result.result_type == "FINAL" or _has_ended(planned, result, at)]


def _sequences(planned: TestSession, at: int) -> dict[str, list[str]]:
    """The list names the executions by their outcome, not the results."""
    groups: dict[str, list[str]] = {"running": [], "passed": [], "failed": [], "cancelled": []}
    for result in planned.results:
        if result.result_type == "FINAL":
            outcome = result.status.lower() if _has_ended(planned, result, at) else "running"
            groups[outcome].append(result.sequence_id)
    return groups


def _updated_ms(planned: TestSession, at: int) -> int:
    if at >= planned.settled_ms:
        return planned.settled_ms
    if at >= planned.stopped_ms:
        return planned.stopped_ms
    ends = [
        planned.started_ms + result.ends
        for result in planned.results
        if result.ends is not None and _has_ended(planned, result, at)
    ]
    return max(ends, default=planned.created_ms)


# -- metadata --------------------------------------------------------------------------------------------


def _has_git(planned: TestSession) -> bool:
    """Some are started from outside a repository."""
    return planned.provider not in ("API", "TRIGGER") or planned.trigger == "rerun" or planned.oddity >= 6


def _has_owner(planned: TestSession) -> bool:
    return _has_git(planned) and planned.oddity != 50


def _has_environment(planned: TestSession) -> bool:
    return planned.provider != "PW_REPORTER" or planned.oddity >= 40


def _repository_url(planned: TestSession) -> str:
    return f"https://github.com/{planned.project.repository}"


def _metadata(planned: TestSession) -> Json:
    """TestSessionMetadata."""
    metadata: Json = {}
    if _has_environment(planned):
        metadata["environment"] = planned.environment
    if not _has_git(planned):
        return metadata
    commit = planned.commit
    metadata |= {"repoUrl": _repository_url(planned), "commitId": commit.sha}
    if _has_owner(planned):
        metadata["commitOwner"] = commit.owner
    metadata |= {"commitMessage": commit.message, "branchName": commit.branch}
    if planned.provider == "GITHUB":
        metadata["github"] = _github(planned)
    return metadata


def _github(planned: TestSession) -> Json:
    commit = planned.commit
    is_pull_request = planned.trigger == "push"
    event, workflow = {
        "push": ("pull_request", "CI"),
        "merge": ("push", "CI"),
        "deploy": ("deployment_status", "Deploy"),
        "schedule": ("schedule", "Nightly"),
    }.get(planned.trigger, ("workflow_dispatch", "Look again"))
    return {
        "reporting": is_pull_request,
        "repository": planned.project.repository,
        "sha": commit.sha,
        "runId": str(planned.run_no),
        "runAttempt": "2" if planned.oddity >= 93 else "1",
        "workflow": workflow,
        "job": "checkly",
        "eventName": event,
        "ref": f"refs/pull/{commit.pull_request}/merge" if is_pull_request else "refs/heads/main",
        "headRef": commit.branch if is_pull_request else None,
        "baseRef": "main" if is_pull_request else None,
        "serverUrl": "https://github.com",
    }


# -- details of a result ---------------------------------------------------------------------------------


def _is(result: Result, failure_key: str) -> bool:
    return result.failure is not None and result.failure.key == failure_key


def _file_path(check: Check) -> str | None:
    if check.type == "AGENTIC":
        return None
    suffix = "spec.ts" if check.type in PLAYWRIGHT_TYPES else "check.ts"
    return f"__checks__/{check.key}.{suffix}"


def _signed(planned: TestSession, result: Result, name: str, at: int) -> str:
    """Looks like a signed link of an object store: valid for 15 minutes, another one each quarter hour."""
    issued = EPOCH + timedelta(milliseconds=at - at % (15 * MINUTE))
    path = f"test-sessions/{planned.id}/{result.result_id}/{name}"
    signature = hashlib.sha256(f"{path}{issued}".encode()).hexdigest()
    return (
        f"{ASSETS}/{path}?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Date={issued:%Y%m%dT%H%M%SZ}"
        f"&X-Amz-Expires=900&X-Amz-SignedHeaders=host&X-Amz-Signature={signature}"
    )


def _type_details(planned: TestSession, result: Result, at: int) -> Json:
    begins, ends = result.begins or 0, result.ends or 0
    errors = [{"message": result.failure.raw}] if result.failure else []
    log = [
        {"time": planned.started_ms + begins, "level": "INFO", "msg": f"Starting job {result.check.name}"},
        {"time": planned.started_ms + ends, "level": "INFO", "msg": "Run finished"},
    ]
    run: Json = {
        "errors": errors,
        "startTime": planned.started_ms + begins,
        "endTime": planned.started_ms + ends,
        "runtimeVersion": "2025.04",
        "jobLog": log,
        "jobAssets": [_signed(planned, result, "screenshot.png", at)] if errors else None,
    }
    files: Json = {
        "playwrightTestVideos": [_signed(planned, result, "video.webm", at)] if errors else [],
        "playwrightTestTraces": [_signed(planned, result, "trace.zip", at)] if errors else [],
        "playwrightTestJsonReportFile": _signed(planned, result, "report.json", at),
    }
    match result.check.type:
        case "API":
            return {"apiCheckResult": _api_details(planned, result, at) | {"jobLog": log}}
        case "BROWSER":
            summary = {"consoleErrors": len(errors), "networkErrors": 0, "documentErrors": 0, "userScriptErrors": 0}
            page = {"url": "https://www.acme.shop/", "webVitals": {"LCP": {"score": "GOOD", "value": 1243.5}}}
            browser = {"type": "PLAYWRIGHT", "traceSummary": summary, "pages": [page], **run, **files}
            return {"browserCheckResult": browser}
        case "MULTI_STEP":
            return {"multiStepCheckResult": {**run, **files}}
        case "PLAYWRIGHT":
            traces = [{"name": "trace.zip", "url": url} for url in files["playwrightTestTraces"]]
            playwright = {"errors": errors, "playwrightTraceFiles": traces, "jobLog": log, **files}
            return {"playwrightCheckResult": playwright}
        case "AGENTIC":
            return {"agenticCheckResult": _agentic_details(errors)}
        case _:
            return {}


def _api_details(planned: TestSession, result: Result, at: int) -> Json:
    is_unavailable = _is(result, "status_503")
    status = 503 if is_unavailable else 401 if _is(result, "token") else 200
    host = "api.acme.shop" if planned.project.key == "payments" else "www.acme.shop"
    total = result.response_ms or 0
    timings = {"dns": 3.1, "tcp": 11.8, "tls": 24.4, "firstByte": round(total * 0.7, 1), "total": total}
    assertion: Json = {
        "source": "STATUS_CODE",
        "comparison": "EQUALS",
        "target": 200,
        "actual": status,
        "error": result.failure.cleaned if result.failure else None,
    }
    return {
        "assertions": [assertion],
        "request": {
            "method": "GET",
            "url": f"https://{host}/v2/{result.check.key}",
            "data": "",
            "headers": {"accept": "application/json"},
            "params": {},
        },
        "response": {
            "status": status,
            "statusText": "Service Unavailable" if is_unavailable else "OK",
            "body": "{}",
            "headers": {"content-type": "application/json"},
            "timings": timings,
        },
        "requestError": None,
        "jobAssets": None,
        "pcapDataUrl": _signed(planned, result, "capture.pcap", at) if result.failure else None,
    }


def _agentic_details(errors: list[Json]) -> Json:
    return {
        "summary": "Found three presents under 50 €." if not errors else "The menu has two links of that name.",
        "prompt": "Find a birthday present under 50 € and put it into the cart.",
        "assertions": [{"description": "The cart holds one item", "passed": not errors}],
        "suggestions": [],
        "steps": [{"title": "Open the shop"}, {"title": "Search for presents"}, {"title": "Open the cart"}],
        "errors": errors,
        "artifactManifest": None,
        "jobLog": None,
        "jobAssets": None,
    }


# -- details of an error group ---------------------------------------------------------------------------


def _playwright_tests(seen: list[Occurrence]) -> list[Json] | None:
    """TestSessionErrorGroupPlaywrightMetadata, one a test that met the error."""
    checks = {o.check.key: o.check for o in seen if o.check.type in PLAYWRIGHT_TYPES}
    tests = []
    for check in checks.values():
        area, _, title = check.name.rpartition(": ")
        tests.append(
            {
                "projectName": "webkit" if "WebKit" in check.name else "chromium",
                "specId": hashlib.sha256(check.key.encode()).hexdigest()[:40],
                "testFile": f"__checks__/{check.key}.spec.ts",
                "testTitle": title,
                "suitePath": [area] if area else [],
            }
        )
    return tests or None


def _root_cause_analyses(group: ErrorGroup, first: int, at: int) -> list[Json] | None:
    """None: the field is absent. The analysis of one group is still being made."""
    failure = group.failure
    created = first + 11 * MINUTE
    if failure.analysis is None and failure.key not in ("grpc", "refused"):
        return None
    if failure.key == "refused" or created > at:
        return []
    analysis: Json = {
        "id": stable_uuid(group.id, "root cause analysis"),
        "created_at": _iso(created),
        "analysis": failure.analysis,
        "provider": "anthropic",
        "model": "claude-sonnet-4",
        "durationMs": 23_417.5,
        "userContext": None,
    }
    if failure.analysis is None:
        analysis |= {"provider": None, "model": None, "durationMs": None}
    return [analysis]


# -- time ------------------------------------------------------------------------------------------------


def _milliseconds(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(milliseconds=1)


def _iso(milliseconds: int) -> str:
    return (EPOCH + timedelta(milliseconds=milliseconds)).isoformat(timespec="milliseconds")[:-6] + "Z"
