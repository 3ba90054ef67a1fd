"""The history of the simulated company: which test sessions ran, of which commit, with which results.

Hides the dice. (seed, now, days) goes in, a list of planned test sessions and error groups comes out,
the same ones each time. The plan is a timetable: it says when everything begins and ends, up to two
days after `now`. What of it can be seen at a given moment is the business of `world.py`.
"""

from __future__ import annotations

import hashlib
import random
import zlib
from collections import deque
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from etl.simulator.catalog import (
    ASIA,
    BREAKAGES,
    EU,
    FAILURES,
    PAYMENTS,
    PEOPLE,
    PLAYWRIGHT_TYPES,
    PRIVATE,
    PROJECTS,
    US,
    WEBSHOP,
    Breakage,
    Check,
    Failure,
    Project,
)

SECOND, MINUTE, HOUR, DAY = 1_000, 60_000, 3_600_000, 86_400_000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

GROUPING_TAKES = 20 * SECOND  # Checkly groups errors some time after a test session has ended
FUTURE = 2 * DAY  # a world that lives has that much ahead of it
QUIET_BEFORE, QUIET_AFTER = 15 * MINUTE, 5 * MINUTE  # around `now` only the planned running ones run

PER_WEEKDAY, PER_WEEKEND_DAY = 20.5, 5.5
BY_HOUR = (1, 2, 3, 2, 1, 2, 4, 8, 14, 17, 17, 15, 12, 15, 17, 16, 13, 9, 6, 4, 3, 2, 2, 1)
FOLLOW_UPS = ("Review: better names", "Make the tests pass", "Handle the empty case", "Fix lint", "wip")

# (trigger, weight by day, weight by night): at night machines work, by day people do.
TRIGGERS = (("push", 48, 12), ("merge", 13, 3), ("deploy", 17, 10), ("schedule", 22, 75))


@dataclass(frozen=True, slots=True)
class Commit:
    sha: str
    branch: str
    owner: str
    message: str
    pull_request: int | None = None
    broken: frozenset[str] = frozenset()  # checks that this commit breaks, retry as often as you like


@dataclass(slots=True)
class Result:
    """One row of a test session. Times are milliseconds after its start; None: it never started."""

    result_id: str
    sequence_id: str
    check: Check
    check_id: str | None
    run_location: str
    result_type: str
    attempt: int
    status: str
    begins: int | None
    ends: int | None
    response_ms: float | None
    failure: Failure | None = None
    group_id: str | None = None
    is_degraded: bool = False


@dataclass(slots=True)
class TestSession:
    __test__ = False  # not a pytest class, in spite of its name

    id: str
    project: Project
    project_id: str
    name: str
    provider: str
    trigger: str
    environment: str
    locations: tuple[str, ...]
    invoker: str | None
    commit: Commit
    run_no: int
    started_ms: int
    stopped_ms: int
    status: str
    results: list[Result]
    group_ids: list[str] = field(default_factory=list)

    @property
    def created_ms(self) -> int:
        return self.started_ms - 412

    @property
    def settled_ms(self) -> int:
        """From now on no document about it changes any more."""
        return self.stopped_ms + (GROUPING_TAKES if self.group_ids else SECOND)

    @property
    def oddity(self) -> int:
        """0 to 99, spread evenly: picks the few that lack an optional field."""
        return int(self.id[:8], 16) % 100


@dataclass(frozen=True, slots=True)
class Occurrence:
    visible_ms: int  # when grouping was done
    seen_ms: int
    environment: str
    check: Check


@dataclass(slots=True)
class ErrorGroup:
    id: str
    project_id: str
    failure: Failure
    occurrences: list[Occurrence] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Event:
    """Something happens that makes a test session run."""

    at: int
    trigger: str
    project: Project
    environment: str = ""  # empty: what the trigger implies
    must_run: tuple[str, ...] = ()
    running: bool = False  # still going on at `now`


@dataclass(slots=True)
class _Branch:
    name: str
    title: str
    owner: str
    pull_request: int
    head: Commit


