"""Settings: defaults, both sources, every mistake at once, and never a secret in a message."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from etl.config import SETTINGS, InboxFile, InboxQueue, Secret, Settings, load, parse_duration, parse_when
from etl.errors import ConfigError

ROOT = Path(__file__).parent.parent
A = "0a0a0a0a-1111-4222-8333-aaaaaaaaaaaa"
B = "0b0b0b0b-1111-4222-8333-bbbbbbbbbbbb"
KEYS = {"CHECKLY_API_KEY": "cu_hunter2", "CHECKLY_ACCOUNT_ID": A.upper()}
POSTGRES = {"CHECKLY_ETL_WAREHOUSE_URL": "postgresql://u:hunter2@h/db"}


@pytest.fixture(autouse=True)
def _empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def read(text: str = "", **env: str) -> Settings:
    Path("config.yaml").write_text(text, encoding="utf-8")
    return load(None, env)


def problems(text: str = "", **env: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(text, **env)
    assert "hunter2" not in str(caught.value)
    return str(caught.value)


def test_without_a_file_a_key_and_an_account_are_enough() -> None:
    (account,) = load(None, KEYS).require_accounts()
    assert (account.id, account.api_key.reveal(), account.requests_per_minute) == (A, "cu_hunter2", 500)
    assert account.retention == timedelta(days=7)


def test_an_explicit_file_must_exist() -> None:
    with pytest.raises(ConfigError, match=r"other\.yaml: cannot be read"):
        load(Path("other.yaml"), {})


def test_the_example_loads_and_equals_the_defaults() -> None:
    env = {"CHECKLY_API_KEY": "cu_1"}
    assert load(ROOT / "config.example.yaml", env) == load(None, env)


def uncommented() -> str:
    text = (ROOT / "config.example.yaml").read_text(encoding="utf-8")
    return re.sub(r"(?m)^( *)# ( *(?:- )?[a-z_]+:( .*)?)$", r"\1\2", text)


def test_the_example_names_every_key_and_no_unknown_one() -> None:
    document, names = yaml.safe_load(uncommented()), set()
    for section, content in document.items():
        pairs = content.items() if isinstance(content, dict) else [("", content)]
        for key, value in pairs:
            name = f"{section}.{key}".rstrip(".")
            names.add(name)
            if isinstance(value, list) and isinstance(value[0], dict):
                names |= {f"{name}[].{inner}" for item in value for inner in item}
    assert names == {setting.name for setting in SETTINGS}


def test_what_the_example_comments_out_loads_too() -> None:
    text = re.sub(r"(?m)^  interval:.*\n", "", uncommented())
    secrets = {"CHECKLY_API_KEY": "k", "AMQP_PASSWORD": "p", "REDIS_PASSWORD": "r", "CHECKLY_ETL_TOKEN": "t"}
    settings = read(text, **secrets, **POSTGRES)
    assert settings.warehouse.schema == "checkly"
    assert (settings.schedule.cron, settings.schedule.interval) == ("*/15 * * * *", None)
    assert [type(source) for source in settings.inbox] == [InboxFile, InboxQueue, InboxQueue]
    assert settings.require_accounts()[0].name == "production"


def test_the_environment_overrides_the_file() -> None:
    settings = read("export: {concurrency: 2, lookback: 3d}", CHECKLY_ETL_EXPORT__CONCURRENCY="5")
    assert (settings.export.concurrency, settings.export.lookback) == (5, timedelta(days=3))


def test_lists_are_json_in_the_environment() -> None:
    accounts = f'[{{"id": "{A}", "requests_per_minute": 0}}]'
    settings = read(CHECKLY_ETL_CHECKLY__ACCOUNTS=accounts, CHECKLY_ETL_EXPORT__SETTLE='["2h", "1m"]')
    assert settings.export.settle == (timedelta(minutes=1), timedelta(hours=2))
    assert settings.checkly.accounts[0].requests_per_minute == 0
    assert "must be a list of durations" in problems(CHECKLY_ETL_EXPORT__SETTLE="15m")


@pytest.mark.parametrize(("word", "value"), [("Yes", True), ("0", False), ("FALSE", False), ("true", True)])
def test_booleans_are_words_in_any_case(word: str, value: bool) -> None:
    assert read(CHECKLY_ETL_EXPORT__DISCOVER=word).export.discover is value


def test_empty_is_unset_and_null_is_empty() -> None:
    assert read("export:\nobserve: ~\nschedule: {grace: }", CHECKLY_ETL_EXPORT__LEASE="") == read()


def test_a_variable_may_name_a_file_instead() -> None:
    Path("key").write_bytes(b"cu_1\r\n")
    assert read(CHECKLY_API_KEY_FILE="key").checkly.api_key == Secret("cu_1")
    assert "CHECKLY_API_KEY_FILE are both set" in problems(CHECKLY_API_KEY_FILE="key", CHECKLY_API_KEY="hunter2")
    assert "the file that it names cannot be read" in problems(CHECKLY_API_KEY_FILE="nowhere")


@pytest.mark.parametrize("name", ["CHECKLY_API_KEY", "CHECKLY_ETL_WAREHOUSE_URL"])
def test_a_file_that_is_no_secret_is_not_read_to_its_end(name: str) -> None:
    Path("large").write_bytes(b"x" * 64_001)
    for file in ("/dev/zero", "large"):
        assert problems(**{f"{name}_FILE": file}).startswith(
            f"{name}_FILE: the file that it names is larger than 64 kB"
        )
    Path("key").write_bytes(b"x" * 64_000)
    assert len(read(CHECKLY_API_KEY_FILE="key").checkly.api_key.reveal()) == 64_000


@pytest.mark.parametrize("quote", ['"', "'"])
def test_quotation_marks_around_a_key_are_told(quote: str) -> None:
    problem = problems(CHECKLY_API_KEY=f"{quote}cu_hunter2{quote}")
    assert problem.startswith("CHECKLY_API_KEY must be the bare word, without quotation marks around it")
    assert read(CHECKLY_API_KEY=f"cu_{quote}").checkly.api_key.reveal() == f"cu_{quote}"


def test_references_are_replaced_unless_the_environment_overrides_them() -> None:
    text = "warehouse: {url: 'postgres://u:${PW}@h/db'}"
    settings = read(text, PW="hunter2")
    assert settings.warehouse.url.reveal() == "postgresql://u:hunter2@h/db"
    assert settings.warehouse.shown == "postgresql://u:***@h/db"
    assert "hunter2" not in f"{settings} {settings.warehouse.url!r}"
    assert "the environment variable PW is not set" in problems(text)
    assert read(text, **POSTGRES).warehouse.shown == "postgresql://u:***@h/db"
    assert "only ${NAME}" in problems("schedule: {timezone: '${TZ:-UTC}'}")


@pytest.mark.parametrize(
    "text",
    [
        "checkly: {api_key: hunter2}",
        "checkly: {api_key: 'hunter2${X}'}",
        "observe: {token: hunter2}",
        "warehouse: {url: 'postgresql://u:hunter2@h/db'}",
        "warehouse: {url: 'postgresql://u:hunter2@x@h/db'}",
        "warehouse: {url: 'postgresql://h/db?password=hunter2'}",
        "inbox: [{url: 'amqp://u:hunter2@h/', queue: q}]",
    ],
)
def test_a_secret_in_the_file_is_refused_without_showing_it(text: str) -> None:
    assert problems(text, X="x").count("holds a secret") == 1


@pytest.mark.parametrize("key", ["hunter2 x", "hunter2\nx", "hunter2\u20ac"])
def test_a_key_that_would_break_the_header_is_refused(key: str) -> None:
    assert problems(CHECKLY_API_KEY=key).startswith("CHECKLY_API_KEY must be one word")


@pytest.mark.parametrize(
    "url",
    [
        "mysql://u:hunter2@h/db",
        "sqlite+aiosqlite:///x.db",
        "postgresql+psycopg2://u:hunter2@h/db",
        "postgresql+asyncpg://h/db",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite://x.db",
        "hunter2",
        "postgresql://u:hunter2@h:port/db",
        "postgresql://u:p@hunter2@h/db",
    ],
)
def test_other_databases_and_broken_urls_are_refused(url: str) -> None:
    assert problems(CHECKLY_ETL_WAREHOUSE_URL=url).startswith("CHECKLY_ETL_WAREHOUSE_URL must be ")


@pytest.mark.parametrize("character", ["@", "/", "?", "#", "[", "]"])
@pytest.mark.parametrize("rest", ["127.0.0.1/x", "127.0.0.1:5432/x?sslmode=require", "[::1]/x", "/x?host=/run"])
def test_a_password_that_is_not_percent_encoded_is_refused_whatever_follows(character: str, rest: str) -> None:
    for password in (f"Sup{character}rhunter2", f"1234{character}hunter2", f"Sup@r{character}hunter2"):
        problem = problems(CHECKLY_ETL_WAREHOUSE_URL=f"postgresql://etl:{password}@{rest}")
        assert problem.startswith(
            "CHECKLY_ETL_WAREHOUSE_URL must be a URL whose password is percent-encoded (%40 for"
        )


@pytest.mark.parametrize(
    "password", ["hunter2/x", "12345/hunter2", "hunter2?x", "hunter2#x", "x@hunter2", "[hunter2"]
)
def test_a_brokers_password_that_is_not_percent_encoded_is_told_with_all_other_mistakes(password: str) -> None:
    text = "inbox: [{url: 'redis://default:${RP}@h:6379/9', queue: q}, {url: 'amqp://u:${RP}@h/v', queue: q}]"
    first, second, third = problems(text, RP=password, CHECKLY_ETL_EXPORT__LEASE="1").splitlines()
    assert first.startswith("CHECKLY_ETL_EXPORT__LEASE")
    assert second.startswith("config.yaml: inbox[0].url must be a URL whose password is percent-encoded (%40 for @, ")
    assert third.startswith("config.yaml: inbox[1].url must be a URL whose password is percent-encoded (%40 for @, ")


INBOX = '[{"file": "ids.txt"}, {"url": "redis://default:hunter2@h:6379/0", "queue": "ids"}]'


@pytest.mark.parametrize("text", ["", "inbox: [{file: of-the-file.txt}]"])
def test_the_inboxes_may_come_from_the_environment(text: str) -> None:
    """They were ignored there, without a word. A password may stand in the environment."""
    settings = read(text, CHECKLY_ETL_INBOX=INBOX)
    file, queue = settings.inbox
    assert isinstance(file, InboxFile)
    assert isinstance(queue, InboxQueue)
    assert (file.file, queue.queue) == (Path("ids.txt"), "ids")
    assert queue.url.reveal() == "redis://default:hunter2@h:6379/0"
    assert "hunter2" in settings.secrets
    assert "hunter2" not in repr(settings)
    Path("inbox.json").write_text(INBOX)
    assert read(text, CHECKLY_ETL_INBOX_FILE="inbox.json").inbox == settings.inbox
    assert len(read(text, CHECKLY_ETL_INBOX="").inbox) == (1 if text else 0), "empty is unset"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("redis://:hunter2@h", "CHECKLY_ETL_INBOX: must be a list such as"),
        ('{"file": "x"}', "CHECKLY_ETL_INBOX: must be a list such as"),
        ('["hunter2"]', "CHECKLY_ETL_INBOX[0] must be a mapping with file, url, queue"),
        ('[{"fiel": "x"}]', "CHECKLY_ETL_INBOX[0].fiel is not a setting; did you mean file?"),
        ('[{"url": "redis://:hunter2@h:6379/0"}]', "CHECKLY_ETL_INBOX[0] must hold either a file, or a url and its"),
        ('[{"url": "ftp://u:hunter2@h", "queue": "q"}]', "CHECKLY_ETL_INBOX[0].url must be the URL of a Redis"),
    ],
)
def test_inboxes_of_the_environment_that_are_wrong_are_told_without_a_password(value: str, said: str) -> None:
    assert said in problems(CHECKLY_ETL_INBOX=value)


def test_a_file_that_looks_like_the_settings_and_is_not_read_is_told() -> None:
    Path("config.yml").write_text("checkly:\n  retention: 30d\n")
    with pytest.raises(ConfigError, match=r"config\.yml is not read: rename it to config\.yaml, or name it with"):
        load(None, KEYS)
    assert load(Path("config.yml"), KEYS).checkly.retention == timedelta(days=30)
    Path("config.yml").write_text("theme: minimal\nplugins: [search]\n")
    assert load(None, KEYS), "another program's is no business of ours"
    Path("config.yml").unlink()
    Path("config.yaml").symlink_to("gone.yaml")
    with pytest.raises(ConfigError, match=r"config\.yaml: is a link to a file that does not exist"):
        load(None, KEYS)


@pytest.mark.parametrize("url", ["redis://:hunter2", "redis://h:port/0", "amqp://[::1/v", "amqp://u:${P}@h:99999/"])
def test_a_brokers_url_that_is_none_is_refused_without_a_parsers_words(url: str) -> None:
    problem = problems(f"inbox: [{{url: '{url}', queue: q}}]", P="hunter2")
    assert problem.startswith("config.yaml: inbox[0].url must be the URL of a Redis ")
    assert problem.endswith("amqps:// with TLS)")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:hunter2@/db?host=/var/run/postgresql", "postgresql://u:***@/db?host=/var/run/postgresql"),
        (
            "postgresql://u:hunter2@h/db?options=-c%20search_path%3Da",
            "postgresql://u:***@h/db?options=-c%20search_path%3Da",
        ),
        ("postgresql://u:hunter2@a,b/db", "postgresql://u:***@a,b/db"),
        ("postgresql://u:hunter2@/db?host=a:5432&host=b:5432", "postgresql://u:***@/db?host=a:5432&host=b:5432"),
        ("postgresql://u:hunter2@[::1]:5432/db", "postgresql://u:***@[::1]:5432/db"),
        ("postgresql://u@[::1]:5432/db", "postgresql://u@[::1]:5432/db"),
        ("postgresql://me%40there:hunter2%2F%40%23@h/db", "postgresql://me%40there:***@h/db"),
        ("postgresql://u:h:u:hunter2@h/db", "postgresql://u:***@h/db"),
        ("postgresql://h/db?user=me@there", "postgresql://h/db?user=me@there"),
        ("postgresql://h:5432/db?user=u&password=hunter2", "postgresql://h:5432/db?user=u&password=***"),
        ("sqlite:////path/with@sign.db", "sqlite:////path/with@sign.db"),
        ("sqlite:////path:1/with@sign.db", "sqlite:////path:1/with@sign.db"),
    ],
)
def test_a_url_that_is_one_is_taken_and_shown_without_its_password(url: str, shown: str) -> None:
    settings = read(CHECKLY_ETL_WAREHOUSE_URL=url)
    assert (settings.warehouse.url.reveal(), settings.warehouse.shown) == (url, shown)
    assert all("hunter2" in secret for secret in settings.secrets)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("export: {lookback: 15}", "config.yaml: export.lookback must be a duration such as 90s"),
        ("export: {lookback: 1:30}", "not '1:30'"),
        ("export: {running_poll: 0s}", "longer than zero"),
        ("export: {concurrency: 0}", "from 1 to 64, not '0'"),
        ("export: {concurrency: [1]}", "not a list"),
        ("export: {settle: [0s]}", "a list in which each is a duration"),
        ("export: {result_details: some}", "none, failed, all"),
        ("export: {lokback: 1d}", "export.lokback is not a setting; did you mean lookback?"),
        ("exprot: {}", "exprot is not a section; did you mean export?"),
        ("checkly: {api_url: 'https://u:hunter2@example.com'}", "without user and password"),
        ("~: 1\nexport: {~: 1}", "None is not a section"),
        ("&a [*a]", "is not valid YAML"),
        ("export: [1]", "export must be a section with keys, not a list"),
        ("- 1", "must hold sections"),
        ("export: {lease: 1m, lease: 2m}", "the key lease stands twice"),
        ("export: {\n  x: ]", "not valid YAML at line 2, column 6"),
        ("checkly: {max_body: 0}", "64 MB"),
        ("checkly: {api_url: 'http://example.com'}", "unencrypted"),
        ("checkly: {api_url: 'ftp://example.com'}", "http(s) URL"),
        ("checkly: {accounts: [{name: x}]}", "accounts[0] needs the account's id"),
        ("checkly: {accounts: [{id: x}]}", "accounts[0].id must be a UUID"),
        ("checkly: {accounts: [{id: x, api_key_env: cu_hunter2}]}", "in capitals"),
        ("warehouse: {schema: x}", "PostgreSQL only"),
        ("schedule: {cron: '* * * * *', interval: 1m}", "exclude each other"),
        ("schedule: {cron: hourly}", "five fields"),
        ("schedule: {timezone: Mars/Base}", "time zone"),
        (
            "inbox: 'redis://:hunter2@h'",
            "config.yaml: inbox: must be a list such as [{file: ids.txt}], not a single value",
        ),
        ("export:\n\tlease: 1m", "not valid YAML at line 2, column 1: a tab; YAML is indented by blanks"),
        ("inbox: [{file: x, queue: y}]", "either a file, or a url and its queue"),
        ("observe: {listen: '0.0.0.0:80'}", "CHECKLY_ETL_OBSERVE__TOKEN"),
        ("observe: {listen: '80'}", "address and a port"),
    ],
)
def test_a_mistake_is_named_with_its_place(text: str, problem: str) -> None:
    assert problem in problems(text)


def test_a_file_that_is_not_utf_8_is_a_problem() -> None:
    Path("config.yaml").write_bytes(b"a: \xff")
    with pytest.raises(ConfigError, match="is not UTF-8"):
        load(None, {})


def test_all_mistakes_come_at_once() -> None:
    found = problems(
        "export: {lease: 1, x: 2}\ninbox: 3", CHECKLY_ETL_EXPORT__BATCH_SIZE="no", CHECKLY_ACCOUNT_ID="1"
    )
    assert len(found.splitlines()) == 5


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("CHECKLY_ETL_EXPORT__CONCURENCY", "did you mean CHECKLY_ETL_EXPORT__CONCURRENCY?"),
        ("CHECKLY_ETL_WAREHOUSE__URL", "use CHECKLY_ETL_WAREHOUSE_URL"),
        ("CHECKLY_ETL_CHECKLY__API_KEY_FILE", "use CHECKLY_API_KEY"),
        ("CHECKLY_ETL_INBOX__FILE", "CHECKLY_ETL_INBOX takes the whole list, as JSON"),
    ],
)
def test_an_unknown_variable_is_a_problem(name: str, hint: str) -> None:
    assert hint in problems(**{name: "hunter2"})


def test_variables_of_others_are_ignored() -> None:
    assert read(CHECKLY_ETL_SERVICE_HOST="10.0.0.1", CHECKLY_ETL_PORT="x") == read()


@pytest.mark.parametrize("url", ["http://localhost:4020/", "http://127.0.0.1:4020", "http://[::1]:4020"])
def test_plain_http_to_loopback_is_fine(url: str) -> None:
    assert read(CHECKLY_API_URL=url).checkly.api_url == url.rstrip("/")


@pytest.mark.parametrize("missing", ["CHECKLY_API_KEY", "CHECKLY_ACCOUNT_ID"])
def test_missing_credentials_are_named_only_when_they_are_needed(missing: str) -> None:
    settings = read(**{name: text for name, text in KEYS.items() if name != missing})
    with pytest.raises(
        ConfigError, match=f"CHECKLY_API_KEY and CHECKLY_ACCOUNT_ID, and {missing} is not set"
    ) as caught:
        settings.require_accounts()
    assert len(caught.value.problems) == 1


def test_a_key_whose_variable_is_not_set_is_missed_only_when_it_is_needed() -> None:
    assert load(ROOT / "config.example.yaml", {}) == load(None, {})
    with pytest.raises(ConfigError, match="CHECKLY_API_KEY and CHECKLY_ACCOUNT_ID, and CHECKLY_API_KEY is not set"):
        read("checkly: {api_key: '${CHECKLY_API_KEY}'}", CHECKLY_ACCOUNT_ID=A).require_accounts()
    with pytest.raises(ConfigError, match=f"{A} has no API key: its variable SHOP_KEY is not set"):
        read("checkly: {api_key: '${SHOP_KEY}'}", CHECKLY_ACCOUNT_ID=A).require_accounts()
    assert "the environment variable SHOP_KEY is not set" in problems("observe: {token: '${SHOP_KEY}'}")
    assert "SHOP_KEY_FILE: the file that it names cannot be read" in problems(
        "checkly: {api_key: '${SHOP_KEY}'}", SHOP_KEY_FILE="nowhere"
    )


def test_the_default_account_is_the_one_of_the_environment() -> None:
    text = f"checkly: {{accounts: [{{id: {A}}}, {{id: {B}, api_key_env: KEY_B, retention: 30d}}]}}"
    settings = read(text, CHECKLY_ACCOUNT_ID=B, CHECKLY_API_KEY="a", KEY_B="b")
    assert [(a.id, a.api_key.reveal(), a.retention.days) for a in settings.require_accounts()] == [
        (B, "b", 30),
        (A, "a", 7),
    ]
    assert "is none of the ids" in problems(text, CHECKLY_ACCOUNT_ID=B.replace("b", "d"))
    with pytest.raises(ConfigError, match="its variable KEY_B is not set"):
        read(text, CHECKLY_API_KEY="a").require_accounts()


@pytest.mark.parametrize(
    ("text", "size"), [("64MB", 64_000_000), ("500 KB", 500_000), ("1 gb", 10**9), ("7000000", 7 * 10**6)]
)
def test_sizes_are_decimal(text: str, size: int) -> None:
    assert read(f"checkly: {{max_body: {text}}}").checkly.max_body == size


@pytest.mark.parametrize("text", ["", "0s", "15", "-1m", "1.5h", "1w", "1m30s", "99999999d", "١m"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_duration(text)


NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-01-31", datetime(2026, 1, 31, tzinfo=UTC)),
        ("2026-01-31T09:30:00+01:00", datetime(2026, 1, 31, 8, 30, tzinfo=UTC)),
        ("2026-01-31 09:30", datetime(2026, 1, 31, 9, 30, tzinfo=UTC)),
        ("2026-01-31T09:30:00Z", datetime(2026, 1, 31, 9, 30, tzinfo=UTC)),
        ("1d", datetime(2026, 2, 28, 12, tzinfo=UTC)),
    ],
)
def test_a_moment_is_a_date_a_time_or_an_age(text: str, moment: datetime) -> None:
    assert parse_when(text, NOW) == moment


@pytest.mark.parametrize("text", ["", "yesterday", "2026-13-01", "90", "0001-01-01T00:00+10:00"])
def test_what_is_no_moment_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a time"):
        parse_when(text, NOW)
