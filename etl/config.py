"""Typed settings: `load(path, env)` reads `config.yaml` and the environment once, at the start of a command.

Both sources speak text. The file is read without YAML's guessing of types (so `1:30`, `010` or `no` mean
what they look like), every value passes through the one reader that its row in `SETTINGS` names, and
whatever is wrong anywhere is gathered and raised at once. No message ever holds a secret's text.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from etl.errors import ConfigError

DEFAULT_FILE = "config.yaml"
NEAR_DEFAULT_FILE = "config.yml"
PREFIX = "CHECKLY_ETL_"
API_KEYS_PAGE = "https://app.checklyhq.com/settings/user/api-keys"
ACCOUNT_ID_PAGE = "https://app.checklyhq.com/settings/account/general"


class Secret:
    """A text that must not be shown. Only `reveal()` gives it; `str`, `repr` and f-strings do not.

    An empty secret is false: it stands for one that was not set.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        return self._text

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return "Secret('…')"


class SecretUrl(Secret):
    """A URL that may hold a password. `reveal()` is for connecting, `shown` for people."""

    __slots__ = ()

    @property
    def shown(self) -> str:
        """The URL with `***` for its password and for secrets among its parameters."""
        text = _URL_PASSWORD.sub(r"\1***\3", self._text)
        return _URL_PARAMETER.sub(r"\1***", text)

    @property
    def secrets(self) -> set[str]:
        """What `shown` leaves out, as it stands in the URL and decoded."""
        from urllib.parse import unquote

        found = [match[2] for pattern in (_URL_PASSWORD, _URL_PARAMETER) for match in pattern.finditer(self._text)]
        return {form for text in found for form in (text, unquote(text)) if form}


class Account(msgspec.Struct, frozen=True):
    """One Checkly account. `api_key` may be empty unless it comes from `Settings.require_accounts()`."""

    id: str
    name: str | None
    api_key: Secret
    api_key_env: str
    retention: timedelta
    requests_per_minute: int


class Checkly(msgspec.Struct, frozen=True):
    api_url: str
    api_key: Secret
    account_id: str | None
    accounts: tuple[Account, ...]
    timeout: timedelta
    max_body: int
    retention: timedelta
    allow_http: bool

    @property
    def account_ids(self) -> frozenset[str]:
        """The accounts that these settings export."""
        return frozenset(account.id for account in self.accounts)


class Warehouse(msgspec.Struct, frozen=True):
    url: SecretUrl
    schema: str | None

    @property
    def shown(self) -> str:
        """The warehouse's URL without its password, for logs and `status`."""
        return self.url.shown


class Export(msgspec.Struct, frozen=True):
    discover: bool
    lookback: timedelta
    settle: tuple[timedelta, ...]
    running_poll: timedelta
    running_max_age: timedelta
    error_groups: bool
    result_details: str
    keep_payloads: bool
    concurrency: int
    requests_per_minute: int
    batch_size: int
    lease: timedelta
    max_attempts: int


class Schedule(msgspec.Struct, frozen=True):
    """Exactly one of `cron` and `interval` is set."""

    cron: str | None
    interval: timedelta | None
    timezone: str
    grace: timedelta


class InboxFile(msgspec.Struct, frozen=True):
    file: Path


class InboxQueue(msgspec.Struct, frozen=True):
    url: SecretUrl
    queue: str


class Observe(msgspec.Struct, frozen=True):
    listen: str | None
    token: Secret | None
    loss_warning: timedelta

    @property
    def loss_warning_hours(self) -> float:
        """As views count it."""
        return self.loss_warning.total_seconds() / 3600


class Settings(msgspec.Struct, frozen=True):
    """Everything a command may be told. Sections and fields carry the settings' own names."""

    checkly: Checkly
    warehouse: Warehouse
    export: Export
    schedule: Schedule
    inbox: tuple[InboxFile | InboxQueue, ...]
    observe: Observe

    @property
    def secrets(self) -> set[str]:
        """Every text that must not be told: keys, the token, passwords."""
        secrets = {self.checkly.api_key, *(account.api_key for account in self.checkly.accounts)}
        if self.observe.token:
            secrets.add(self.observe.token)
        urls = [self.warehouse.url, *(source.url for source in self.inbox if isinstance(source, InboxQueue))]
        return {secret.reveal() for secret in secrets if secret} | {text for url in urls for text in url.secrets}

    def require_accounts(self, only: Collection[str] = ()) -> tuple[Account, ...]:
        """Return the accounts, default first, each with a key; `only` those of these ids or names, if there are any.

        Raises ConfigError if the id or a key of them is missing, or if a name means none of them. `load` does not ask
        for them, because `migrate`, `status` or `report` work without Checkly.
        """
        accounts = self._chosen(only)
        if accounts:
            keyless = [account for account in accounts if not account.api_key]
            problems = [
                f"the account {account.id} has no API key: its variable {account.api_key_env} is not set. "
                f"API keys are made at {API_KEYS_PAGE}"
                for account in keyless
                if account.api_key_env != "CHECKLY_API_KEY"
            ]
            if len(problems) < len(keyless):
                problems.insert(0, _credentials_problem(key=False, account=True))
        else:
            problems = [_credentials_problem(key=bool(self.checkly.api_key), account=False)]
        if problems:
            raise ConfigError(problems)
        return accounts

    def _chosen(self, only: Collection[str]) -> tuple[Account, ...]:
        accounts = self.checkly.accounts
        if not only:
            return accounts
        wanted = {name.strip().lower() for name in only}
        unknown = [name for name in sorted(wanted) if not any(name in _names(account) for account in accounts)]
        if unknown:
            known = ", ".join(account.name or account.id for account in accounts) or "none"
            raise ConfigError([f"--account {name!r} is not in the settings; they have: {known}" for name in unknown])
        return tuple(account for account in accounts if wanted & _names(account))