class Repository:
    """One project's git history, walked forward in time: branches open, grow, and are merged."""

    def __init__(self, rng: random.Random, project: Project) -> None:
        self._rng = rng
        self._project = project
        self._breakable = [check.key for check in project.checks if not check.often]
        self._topics = deque(rng.sample(project.topics, len(project.topics)))
        self._branches: deque[_Branch] = deque()
        self._pull_request = 1200 + rng.randrange(100)
        self._ticket = 3100 + rng.randrange(400)
        self.main = self._commit("main", "Start the quarter", None)

    def push(self) -> Commit:
        """The commit of a feature branch that is tested now: a new one, or the last one once more."""
        rng = self._rng
        if not self._branches or (len(self._branches) < 4 and rng.random() < 0.25):
            return self._open().head
        branch = rng.choice(self._branches)
        if rng.random() < 0.7:
            message = f"{rng.choice(FOLLOW_UPS)} ({branch.title.lower()})"
            broken = branch.head.broken
            if broken and rng.random() < 0.55:
                broken = frozenset()
            elif rng.random() < 0.12:
                broken |= set(rng.sample(self._breakable, rng.randint(1, 2)))
            branch.head = self._commit(branch.name, message, branch.pull_request, branch.owner, broken)
        return branch.head

    def merge(self) -> Commit:
        """Merges the oldest branch. What it broke was fixed in review."""
        if not self._branches:
            self._open()
        branch = self._branches.popleft()
        organisation = self._project.repository.partition("/")[0]
        source = f"{organisation}/{branch.name}"
        message = f"Merge pull request #{branch.pull_request} from {source}\n\n{branch.title}"
        self.main = self._commit("main", message, branch.pull_request, branch.owner)
        return self.main

    def _open(self) -> _Branch:
        title = self._topics[0]
        self._topics.rotate(-1)
        self._pull_request += self._rng.randint(1, 4)
        self._ticket += self._rng.randint(1, 9)
        name = _branch_name(f"{self._project.ticket}-{self._ticket}", title)
        owner = self._rng.choice(PEOPLE)
        head = self._commit(name, title, self._pull_request, owner)
        branch = _Branch(name, title, owner, self._pull_request, head)
        self._branches.append(branch)
        return branch

    def _commit(
        self,
        branch: str,
        message: str,
        pull_request: int | None,
        owner: str = PEOPLE[0],
        broken: frozenset[str] = frozenset(),
    ) -> Commit:
        return Commit(f"{self._rng.getrandbits(160):040x}", branch, owner, message, pull_request, broken)


