"""Every error that a caller of this package can meet, and how far each one reaches.

    EtlError
    ├── FatalError            stop the pass (or the account); claims go back unblamed
    │   ├── ConfigError           wrong usage or settings; holds all problems at once   exit 2
    │   ├── SchemaNotCurrent      the warehouse is not at this program's schema         exit 2
    │   ├── AccessDenied          the API refuses the key, or the whole account         exit 3
    │   ├── ApiDown               the API failed again and again with no answer         exit 3
    │   └── Interrupted           a signal, or the end of --max-time, ends the pass
    ├── RetryableError        back in the queue with backoff, dead at the limit
    │   ├── ApiUnavailable        one call failed for good in spite of short retries
    │   ├── RateLimited           the API asks for a pause                              exit 3 if long
    │   ├── LargeDocument         a body that is to be fetched again, alone
    │   ├── WarehouseUnavailable  the database cannot be reached or does not answer     exit 3
    │   ├── InboxUnavailable      a broker or file that ids come from cannot be read      exit 1
    │   └── LeaseLost             another process discovers, or reads the inbox
    └── UnusableSession       a dead letter at once
        ├── TestSessionNotFound   404 or 410: Checkly no longer has it
        ├── Forbidden             403 on this one document
        ├── Rejected              any other 4xx
        │   └── NotInPlan             402 on a part of the API, while others answer
        └── PayloadError          the document is JSON but breaks the API's contract

The tree follows what the caller does, not where the error comes from. Anything that is not an
`EtlError` is a bug of ours and is never caught for long. Messages say what happened, to which id and
what to do next; they never hold a key, a header or a body.
"""

from __future__ import annotations

from collections.abc import Sequence

EXIT_OK = 0
EXIT_WARNING = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3


def runbook(section: str) -> dict[str, str]:
    """`extra` of a log record: the section of docs/runbook.md that says what to do. A test holds them to it."""
    return {"runbook": section}


class EtlError(Exception):
    """Root of the tree. `kind` is the word stored in `etl_queue.error_kind`, `section` of docs/runbook.md."""

    kind = "error"
    section = "pass-failed"
    exit_code = EXIT_UNREACHABLE


class FatalError(EtlError):
    """Nothing that follows in this pass (or for this account) can succeed."""


class ConfigError(FatalError):
    """Wrong usage or settings. `problems` holds every mistake found, one sentence each."""

    kind = "config"
    section = "settings"
    exit_code = EXIT_USAGE

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems: tuple[str, ...] = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class SchemaNotCurrent(FatalError):
    """The warehouse holds no schema, an older one or a newer one than this program's."""

    kind = "schema"
    section = "schema"
    exit_code = EXIT_USAGE


class AccessDenied(FatalError):
    """401 anywhere, or 402/403 on the whole account: that account ends, others go on. `status` is which of them."""

    kind = "access_denied"
    section = "access-denied"

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


class ApiDown(FatalError):
    """Too many API failures in a row with no answer between: an outage, no session's fault."""

    kind = "api_down"
    section = "api-down"


class Interrupted(FatalError):
    """A signal or the end of `--max-time`: stop waiting, give back what is not begun."""

    kind = "interrupted"


class RetryableError(EtlError):
    """May succeed later: the queue keeps the id and tries again."""

    kind = "retryable"


class ApiUnavailable(RetryableError):
    """A call failed in spite of the client's short retries.

    `kind` is `unavailable` (no connection, time out, 5xx), `unreadable` (a 200 whose body was cut
    short, not JSON, not UTF-8, or another document than the one asked for) or `cursor` (a list that goes round).
    `step` is how far it came: `proxy`, `TLS`, `connection` or `answer`.
    """

    kind = "unavailable"
    section = "api-down"

    def __init__(self, message: str, *, kind: str = "unavailable", step: str = "answer") -> None:
        super().__init__(message)
        self.kind, self.step = kind, step


class RateLimited(RetryableError):
    """The account is paused for longer than a pass should wait. `seconds` is what is left of the pause."""

    kind = "rate_limited"
    section = "rate-limited"

    def __init__(self, message: str, *, seconds: float) -> None:
        super().__init__(message)
        self.seconds = seconds


class LargeDocument(RetryableError):
    """The body is too large to be worked on beside others; fetched alone it may be as large as it likes to be."""

    kind = "large"


class WarehouseUnavailable(RetryableError):
    """The database cannot be reached, was lost on the way, is full or stays locked."""

    kind = "warehouse"
    section = "warehouse"


class InboxUnavailable(RetryableError):
    """An inbox cannot be read: the pass goes on without it, the next one tries again."""

    kind = "inbox_down"
    section = "inbox-down"
    exit_code = EXIT_WARNING


class LeaseLost(RetryableError):
    """The lease of a discovery, or of the reading of an inbox, ended and went to another process: the work is
    dropped. (What becomes of a claim on a test session is no error: `session_queue.lock` says it.)"""

    kind = "lease_lost"


class UnusableSession(EtlError):
    """Trying again cannot help: the row becomes a dead letter with `kind` and this message."""

    kind = "unusable"
    section = "dead-letter"


class TestSessionNotFound(UnusableSession):
    """404 or 410. For a test session that we hold it means that Checkly's retention has passed."""

    __test__ = False  # not a pytest class, in spite of its name
    kind = "not_found"


class Forbidden(UnusableSession):
    """403 on one document, while the account itself is allowed in."""

    kind = "forbidden"


class Rejected(UnusableSession):
    """Any other 4xx: the API does not want this request as it is."""

    kind = "rejected"


class NotInPlan(Rejected):
    """402 on one part of the API (lists, error groups, results), while the account is let in elsewhere."""

    kind = "plan"


class PayloadError(UnusableSession):
    """The body is JSON but not what the API promises. `json_path` says where (`$.results[3].status`)."""

    kind = "payload"

    def __init__(self, json_path: str, reason: str) -> None:
        super().__init__(f"{json_path}: {reason}")
        self.json_path = json_path
        self.reason = reason