def _names(account: Account) -> set[str]:
    return {account.id, (account.name or account.id).lower()}


def _credentials_problem(*, key: bool, account: bool) -> str:
    missing = "CHECKLY_API_KEY is" if account else "CHECKLY_ACCOUNT_ID is" if key else "both are"
    return (
        f"Checkly asks for CHECKLY_API_KEY and CHECKLY_ACCOUNT_ID, and {missing} not set. "
        f"The key is made at {API_KEYS_PAGE}, the account id stands at {ACCOUNT_ID_PAGE}"
    )


# --- Durations and times, for the command line too ---------------------------------------------------------

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_DURATION = re.compile(r"([0-9]{1,12})([smhd])")
_LONGEST = timedelta(days=36_500)
_A_DURATION = "a duration such as 90s, 15m, 24h or 7d"


def parse_duration(text: str) -> timedelta:
    """`90s`, `15m`, `24h` or `7d`. ValueError for anything else: a bare number, a fraction, zero.

    The error's text is what was expected ("a duration such as …"), for a sentence like "X must be …".
    """
    duration = _duration_or_zero(text)
    if not duration:
        raise ValueError(f"{_A_DURATION}, longer than zero")
    return duration


def parse_when(text: str, now: datetime) -> datetime:
    """A moment in UTC: an ISO date (its midnight), an ISO time (UTC unless it says otherwise) or an age.

    An age such as `90d` is counted back from `now`, which must know its time zone. ValueError for the rest.
    """
    text = text.strip()
    try:
        if _DURATION.fullmatch(text):
            return now.astimezone(UTC) - _duration_or_zero(text)
        moment = datetime.fromisoformat(text)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(
            f"{_found(text)} is not a time: give a date (2026-01-31, its midnight in UTC), "
            "a time (2026-01-31T09:30:00+01:00, without offset in UTC) or an age (90d)"
        ) from None


# --- Readers: one raw value (text, list or mapping) to one setting. --------------------------------------
# A reader raises ValueError with what it expected; `_Loader.read` makes a sentence of it.


class _Problem(ValueError):
    """A whole sentence of its own, for what "must be X, not Y" cannot say."""


def _string(raw: object) -> str:
    if not isinstance(raw, str) or not raw.strip():
        raise ValueError("a text")
    return raw.strip()


def _duration_or_zero(raw: object) -> timedelta:
    match = _DURATION.fullmatch(raw.strip()) if isinstance(raw, str) else None
    if not match:
        raise ValueError(_A_DURATION)
    number, unit = int(match[1]), _UNITS[match[2]]
    if number > _LONGEST.total_seconds() or timedelta(**{unit: number}) > _LONGEST:
        raise ValueError(f"{_A_DURATION}, at most 100 years")
    return timedelta(**{unit: number})


def _duration(raw: object) -> timedelta:
    return parse_duration(raw if isinstance(raw, str) else "")


def _durations(raw: object) -> tuple[timedelta, ...]:
    if isinstance(raw, list):
        found: set[timedelta] = set()
        for item in raw:
            try:
                found.add(_duration(item))
            except ValueError as expected:
                raise _Problem(f"must be a list in which each is {expected}, not {_found(item)}") from None
        return tuple(sorted(found))
    raise ValueError('a list of durations such as [15m, 24h] (in the environment JSON: ["15m", "24h"])')


def _boolean(raw: object) -> bool:
    word = str(raw).strip().lower() if isinstance(raw, str | bool) else ""
    if word in {"true", "yes", "on", "1"}:
        return True
    if word in {"false", "no", "off", "0"}:
        return False
    raise ValueError("true or false")


def _whole(low: int, high: int | None = None) -> Callable[[object], int]:
    expected = f"a whole number of {low} or more" if high is None else f"a whole number from {low} to {high}"

    def read(raw: object) -> int:
        if isinstance(raw, str) and re.fullmatch("[0-9]{1,9}", raw.strip()):
            number = int(raw)
            if number >= low and (high is None or number <= high):
                return number
        raise ValueError(expected)

    return read