class Timeline:
    """Plans every test session of the world, oldest first."""

    def __init__(self, seed: int, now_ms: int, days: int) -> None:
        self._seed = seed
        self._now = now_ms
        self._begin = now_ms - days * DAY
        self._rng = random.Random(f"{seed}/{now_ms}/{days}")
        self._repositories = {key: Repository(self._rng, project) for key, project in PROJECTS.items()}
        self._run_no = 9_480_000_000 + self._rng.randrange(10_000_000)
        self.groups: dict[str, ErrorGroup] = {}
        self.test_sessions = [self._test_session(event) for event in self._events()]
        self.test_sessions.sort(key=lambda planned: (planned.created_ms, planned.id))

    def project_id(self, project: Project) -> str:
        return stable_uuid(self._seed, "project", project.key)

    # -- when something happens ------------------------------------------------------------------------

    def _events(self) -> list[Event]:
        events = [*self._everyday_events()]
        for breakage in BREAKAGES:
            events += self._reruns(breakage)
        events.sort(key=lambda event: event.at)
        last = (("deploy", WEBSHOP), ("push", WEBSHOP), ("schedule", PAYMENTS))
        running = [Event(self._now, trigger, project, running=True) for trigger, project in last]
        # The running ones take their commits after the past and before the future.
        past = [event for event in events if event.at < self._now]
        return past + running + events[len(past) :]

    def _everyday_events(self) -> list[Event]:
        rng = self._rng
        events = []
        midnight = self._begin - self._begin % DAY
        while midnight < self._now + FUTURE:
            weekend = (EPOCH + timedelta(milliseconds=midnight)).weekday() >= 5
            count = round(rng.gauss(1, 0.12) * (PER_WEEKEND_DAY if weekend else PER_WEEKDAY))
            for hour in rng.choices(range(24), BY_HOUR, k=count):
                at = midnight + hour * HOUR + rng.randrange(HOUR)
                night = not 7 <= hour < 19
                weights = [by_night if night else by_day for _, by_day, by_night in TRIGGERS]
                trigger = rng.choices(TRIGGERS, weights)[0][0]
                project = WEBSHOP if rng.random() < 0.57 else PAYMENTS
                if self._is_free(at):
                    events.append(Event(at, trigger, project))
            midnight += DAY
        return events

    def _reruns(self, breakage: Breakage) -> list[Event]:
        """While something is broken, people look at it again and again; it began with a merge."""
        project = PROJECTS[breakage.project]
        at, end = self._now - int(breakage.began_hours * HOUR), self._now - int(breakage.ended_hours * HOUR)
        events: list[Event] = []
        trigger = "merge" if breakage.failure == "gift_card" else "rerun"
        while at < min(end, self._now + FUTURE):
            if self._is_free(at):
                environment = breakage.environments[len(events) % len(breakage.environments)]
                events.append(Event(at, trigger, project, environment, breakage.checks))
            trigger = "rerun"
            at += int(breakage.rerun_hours * HOUR * self._rng.uniform(0.85, 1.15))
        if end > self._now:  # the freshest verdict on main is the failure
            freshest = self._now - QUIET_BEFORE - 7 * MINUTE
            events.append(Event(freshest, "rerun", project, breakage.environments[0], breakage.checks))
        return events

    def _is_free(self, at: int) -> bool:
        around_now = self._now - QUIET_BEFORE < at < self._now + QUIET_AFTER
        return self._begin <= at and not around_now

    # -- what runs then --------------------------------------------------------------------------------

    def _test_session(self, event: Event) -> TestSession:
        rng, project = self._rng, event.project
        repository = self._repositories[project.key]
        if event.trigger == "push":
            commit, environment = repository.push(), "preview"
        elif event.trigger == "merge":
            commit, environment = repository.merge(), "staging"
        else:
            commit = repository.main
            environment = "staging" if event.trigger == "schedule" and rng.random() < 0.25 else "production"
        environment = event.environment or environment
        provider = self._provider(event)
        locations = (EU,) if event.must_run else self._locations(project, environment)
        is_cancelled = not event.running and rng.random() < 0.025

        plan = _ResultPlan(self, event, commit, environment, lanes=1 if event.running else 4)
        for check, check_id, location in self._executions(event, provider, locations):
            plan.run(check, check_id, location, doomed=is_cancelled and not plan.results and rng.random() < 0.7)
        if is_cancelled:
            plan.cancel_at(int(plan.length * rng.uniform(0.35, 0.7)))

        started = event.at - (int(plan.length * rng.uniform(0.35, 0.55)) if event.running else 0)
        statuses = {result.status for result in plan.results if result.result_type == "FINAL"}
        self._run_no += rng.randint(1_000, 90_000)
        planned = TestSession(
            id=self.new_uuid(),
            project=project,
            project_id=self.project_id(project),
            name=_session_name(event.trigger, project, environment, commit),
            provider=provider,
            trigger=event.trigger,
            environment=environment,
            locations=locations,
            invoker=rng.choice(PEOPLE[:-1]) if provider in ("TRIGGER", "API") else None,
            commit=commit,
            run_no=self._run_no,
            started_ms=started,
            stopped_ms=started + plan.length + 287,
            status=next(word for word in ("CANCELLED", "FAILED", "PASSED") if word in statuses),
            results=plan.sorted_results(),
        )
        self._group_errors(planned)
        return planned

    def _provider(self, event: Event) -> str:
        on_vercel = event.project is WEBSHOP
        match event.trigger:
            case "push" if on_vercel:
                words, weights = ("GITHUB", "VERCEL", "PW_REPORTER", "API"), (60, 22, 10, 8)
            case "push" | "merge":
                return "GITHUB"
            case "deploy":
                words, weights = ("GITHUB", "VERCEL", "API", "TRIGGER"), (50, 25 * on_vercel, 25, 0)
            case _:
                words, weights = ("TRIGGER", "API", "GITHUB", "VERCEL"), (70, 15, 15, 0)
        return self._rng.choices(words, weights)[0]

    def _locations(self, project: Project, environment: str) -> tuple[str, ...]:
        choices: tuple[tuple[str, ...], ...]
        if environment == "preview":
            return (EU,)
        if project is PAYMENTS:
            choices = ((EU,), (PRIVATE,)) if environment == "staging" else ((EU,), (EU, PRIVATE), (EU, US))
        else:
            choices = ((EU,), (EU, US)) if environment == "staging" else ((EU,), (EU, US), (EU, ASIA))
        return self._rng.choice(choices)

    def _executions(
        self, event: Event, provider: str, locations: tuple[str, ...]
    ) -> list[tuple[Check, str | None, str]]:
        """5 to 25 of them: those that must run, those that nearly always do, some of the others."""
        rng = self._rng
        checks = event.project.checks
        if provider == "PW_REPORTER":  # plain Playwright tests: the reporter knows of no check behind them
            checks = tuple(replace(c, type="PLAYWRIGHT") for c in checks if c.type in PLAYWRIGHT_TYPES)
        chosen = [c for c in checks if c.key in event.must_run or (c.often and rng.random() < 0.92)]
        others = [c for c in checks if c not in chosen]
        at_most = min(len(checks), 25 // len(locations))
        wanted = max(len(chosen), rng.randint(min(6, at_most), at_most))
        chosen += rng.sample(others, min(len(others), wanted - len(chosen)))
        rng.shuffle(chosen)
        executions: list[tuple[Check, str | None, str]] = []
        for check in chosen:
            check_id = stable_uuid(self._seed, "check", event.project.key, check.key)
            for location in locations:
                executions.append((check, None if provider == "PW_REPORTER" else check_id, location))
        return executions

    def _group_errors(self, planned: TestSession) -> None:
        for result in planned.results:
            if result.failure is None or result.ends is None:
                continue
            project, failure = planned.project.key, result.failure
            group_id = stable_uuid(self._seed, "error group", project, failure.key)
            group = self.groups.setdefault(group_id, ErrorGroup(group_id, planned.project_id, failure))
            result.group_id = group_id
            if group_id not in planned.group_ids:
                planned.group_ids.append(group_id)
            group.occurrences.append(
                Occurrence(
                    visible_ms=planned.stopped_ms + GROUPING_TAKES,
                    seen_ms=planned.started_ms + result.ends,
                    environment=planned.environment,
                    check=result.check,
                )
            )

    # -- how it ends -----------------------------------------------------------------------------------

    def verdict(self, check: Check, commit: Commit, environment: str, at: int) -> tuple[Failure | None, bool]:
        """(how its first try fails, whether a retry helps)."""
        rng = self._rng
        for breakage in BREAKAGES:
            if (
                check.key in breakage.checks
                and environment in breakage.environments
                and breakage.ended_hours * HOUR < self._now - at <= breakage.began_hours * HOUR
                and rng.random() < breakage.probability
            ):
                return FAILURES[breakage.failure], False
        usual = FAILURES[check.fails_with]
        if check.key in commit.broken:
            return usual, False
        luck = rng.random()
        if check.trait == "retry" and luck < 0.2:
            return usual, rng.random() < 0.93
        if check.trait == "commit" and luck < 0.11:
            return usual, False
        if check.trait == "flip" and zlib.crc32(f"{commit.sha}{check.key}".encode()) % 100 < 18:
            return usual, False
        if luck > 0.996:
            return usual, rng.random() < 0.5
        return None, False

    def duration_factor(self, check: Check, at: int) -> float:
        if check.trait != "slow":
            return self._rng.lognormvariate(0, 0.1)
        week = 7 * DAY
        climbed = min(1.0, max(0.0, (at - (self._now - week)) / week))
        return self._rng.lognormvariate(0, 0.04) * (1 + 0.6 * climbed)

    def new_uuid(self) -> str:
        return _uuid4(f"{self._rng.getrandbits(128):032x}")

    @property
    def rng(self) -> random.Random:
        return self._rng


class _ResultPlan:
    """Lays the executions of one test session out in time, `lanes` of them side by side."""

    def __init__(self, timeline: Timeline, event: Event, commit: Commit, environment: str, lanes: int) -> None:
        self._timeline = timeline
        self._at = event.at
        self._commit = commit
        self._environment = environment
        self._free = [0] * lanes
        # A session that people watch while it runs should do so for minutes, not for seconds.
        self._pause = 9 * SECOND if event.running else 350
        self.results: list[Result] = []

    @property
    def length(self) -> int:
        return max(self._free)

    def run(self, check: Check, check_id: str | None, location: str, *, doomed: bool) -> None:
        timeline, rng = self._timeline, self._timeline.rng
        failure, retry_helps = timeline.verdict(check, self._commit, self._environment, self._at)
        if doomed:
            failure, retry_helps = FAILURES[check.fails_with], False
        tries: list[Failure | None] = [failure]
        if failure is not None and check.retries:
            helps_at = rng.randint(1, check.retries) if retry_helps else check.retries + 1
            tries = [failure if n < helps_at else None for n in range(min(helps_at, check.retries) + 1)]

        lane = self._free.index(min(self._free))
        begins = self._free[lane] + rng.randint(20, 400)
        sequence_id = timeline.new_uuid()
        for attempt, how in enumerate(tries, start=1):
            is_degraded = how is None and check.type not in PLAYWRIGHT_TYPES and rng.random() < 0.015
            measured = check.usual_ms * timeline.duration_factor(check, self._at) * (1.3 if is_degraded else 1)
            if how is not None and how.takes_ms:
                measured = how.takes_ms + rng.randrange(300)
            wall_clock = int(measured) + (900 if check.type in PLAYWRIGHT_TYPES else 450)
            self.results.append(
                Result(
                    result_id=timeline.new_uuid(),
                    sequence_id=sequence_id,
                    check=check,
                    check_id=check_id,
                    run_location=location,
                    result_type="FINAL" if attempt == len(tries) else "ATTEMPT",
                    attempt=attempt,
                    status="PASSED" if how is None else "FAILED",
                    begins=begins,
                    ends=begins + wall_clock,
                    response_ms=round(measured, 3) if measured < 100 else int(measured),
                    failure=how,
                    is_degraded=is_degraded,
                )
            )
            begins += wall_clock + 500
        self._free[lane] = begins - 500 + self._pause

    def cancel_at(self, cut: int) -> None:
        """What has ended stays, what runs is aborted, what has not begun never does."""
        kept: list[Result] = []
        cancelled: set[str] = set()
        for result in self.results:
            if result.ends is not None and result.ends <= cut:
                kept.append(result)
            elif result.sequence_id not in cancelled:
                cancelled.add(result.sequence_id)
                has_begun = result.begins is not None and result.begins < cut
                kept.append(
                    replace(
                        result,
                        result_type="FINAL",
                        status="CANCELLED",
                        begins=result.begins if has_begun else None,
                        ends=cut if has_begun else None,
                        response_ms=None,
                        failure=None,
                        is_degraded=False,
                    )
                )
        self.results = kept
        self._free = [cut]

    def sorted_results(self) -> list[Result]:
        never = self.length + 1
        return sorted(self.results, key=lambda result: never if result.begins is None else result.begins)


def stable_uuid(*names: object) -> str:
    """An id that depends on nothing but the names."""
    return _uuid4(hashlib.md5(repr(names).encode(), usedforsecurity=False).hexdigest())


def _uuid4(digits: str) -> str:
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}"


def _branch_name(ticket: str, title: str) -> str:
    words = "".join(c if c.isalnum() else " " for c in title.lower()).split()
    return "-".join([ticket, *words[:4]])


def _session_name(trigger: str, project: Project, environment: str, commit: Commit) -> str:
    match trigger:
        case "push":
            return f"{project.name}: {commit.branch}"
        case "merge":
            return f"{project.name}: main after #{commit.pull_request}"
        case "deploy":
            return f"Deploy {project.key} {commit.sha[:7]} to {environment}"
        case "schedule":
            return f"{project.name}: scheduled run on {environment}"
        case _:
            return f"{project.name}: look again at {environment}"