_SIZES = {"": 1, "B": 1, "KB": 1_000, "MB": 1_000_000, "GB": 1_000_000_000}


def _size(raw: object) -> int:
    match = re.fullmatch(r"([0-9]{1,12})\s*([KMG]?B|)", raw.strip().upper()) if isinstance(raw, str) else None
    if not match or not int(match[1]):
        raise ValueError("a size such as 64 MB, 500 KB or 1 GB (1 MB = 1,000,000 bytes)")
    return int(match[1]) * _SIZES[match[2]]


def _choice(*words: str) -> Callable[[object], str]:
    def read(raw: object) -> str:
        if raw not in words:
            raise ValueError("one of " + ", ".join(words))
        return str(raw)

    return read


def _uuid(raw: object) -> str:
    text = raw.strip().lower() if isinstance(raw, str) else ""
    if not re.fullmatch("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", text):
        raise ValueError("a UUID such as 12345678-90ab-cdef-1234-567890abcdef")
    return text


def _secret(raw: object) -> Secret:
    """Keys and tokens travel in a header, where blanks, control and exotic characters would break it."""
    text = raw.strip() if isinstance(raw, str) else ""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        raise ValueError("the bare word, without quotation marks around it (docker --env-file keeps them)")
    if not re.fullmatch(r"[\x21-\x7e\xa1-\xff]+", text):
        raise ValueError("one word of printable Latin characters, without blanks or line breaks inside")
    return Secret(text)


def _variable_name(raw: object) -> str:
    # Capitals only: so a key that was pasted here by mistake is refused, not looked up and then shown.
    if not isinstance(raw, str) or not re.fullmatch("[A-Z_][A-Z0-9_]*", raw.strip()):
        raise ValueError("the name of an environment variable in capitals such as CHECKLY_API_KEY_STAGING")
    return raw.strip()


def _is_loopback(host: str) -> bool:
    import ipaddress

    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _api_url(raw: object) -> str:
    from urllib.parse import urlsplit

    text = raw.strip() if isinstance(raw, str) else ""
    if "@" in text:
        raise _Problem("must be a URL without user and password (it is not shown, because it holds some)")
    try:
        parts = urlsplit(text)
        sound = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
        plain = not (parts.query or parts.fragment) and not re.search(r"\s", text)
    except ValueError:
        sound = plain = False
    if not (sound and plain):
        raise ValueError("a http(s) URL without parameters, such as https://api.checklyhq.com")
    return text.rstrip("/")


# The password is everything from the first `:` to the last `@`, because people forget to write `%40` in it. A SQLite
# file has none, and may have both in its name.
_URL_PASSWORD = re.compile(r"^((?!sqlite:)[a-zA-Z][\w+.-]*://[^:]*:)(.*)(@[^@]*)$", re.DOTALL)
_URL_PARAMETER = re.compile(r"([?&][^=&]*(?:pass|pwd|secret|token)[^=&]*=)([^&]*)", re.IGNORECASE)
_WAREHOUSES = (
    "PostgreSQL (postgresql://user:password@host/database) or a SQLite file (sqlite:///warehouse.db); "
    "no other database or driver"
)


def _check_password(url: str) -> None:
    """ValueError for a password that ends a part of the URL: its rest would be taken for a host, and told as one."""
    match = _URL_PASSWORD.match(url)
    if match and re.search(r"[@/?#\[\]]", match[1].partition("://")[2] + match[2]):
        raise ValueError(
            "a URL whose password is percent-encoded "
            "(%40 for @, %2F for /, %3F for ?, %23 for #, %5B for [, %5D for ])"
        )


def _warehouse_url(raw: object) -> SecretUrl:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    text = raw.strip() if isinstance(raw, str) else ""
    text = re.sub("^postgres://", "postgresql://", text)
    _check_password(text)
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise ValueError(f"a URL of {_WAREHOUSES}") from None
    if url.drivername not in {"sqlite", "postgresql", "postgresql+psycopg"}:
        raise ValueError(f"a URL of {_WAREHOUSES}")
    if url.drivername == "sqlite":
        path = url.database or ""
        if url.host or not path or ":memory:" in path or url.query.get("mode") == "memory":
            raise ValueError(
                "with SQLite the URL of a file: sqlite:///warehouse.db, or sqlite:////var/lib/warehouse.db"
            )
    return SecretUrl(text)


def _schema(raw: object) -> str:
    if not isinstance(raw, str) or not re.fullmatch("[a-z_][a-z0-9_$]{0,62}", raw):
        raise ValueError("a name of lower case letters, digits and _, at most 63, such as checkly")
    return raw


def _broker_url(raw: object) -> SecretUrl:
    from urllib.parse import urlsplit

    text = raw.strip() if isinstance(raw, str) else ""
    text = re.sub("^valkey(s?)://", r"redis\1://", text)
    _check_password(text)
    try:
        # The clients parse it as this does. What it says of a port that is none may be a part of the password.
        is_sound = re.fullmatch(r"(redis|rediss|amqp|amqps)://\S+", text) and urlsplit(text).port != 0
    except ValueError:
        is_sound = False
    if not is_sound:
        raise ValueError(
            "the URL of a Redis (redis://:${REDIS_PASSWORD}@host:6379/0, rediss:// with TLS) or a RabbitMQ "
            "(amqp://user:${AMQP_PASSWORD}@host/vhost, amqps:// with TLS)"
        )
    return SecretUrl(text)


def _cron(raw: object) -> str:
    fields = raw.split() if isinstance(raw, str) else []
    line = " ".join(fields)
    if len(fields) != 5:
        raise ValueError("a cron line of five fields such as */15 * * * *")
    from cronsim import CronSim, CronSimError

    try:
        if next(CronSim(line, datetime.now(UTC)), None) is None:
            raise ValueError("a cron line of five fields that comes true some day")
    except CronSimError as error:
        where = str(error).removeprefix("Bad ")
        raise ValueError(f"a cron line of five fields such as */15 * * * * ({where} is none)") from None
    return line


def _timezone(raw: object) -> str:
    name = raw.strip() if isinstance(raw, str) else ""
    if name.upper() == "UTC":  # must work on machines without a time zone database
        return "UTC"
    from zoneinfo import ZoneInfo

    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ValueError(
            "the name of a time zone such as Europe/Berlin that this machine knows (without tzdata only UTC)"
        ) from None
    return name


def _listen(raw: object) -> str:
    text = raw.strip() if isinstance(raw, str) else ""
    match = re.fullmatch(r"(?:\[[0-9a-fA-F:.]+\]|[\w.-]+):([0-9]{1,5})", text)
    if not match or int(match[1]) > 65_535:
        raise ValueError("an address and a port such as 127.0.0.1:9464")
    return text


# --- The list of all settings -------------------------------------------------------------------------------


class Setting(msgspec.Struct, frozen=True):
    """One key of the file. `default` is what one would write there; None means that it has none.

    Keys of list items are named `checkly.accounts[].id`; their lists are settings as well.
    """

    name: str
    read: Callable[[object], object]
    default: str | None
    help: str
    secret: bool = False

    @property
    def variable(self) -> str | None:
        """The environment variable that overrides the file; None for what only the file can say."""
        if self.name in _OWN_VARIABLES:
            return _OWN_VARIABLES[self.name]
        if "[]" in self.name:
            return None
        return _double_underscore_name(self.name)


_OWN_VARIABLES = {
    "checkly.api_key": "CHECKLY_API_KEY",
    "checkly.account_id": "CHECKLY_ACCOUNT_ID",
    "checkly.api_url": "CHECKLY_API_URL",
    "warehouse.url": "CHECKLY_ETL_WAREHOUSE_URL",
    "inbox": "CHECKLY_ETL_INBOX",
}


def _double_underscore_name(name: str) -> str:
    return PREFIX + name.upper().replace(".", "__")


def _items(raw: object) -> list[object]:
    if not isinstance(raw, list):
        raise ValueError("a list (in the environment JSON)")
    return raw


def _sources(raw: object) -> list[object]:
    if not isinstance(raw, list):  # what stands there is not shown: it may be a URL
        raise _Problem(
            f"must be a list such as [{{file: ids.txt}}], not {_shape(raw)} (in the environment JSON, with quotes)"
        )
    return raw


SETTINGS: tuple[Setting, ...] = (
    Setting("checkly.api_url", _api_url, "https://api.checklyhq.com", "where the API is"),
    Setting("checkly.api_key", _secret, None, "the API key, only as ${NAME}", secret=True),
    Setting("checkly.account_id", _uuid, None, "the account, or the default one of accounts"),
    Setting("checkly.timeout", _duration, "60s", "deadline over a whole call, body included"),
    Setting("checkly.max_body", _size, "64 MB", "a larger answer is refused"),
    Setting("checkly.retention", _duration, "7d", "how long your plan keeps raw results"),
    Setting("checkly.allow_http", _boolean, "false", "plain http to other machines than this one"),
    Setting("checkly.accounts", _items, None, "several accounts, the first is the default"),
    Setting("checkly.accounts[].id", _uuid, None, "the account's id"),
    Setting("checkly.accounts[].name", _string, None, "a name for people"),
    Setting("checkly.accounts[].api_key_env", _variable_name, "CHECKLY_API_KEY", "the variable with its key"),
    Setting("checkly.accounts[].retention", _duration, None, "if not checkly.retention"),
    Setting("checkly.accounts[].requests_per_minute", _whole(0), None, "if not export.requests_per_minute"),
    Setting("warehouse.url", _warehouse_url, "sqlite:///warehouse.db", "PostgreSQL or a SQLite file", secret=True),
    Setting("warehouse.schema", _schema, None, "PostgreSQL only: the schema for all tables and views"),
    Setting("export.discover", _boolean, "true", "find test sessions by the list endpoint"),
    Setting("export.lookback", _duration, "2d", "how far each discovery reads again behind the last"),
    Setting("export.settle", _durations, "[15m, 24h]", "when to read a session known by id only again"),
    Setting("export.running_poll", _duration, "1m", "first pause before a running session is read again"),
    Setting("export.running_max_age", _duration, "24h", "after that a running session is left as stale"),
    Setting("export.error_groups", _boolean, "true", "export error groups"),
    Setting("export.result_details", _choice("none", "failed", "all"), "none", "results read one by one"),
    Setting("export.keep_payloads", _boolean, "true", "keep documents as received, for replay"),
    Setting("export.concurrency", _whole(1, 64), "8", "parallel calls"),
    Setting("export.requests_per_minute", _whole(0), "500", "budget of calls an account; 0 is no limit"),
    Setting("export.batch_size", _whole(1, 10_000), "200", "sessions claimed at a time"),
    Setting("export.lease", _duration, "5m", "a claim without progress is free again after this"),
    Setting("export.max_attempts", _whole(1), "8", "failures until a session is a dead letter"),
    Setting("schedule.cron", _cron, None, "when the daemon syncs, instead of interval"),
    Setting("schedule.interval", _duration, "15m", "how often the daemon syncs"),
    Setting("schedule.timezone", _timezone, "UTC", "the time zone that cron means"),
    Setting("schedule.grace", _duration_or_zero, "20s", "how long SIGTERM lets calls under way finish"),
    Setting("inbox", _sources, None, "further sources of ids"),
    Setting("inbox[].file", _string, None, "a file with ids, links or CI output"),
    Setting("inbox[].url", _broker_url, None, "a message broker", secret=True),
    Setting("inbox[].queue", _string, None, "the broker's queue"),
    Setting("observe.listen", _listen, None, "address of /livez, /healthz and /metrics"),
    Setting("observe.token", _secret, None, "bearer token; needed unless loopback", secret=True),
    Setting("observe.loss_warning", _duration, "24h", "warn so long before retention takes a session"),
)  # fmt: skip
_BY_NAME = {setting.name: setting for setting in SETTINGS}
_TOP = [setting for setting in SETTINGS if "[]" not in setting.name]
_SECTIONS = ("checkly", "warehouse", "export", "schedule", "inbox", "observe")


def _keys_under(prefix: str) -> dict[str, Setting]:
    """`export.` or `inbox[].` -> its keys, without the prefix."""
    return {s.name.removeprefix(prefix): s for s in SETTINGS if re.fullmatch(re.escape(prefix) + r"\w+", s.name)}


# --- Loading ------------------------------------------------------------------------------------------------


def load(path: Path | None, env: Mapping[str, str]) -> Settings:
    """The settings of `path` overridden by `env`; ConfigError with every mistake of both.

    `path` None means `config.yaml` of the current directory if there is one; a path that is given must
    exist. A missing API key or account id is no mistake here: see `Settings.require_accounts`.
    """
    loader = _Loader(path, env)
    settings = loader.settings()
    if loader.problems:
        raise ConfigError(loader.problems)
    return settings


def has_default_file() -> bool:
    """False also where nobody can look for it: in a folder that is gone, or that this user may not enter."""
    return os.path.exists(DEFAULT_FILE)


class _Loader:
    def __init__(self, path: Path | None, env: Mapping[str, str]) -> None:
        self.problems: list[str] = []
        self.env = env
        self.variables: dict[str, str | None] = {}
        self.source = str(path or DEFAULT_FILE)
        self.key_variable = "CHECKLY_API_KEY"  # the one that checkly.api_key comes from
        self.where: dict[str, str] = {}  # each setting that was really set -> where, for messages
        self.file = self.read_file(path)
        self.check_variable_names()

    def settings(self) -> Settings:
        values = {setting.name: self.value(setting) for setting in _TOP}

        def section(name: str) -> dict[str, Any]:
            return {key: values[f"{name}.{key}"] for key in _keys_under(f"{name}.")}

        checkly = section("checkly")
        checkly["api_key"] = checkly["api_key"] or Secret("")
        checkly["accounts"] = self.accounts(checkly, values["export.requests_per_minute"])
        warehouse = Warehouse(**section("warehouse"))
        schedule = section("schedule")
        observe = Observe(**section("observe"))
        inbox = self.inbox(values["inbox"])

        if checkly["api_url"].startswith("http:") and not checkly["allow_http"]:
            self.check_plain_http(checkly["api_url"])
        if warehouse.schema and warehouse.url.reveal().startswith("sqlite"):
            self.problems.append(f"{self.where['warehouse.schema']} is for PostgreSQL only, SQLite has no schemas")
        if "schedule.cron" in self.where:
            schedule["interval"] = None
            if "schedule.interval" in self.where:
                both = f"{self.where['schedule.cron']} and {self.where['schedule.interval']}"
                self.problems.append(f"{both} exclude each other: give one of them")
        if observe.listen and not observe.token and not _is_loopback(observe.listen.rpartition(":")[0]):
            self.problems.append(
                f"{self.where['observe.listen']} is reachable from other machines: set observe.token "
                f"({_BY_NAME['observe.token'].variable}), or listen on 127.0.0.1"
            )
        return Settings(
            checkly=Checkly(**checkly),
            warehouse=warehouse,
            export=Export(**section("export")),
            schedule=Schedule(**schedule),
            inbox=inbox,
            observe=observe,
        )

    # One value

    def value(self, setting: Setting) -> Any:
        """What the environment, else the file, else the default says."""
        in_file = self.in_file(setting.name)
        if setting.name == "checkly.api_key" and in_file is not None:
            in_file = self.key_in_file(in_file)
        if setting.secret and self.is_literal_secret(f"{self.source}: {setting.name}", in_file):
            in_file = None
        text = self.variable(setting.variable) if setting.variable else None
        value = None
        if text is not None:
            self.where[setting.name] = str(setting.variable)
            raw = _from_json(text) if setting.read in (_items, _sources, _durations) else text
            value = self.read(setting, str(setting.variable), raw)
        elif in_file is not None:
            self.where[setting.name] = where = f"{self.source}: {setting.name}"
            value = self.read(setting, where, in_file, expand=setting.read not in (_items, _sources))
        if value is None and setting.default is not None:
            default = setting.default
            value = setting.read(default[1:-1].split(", ") if default.startswith("[") else default)
        return value

    def key_in_file(self, raw: object) -> object:
        """The API key as the file has it; None if its variable is not set: that matters to who needs the API only."""
        match = _REFERENCE.fullmatch(raw.strip()) if isinstance(raw, str) else None
        if match and not self.variable("CHECKLY_API_KEY"):
            self.key_variable = match[1]
        return None if match and self.variable(match[1]) is None else raw

    def in_file(self, name: str) -> object:
        section, _, key = name.partition(".")
        content = self.file.get(section)
        return content.get(key) if key and isinstance(content, dict) else content

    def read(self, setting: Setting, where: str, raw: object, *, expand: bool = False) -> Any:
        """The value, or None after its problem was noted."""
        try:
            return setting.read(self.expanded(raw) if expand else raw)
        except _Problem as problem:
            self.problems.append(f"{where}: {problem}")
        except ValueError as expected:
            # Nor is what stands where an account's id belongs: it may be the key.
            is_shown = not setting.secret and setting.read not in (_variable_name, _uuid)
            found = f", not {_found(raw)}" if is_shown else ""
            self.problems.append(f"{where} must be {expected}{found}")
        return None

    def expanded(self, raw: object) -> object:
        """`${NAME}` replaced by its variable."""
        if isinstance(raw, list):
            return [self.expanded(item) for item in raw]
        if not isinstance(raw, str):
            return raw
        if "${" in _REFERENCE.sub("", raw):
            raise _Problem("only ${NAME} is understood, without a default or anything else in the braces")

        def replace(match: re.Match[str]) -> str:
            text = self.variable(match[1])
            if text is None:
                raise _Problem(f"the environment variable {match[1]} is not set")
            return text

        return _REFERENCE.sub(replace, raw)

    def is_literal_secret(self, where: str, raw: object) -> bool:
        """Notes a problem if a secret stands in the file itself, which gets copied, mailed and committed."""
        if not isinstance(raw, str):
            return False
        if where.endswith("url"):
            hidden = [match[2] for pattern in (_URL_PASSWORD, _URL_PARAMETER) for match in pattern.finditer(raw)]
            literal = any(_REFERENCE.sub("", text) for text in hidden)
        else:
            literal = not _REFERENCE.fullmatch(raw.strip())
        if literal:
            self.problems.append(
                f"{where} holds a secret: write ${{NAME}} in its place and put the secret into the environment "
                "variable NAME, or into a file named by NAME_FILE"
            )
        return literal

    # The environment

    def variable(self, name: str) -> str | None:
        """The variable's text, or the text of the file that `NAME_FILE` names. Empty is unset."""
        if name not in self.variables:
            self.variables[name] = self.look_up(name)
        return self.variables[name]

    def look_up(self, name: str) -> str | None:
        text, path = self.env.get(name, ""), self.env.get(f"{name}_FILE", "")
        if text and path:
            self.problems.append(f"{name} and {name}_FILE are both set: keep one of them")
        elif path:
            try:
                with Path(path).open("rb") as file:
                    content = file.read(_LARGEST_SECRET + 1)  # a device may have no end
                if len(content) > _LARGEST_SECRET:
                    self.problems.append(
                        f"{name}_FILE: the file that it names is larger than 64 kB, which no secret is"
                    )
                    return None
                text = content.decode("utf-8-sig")
            except OSError as error:
                # Its name is not told: whoever mixes up name and content has put the secret there.
                self.problems.append(f"{name}_FILE: the file that it names cannot be read ({error.strerror})")
            except ValueError:  # not UTF-8, or a NUL in the path
                self.problems.append(f"{name}_FILE: the file that it names is not a text file in UTF-8")
            text = re.sub(r"\r?\n\Z", "", text)
        return text or None

    def check_variable_names(self) -> None:
        """Only names with `__` are settings: others with our prefix are Kubernetes' (`…_SERVICE_HOST`)."""
        known = {setting.variable: setting for setting in _TOP if setting.variable}
        moved = {_double_underscore_name(name): own for name, own in _OWN_VARIABLES.items()}
        for name in sorted(self.env):
            base = name.removesuffix("_FILE")
            if not (name.startswith(PREFIX) and "__" in name and self.env[name]) or base in known:
                continue
            if base in moved:
                self.problems.append(f"{name} is not read: use {moved[base]}")
            elif name.startswith(f"{PREFIX}INBOX__"):
                self.problems.append(f"{name} is not a setting: {PREFIX}INBOX takes the whole list, as JSON")
            else:
                self.problems.append(f"{name} is not a setting{_did_you_mean(base, known)}")

    # The file

    def read_file(self, path: Path | None) -> dict[str, object]:
        """Sections of the file, with unknown keys noted and left out."""
        file = path or Path(DEFAULT_FILE)
        if path is None and not has_default_file():
            self.check_near_default_file()
            return {}
        try:
            document = self.parse(file.read_bytes().decode("utf-8-sig"))
        except OSError as error:
            self.problems.append(f"{self.source}: cannot be read ({error.strerror})")
            return {}
        except UnicodeDecodeError as error:
            self.problems.append(f"{self.source}: is not UTF-8 (at byte {error.start})")
            return {}
        except _Problem as problem:
            self.problems.append(f"{self.source}: {problem}")
            return {}
        if document is None:
            return {}
        if not isinstance(document, dict):
            self.problems.append(f"{self.source}: must hold sections such as `export:`, not {_shape(document)}")
            return {}
        sections: dict[str, object] = {}
        for name, content in ((str(key), content) for key, content in document.items()):
            if name not in _SECTIONS:
                self.problems.append(f"{self.source}: {name} is not a section{_did_you_mean(name, _SECTIONS)}")
            elif name == "inbox":
                sections[name] = content
            elif isinstance(content, dict):
                sections[name] = self.known_keys(f"{self.source}: {name}.", content, _keys_under(f"{name}."))
            elif content is not None:
                self.problems.append(f"{self.source}: {name} must be a section with keys, not {_shape(content)}")
        return sections

    def check_near_default_file(self) -> None:
        """Note a file that looks like the one that is read by itself, and is not."""
        if os.path.islink(DEFAULT_FILE):
            self.problems.append(f"{DEFAULT_FILE}: is a link to a file that does not exist")
        try:
            document = self.parse(Path(NEAR_DEFAULT_FILE).read_bytes().decode("utf-8-sig"))
        except (OSError, ValueError, _Problem):
            return  # there is none, or it is something else's
        if isinstance(document, dict) and {"checkly", "warehouse", "observe"} & document.keys():
            self.problems.append(
                f"{NEAR_DEFAULT_FILE} is not read: rename it to {DEFAULT_FILE}, or name it with "
                f"--config {NEAR_DEFAULT_FILE}"
            )

    def parse(self, text: str) -> object:
        """YAML as mappings, lists, texts and None. Notes keys that stand twice."""
        import yaml  # slow to import, and needed only where there is a file

        twice: list[str] = []

        # BaseLoader guesses no types, so YAML 1.1's traps (1:30 is 90, 010 is 8, no is false) are none.
        class Loader(yaml.BaseLoader):
            def construct_scalar(self, node: Any) -> Any:
                text = super().construct_scalar(node)
                return None if node.style is None and text in {"", "~", "null", "Null", "NULL"} else text

            def construct_mapping(self, node: Any, deep: bool = False) -> Any:
                seen = set()
                for key, _ in node.value:
                    if key.value in seen if isinstance(key.value, str) else False:
                        twice.append(f"line {key.start_mark.line + 1}: the key {key.value} stands twice")
                    seen.add(str(key.value))
                return super().construct_mapping(node, deep)

        try:
            document: object = yaml.load(text, Loader)  # noqa: S506 - BaseLoader makes only texts
        except yaml.MarkedYAMLError as error:
            raise _Problem(_yaml_problem(error)) from None
        except (yaml.YAMLError, RecursionError):
            raise _Problem("is not YAML (a control character, or nested too deeply)") from None
        self.problems += [f"{self.source}: {problem}" for problem in twice]
        return document

    def known_keys(self, where: str, content: dict[str, object], known: Mapping[str, Setting]) -> dict[str, object]:
        for key in (key for key in content if key not in known):
            self.problems.append(f"{where}{key} is not a setting{_did_you_mean(str(key), known)}")
        return {key: value for key, value in content.items() if key in known}

    # Lists of mappings

    def mappings(self, name: str, items: list[object] | None) -> list[tuple[str, dict[str, Any]]]:
        """Each item of a list as (where, values); the keys that it does not set are None."""
        where_list = self.where.get(name, "")
        in_file = where_list != _BY_NAME[name].variable
        known = _keys_under(f"{name}[].")
        mappings = []
        for index, item in enumerate(items or []):
            where = f"{where_list}[{index}]"
            if not isinstance(item, dict):
                self.problems.append(f"{where} must be a mapping with {', '.join(known)}, not {_shape(item)}")
                continue
            given = {k: v for k, v in self.known_keys(f"{where}.", item, known).items() if v not in (None, "")}
            values: dict[str, Any] = dict.fromkeys(known)
            for key, raw in given.items():
                if in_file and known[key].secret and self.is_literal_secret(f"{where}.{key}", raw):
                    values[key] = SecretUrl("")  # given, so not missing as well
                else:
                    values[key] = self.read(known[key], f"{where}.{key}", raw, expand=in_file)
            mappings.append((where, values | {"given": given.keys()}))
        return mappings

    def accounts(self, checkly: dict[str, Any], requests_per_minute: int) -> tuple[Account, ...]:
        default_id: str | None = checkly["account_id"]
        listed = self.mappings("checkly.accounts", checkly["accounts"])
        if not listed and default_id:
            listed = [("", {"id": default_id, "name": None, "given": {"id"}})]
        accounts: dict[str, Account] = {}
        for where, item in listed:
            if "id" not in item["given"]:
                self.problems.append(f"{where} needs the account's id")
            if not item["id"]:
                continue
            if item["id"] in accounts:
                self.problems.append(f"{where}.id: the account {item['id']} stands twice")
            own_key = self.key_of(item.get("api_key_env"))  # another account's key is no substitute
            rate = item.get("requests_per_minute")
            accounts[item["id"]] = Account(
                id=item["id"],
                name=item["name"],
                api_key=checkly["api_key"] if own_key is None else own_key,
                api_key_env=item.get("api_key_env") or self.key_variable,
                retention=item.get("retention") or checkly["retention"],
                requests_per_minute=requests_per_minute if rate is None else rate,
            )
        if default_id and default_id not in accounts and all(item["id"] for _, item in listed):
            self.problems.append(f"{self.where['checkly.account_id']} is none of the ids of checkly.accounts")
        return tuple(sorted(accounts.values(), key=lambda account: account.id != default_id))

    def key_of(self, variable: str | None) -> Secret | None:
        """The key in an account's own variable: empty if that is unset, None if it has no own variable."""
        if not variable or variable == "CHECKLY_API_KEY":
            return None
        text = self.variable(variable)
        return self.read(_BY_NAME["checkly.api_key"], variable, text) if text else Secret("")

    def inbox(self, items: list[object] | None) -> tuple[InboxFile | InboxQueue, ...]:
        sources: list[InboxFile | InboxQueue] = []
        for where, item in self.mappings("inbox", items):
            if item["given"] not in ({"file"}, {"url", "queue"}):
                self.problems.append(f"{where} must hold either a file, or a url and its queue")
            elif item["file"]:
                sources.append(InboxFile(Path(item["file"])))
            elif item["url"] and item["queue"]:
                sources.append(InboxQueue(item["url"], item["queue"]))
        return tuple(sources)

    def check_plain_http(self, url: str) -> None:
        from urllib.parse import urlsplit

        if not _is_loopback(urlsplit(url).hostname or ""):
            self.problems.append(
                f"{self.where['checkly.api_url']} would send the API key unencrypted: use https://, or set "
                "checkly.allow_http to true"
            )


_LARGEST_SECRET = 64_000
_REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def _from_json(text: str) -> object:
    """A list from the environment, its numbers as text like everything else; what is no JSON stays text."""
    try:
        return json.loads(text, parse_int=str, parse_float=str, parse_constant=str)
    except (ValueError, RecursionError):
        return text


def _yaml_problem(error: Any) -> str:
    """Where and what, but never YAML's own snippet of the file: it may hold a secret."""
    mark = error.problem_mark or error.context_mark
    place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    what = re.sub("'[^<'][^']+'", "'…'", error.problem or "")
    if r"'\t'" in (error.problem or ""):
        what = "a tab; YAML is indented by blanks"
    return f"is not valid YAML{place}: {what}"


def _shape(raw: object) -> str:
    return "a mapping" if isinstance(raw, dict) else "a list" if isinstance(raw, list) else "a single value"


def _found(raw: object) -> str:
    if isinstance(raw, dict | list):
        return _shape(raw)
    text = str(raw).lower() if isinstance(raw, bool) else str(raw)
    return repr(text if len(text) <= 60 else text[:60] + "…")


def _did_you_mean(name: str, known: Any) -> str:
    import difflib

    close = difflib.get_close_matches(name.upper() if name.startswith(PREFIX) else name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(known)}" if len(known) < 8 else ""
