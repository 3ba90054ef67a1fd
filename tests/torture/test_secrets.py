"""No secret in any log, error, row, report or process list (guarantee 10), whatever goes wrong and whoever knows it.

Every run is searched for each secret in all forms that `forms` knows, and for a traceback; the rows of the
warehouse are searched afterwards.
"""

from __future__ import annotations

import base64
import json
import re
import signal
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote, quote_plus

import psycopg
import pytest
from sqlalchemy.engine import make_url

from etl.database import Database
from etl.simulator import Simulator, World
from tests.conftest import ACCOUNT, Program, Run, environment, rows
from tests.documents import detail, uuid
from tests.harness import (
    WAREHOUSE_PASSWORD,
    Workers,
    make_due,
    rows_that_hold,
    wait_until,
    with_password,
)
from tests.servers import OwnPostgres

KEY = "cu_" + r"""k"e\y'+/%2F=<é>&$!"""  # all that a header takes and a format may escape
PROXY_USER, PROXY_PASSWORD = "proxy-user", "proxy/p@ss:wörd\\%"
TOKEN = "token-of-observe-1234"
PLAIN = "sesame-street-1234"
PROXY_LOGIN = f"{quote(PROXY_USER, safe='')}:{quote(PROXY_PASSWORD, safe='')}"
NOWHERE = "http://127.0.0.1:9"
# Once to see everything, once where texts are escaped, once on stdout, once as cron does it.
STYLES = (("-v",), ("-v", "--log-format", "json"), ("--json",), ("-q",))


def forms(secret: str) -> set[str]:
    """A secret as it is, and as somebody may have written it on the way."""
    return {
        secret,
        quote(secret, safe=""),
        quote(secret),
        quote_plus(secret),
        json.dumps(secret)[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1],
        repr(secret)[1:-1],
        repr(secret.encode())[2:-1],
        secret.encode().decode("latin-1"),
        base64.b64encode(secret.encode()).decode(),
        base64.b64encode(secret.encode("latin-1")).decode(),
    }


def all_forms(*more: str) -> list[str]:
    login = f"{PROXY_USER}:{PROXY_PASSWORD}"
    return sorted(set().union(*map(forms, (KEY, PROXY_PASSWORD, login, TOKEN, PLAIN, WAREHOUSE_PASSWORD, *more))))


def secretive(api_url: str, warehouse_url: str) -> dict[str, str]:
    """What a user would set, with difficult secrets."""
    return {
        **environment(api_url, with_password(warehouse_url)),
        "CHECKLY_API_KEY": KEY,
        "CHECKLY_ETL_OBSERVE__TOKEN": TOKEN,
        "CHECKLY_ETL_CHECKLY__TIMEOUT": "2s",
    }


class Discreet:
    """checkly-etl in this process; a command that tells a secret, or shows a traceback, fails the test."""

    def __init__(self, program: Program, secrets: Iterable[str]) -> None:
        self._program = program
        self.secrets = list(secrets)

    @property
    def env(self) -> dict[str, str]:
        return self._program.env

    def __call__(self, *arguments: str, **env: str) -> Run:
        run = self._program(*arguments, **env)
        self.check(run)
        assert "Traceback" not in run.err, run.err
        return run

    def with_bugs(self, *arguments: str, **env: str) -> Run:
        """A traceback is fine, a secret is not."""
        run = self._program(*arguments, **env)
        self.check(run)
        return run

    def check(self, run: Run) -> None:
        for secret in self.secrets:
            assert secret not in run.out + run.err, f"{secret} is told: {run.err[-3000:]}{run.out[-3000:]}"

    def in_every_style(self, *arguments: str, **env: str) -> list[Run]:
        """The same command in each way of talking; `--json` only where it is known."""
        has_json = arguments[0] not in ("doctor", "migrate")
        return [self(*arguments, *style, **env) for style in STYLES if has_json or "--json" not in style]


@pytest.fixture
def discreet(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    new_warehouse: Callable[[str], str],
    tmp_path: Path,
) -> Discreet:
    """checkly-etl with difficult secrets, an empty SQLite warehouse and no API."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("etl.checkly.retry.FIRST_BACKOFF", 0.01)
    return Discreet(Program(secretive(NOWHERE, new_warehouse("sqlite")), capsys, monkeypatch), all_forms())


def holds_no_secret(url: str, *, but: Iterable[str] = (), secrets: Iterable[str] = ()) -> None:
    """No table holds a secret, but those that are named."""
    database = Database(url)
    for secret in secrets or all_forms():
        assert set(rows_that_hold(database, secret)) - set(but) == set(), secret
    database.close()


@contextmanager
def processes(api_url: str, warehouse_url: str, **env: str) -> Iterator[Workers]:
    """checkly-etl in processes of their own."""
    some = Workers({**secretive(api_url, warehouse_url), **env}, secrets=all_forms())
    try:
        yield some
    finally:
        some.close()


# --- an API that repeats what it was sent -------------------------------------------------------------------------


class Parrot:
    """A server on a socket that answers every request with what `answer` makes of its head."""

    def __init__(self, answer: Callable[[bytes], bytes], *, tls: ssl.SSLContext | None = None) -> None:
        self._answer, self._tls = answer, tls
        self.heads: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> Parrot:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            with client:
                client.settimeout(10)
                if self._tls:
                    client = self._tls.wrap_socket(client, server_side=True)
                head = b""
                # The first record of TLS is answered at once, as a server that knows no TLS does.
                while b"\r\n\r\n" not in head and not head.startswith(b"\x16") and (piece := client.recv(65536)):
                    head += piece
                self.heads.append(head)
                client.sendall(self._answer(head))
                client.shutdown(socket.SHUT_RDWR)
        except OSError:
            return


def authorization(head: bytes) -> bytes:
    """What stands in the header that a parrot repeats."""
    found = re.search(rb"(?im)^(?:proxy-)?authorization: *(.*?)\r$", head)
    return found[1] if found else b"none"


def http(status: bytes, body: bytes, *headers: bytes) -> bytes:
    head = [b"HTTP/1.1 " + status, b"Content-Length: %d" % len(body), b"Connection: close", *headers]
    return b"\r\n".join(head) + b"\r\n\r\n" + body


def _quoted(text: bytes) -> bytes:
    return json.dumps(text.decode("latin-1")).encode()


PARROTS: dict[str, Callable[[bytes], bytes]] = {
    **{
        f"body of a {status}": lambda head, status=status: http(  # type: ignore[misc]
            b"%d No" % status, b'{"message": ' + _quoted(head) + b"}"
        )
        for status in (400, 401, 402, 403, 404, 407, 422, 500, 503)
    },
    "reason phrase": lambda head: http(b"500 " + authorization(head), b""),
    "reason phrase of a refusal": lambda head: http(b"401 " + authorization(head), b""),
    "status": lambda head: http(authorization(head), b""),
    "whole answer": lambda head: head,
    "status line": lambda head: authorization(head) + b"\r\n\r\n",
    "redirect": lambda head: http(b"302 Found", b"", b"Location: http://127.0.0.1:9/" + authorization(head)),
    "header without a colon": lambda head: http(b"200 OK", b"{}", b"X-A: b", authorization(head)),
    "header that is folded": lambda head: http(b"200 OK", b"{}", b" " + authorization(head)),
    "header of a refusal": lambda head: http(b"503 No", b"", authorization(head)),
    "long header": lambda head: http(b"200 OK", b"{}", b"X: " + authorization(head) * 3000),
    "many headers": lambda head: http(b"200 OK", b"{}", *[b"X: " + authorization(head)] * 200),
    "length": lambda head: b"HTTP/1.1 200 OK\r\nContent-Length: " + authorization(head) + b"\r\n\r\n{}",
    "chunk": lambda head: b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + authorization(head) + b"\r\n",
    "encoding": lambda head: http(b"200 OK", b"{}", b"Content-Encoding: " + authorization(head)),
    "gzip": lambda head: http(b"200 OK", authorization(head), b"Content-Encoding: gzip"),
    "Retry-After": lambda head: http(b"503 No", b"", b"Retry-After: " + authorization(head)),
    "cookie": lambda head: http(b"200 OK", b"{}", b"Set-Cookie: a=" + authorization(head)),
    "no JSON": lambda head: http(b"200 OK", authorization(head)),
    "half of a JSON": lambda head: http(b"200 OK", b'{"entries": [' + _quoted(authorization(head))),
    "informational": lambda head: b"HTTP/1.1 103 " + authorization(head) + b"\r\n\r\n" + http(b"500 No", b""),
}


@pytest.mark.parametrize("where", PARROTS)
def test_an_api_that_repeats_the_key_in_its_answer_makes_nobody_see_it(where: str, discreet: Discreet) -> None:
    with Parrot(PARROTS[where]) as parrot:
        discreet.env["CHECKLY_API_URL"] = parrot.url
        discreet("enqueue", uuid(1))
        ended = [*discreet.in_every_style("sync"), discreet("doctor", "-v")]
        assert all(run.code in (0, 1, 3) for run in ended), [run.err for run in ended]
        assert any(KEY.encode("latin-1") in head for head in parrot.heads), "it was told"
    discreet("status")
    discreet("dead", "list", "--json")
    holds_no_secret(discreet.env["CHECKLY_ETL_WAREHOUSE_URL"])


def test_an_api_that_writes_the_key_into_its_documents_makes_nobody_see_it(discreet: Discreet) -> None:
    """What a document says is the API's data, and stays in the rows of that document as received; but no log,
    message, status or table of the exporter's own (queue, runs) repeats it. Drift is an example of a document."""
    good = detail(1, name=KEY, status=KEY, x=f"Bearer {KEY}", metadata={"branchName": KEY, KEY: KEY})
    bad = detail(2, errorGroupIds=[KEY], testSessionLink=KEY)

    def answer(head: bytes) -> bytes:
        path = head.split(b" ")[1].decode()
        if path.startswith("/v1/test-sessions?"):
            return http(b"200 OK", json.dumps({"entries": [{"id": KEY}]}).encode())
        return http(b"200 OK", json.dumps(good if uuid(1) in path else bad).encode())

    with Parrot(answer) as parrot:
        discreet.env["CHECKLY_API_URL"] = parrot.url
        for style in STYLES:
            discreet("enqueue", "--force", uuid(1), uuid(2))
            discreet("sync", *style)
        for command in (("status",), ("dead", "list"), ("dead", "show", uuid(2)), ("replay",)):
            discreet.in_every_style(*command)
    documents = ("test_sessions", "test_session_results", "check_executions", "etl_payloads", "etl_drift")
    holds_no_secret(discreet.env["CHECKLY_ETL_WAREHOUSE_URL"], but=documents)


def test_a_document_forges_no_line_of_the_log_and_no_command_of_the_terminal(discreet: Discreet) -> None:
    """Line breaks and escape sequences in what the API says reach no log and no terminal as such."""
    evil = "P\n2026-01-01T00:00:00.000Z error   forged\r\x1b[2J\x1b]0;title\x07\u2028\x9b31m"
    hostile = [detail(1, name=evil, status=evil, **{evil: evil}), detail(2, stoppedAt=None, name=evil, status=evil)]
    bodies = {uuid(number): json.dumps(document).encode() for number, document in enumerate(hostile, 1)}

    def answer(head: bytes) -> bytes:
        path = head.split(b" ")[1].decode()
        return http(b"200 OK", bodies.get(path.rsplit("/", 1)[-1], b'{"entries": []}'))

    with Parrot(answer) as parrot:
        discreet.env["CHECKLY_API_URL"] = parrot.url
        discreet("enqueue", *bodies)
        runs = [discreet("sync", "-v"), discreet("status")]
        discreet("enqueue", "--force", *bodies)
        runs += [discreet("sync", "-v", CHECKLY_ETL_EXPORT__RUNNING_MAX_AGE="1s"), discreet("status")]
    for text in (text for run in runs for text in (run.out, run.err)):
        assert re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029]", text) is None, repr(text)
        assert not any(line.startswith("2026-01-01") for line in text.splitlines()), text


# --- proxies and TLS ----------------------------------------------------------------------------------------------

PROXIES: dict[str, Callable[[bytes], bytes]] = {
    "407": lambda head: http(b"407 " + authorization(head), head),
    "502": lambda head: http(b"502 Bad " + authorization(head), head),
    "200 and then nothing": lambda head: b"HTTP/1.1 200 " + authorization(head) + b"\r\n\r\n",
    "no HTTP": lambda head: head,
    "a bad header": lambda head: http(b"407 No", b"", authorization(head)),
    "nothing": lambda head: b"",
}


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("how", PROXIES)
def test_a_proxy_that_refuses_tells_no_password(how: str, scheme: str, discreet: Discreet) -> None:
    with Parrot(PROXIES[how]) as proxy:
        discreet.env[f"{scheme.upper()}_PROXY"] = f"http://{PROXY_LOGIN}@127.0.0.1:{proxy.port}"
        discreet.env["CHECKLY_API_URL"] = f"{scheme}://127.0.0.1:9"
        ended = [*discreet.in_every_style("sync"), discreet("doctor", "-v")]
        assert {run.code for run in ended} == {3}, ended[0].err
    login = f"{PROXY_USER}:{PROXY_PASSWORD}"
    sent = [base64.b64encode(login.encode(charset)) for charset in ("utf-8", "latin-1")]
    assert any(secret in head for secret in sent for head in proxy.heads), "the proxy was told"
    holds_no_secret(discreet.env["CHECKLY_ETL_WAREHOUSE_URL"])


@pytest.mark.parametrize(
    "proxy",
    [
        f"http://{PROXY_LOGIN}@127.0.0.1:1",
        f"http://{PROXY_LOGIN}@127.0.0.1:port",
        f"http://{PROXY_LOGIN}@[::1",
        f"http://{PROXY_LOGIN}@",
        f"socks5://{PROXY_LOGIN}@127.0.0.1:1",
        f"{PROXY_LOGIN}@127.0.0.1:1",
        f"http://{PROXY_USER}:{PROXY_PASSWORD}@127.0.0.1:1",
        f"http:/{PROXY_LOGIN}@127.0.0.1:1",
        f"http://{PROXY_LOGIN}@no such host:1",
        f"//{PROXY_LOGIN}@127.0.0.1:1",
    ],
    ids=str,
)
def test_a_proxy_setting_that_is_wrong_tells_no_password(proxy: str, discreet: Discreet) -> None:
    discreet.env["HTTP_PROXY"] = proxy
    ended = [*discreet.in_every_style("sync"), discreet("doctor", "-v")]
    assert {run.code for run in ended} <= {2, 3}, ended[0].err
    holds_no_secret(discreet.env["CHECKLY_ETL_WAREHOUSE_URL"])


def test_tls_errors_tell_no_secret(discreet: Discreet, tmp_path: Path) -> None:
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
    files = ["-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "cert.pem")]
    subprocess.run([*command.split(), *files], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    with Parrot(PARROTS["no JSON"], tls=context) as signed_by_nobody, Parrot(PARROTS["no JSON"]) as plain:
        for url in (signed_by_nobody.url, plain.url.replace("http:", "https:")):
            ended = [*discreet.in_every_style("sync", CHECKLY_API_URL=url), discreet("doctor", CHECKLY_API_URL=url)]
            assert {run.code for run in ended} == {3}
            assert "TLS" in ended[0].err
    holds_no_secret(discreet.env["CHECKLY_ETL_WAREHOUSE_URL"])


# --- the warehouse ------------------------------------------------------------------------------------------------


def test_a_warehouse_that_refuses_the_password_does_not_hear_it_repeated(
    discreet: Discreet, own_postgres: OwnPostgres
) -> None:
    """A server that asks for passwords; ours is wrong, and full of what URLs and conninfos escape."""
    password = "p@ss w/ö\\%:?#'\" x"
    with psycopg.connect(own_postgres.url, autocommit=True) as connection:
        connection.execute("CREATE ROLE exporter LOGIN PASSWORD 'another'")
        found = connection.execute("SHOW hba_file").fetchone()
        assert found is not None
        hba = Path(found[0])
        hba.write_text(f"host all exporter 127.0.0.1/32 scram-sha-256\n{hba.read_text()}")
        connection.execute("SELECT pg_reload_conf()")
    url = make_url(own_postgres.url).set(username="exporter", password=password)
    discreet.env["CHECKLY_ETL_WAREHOUSE_URL"] = url.render_as_string(hide_password=False)
    discreet.secrets += forms(password)
    for command in ("sync", "migrate", "status", "doctor", "replay"):
        for run in discreet.in_every_style(command):
            assert run.code == 3, run.err
            assert "password authentication failed" in run.err + run.out


@pytest.mark.parametrize(
    ("end", "codes"),
    [
        ("127.0.0.1:1/d", {3}),
        ("127.0.0.1:99999/d", {2, 3}),
        ("127.0.0.1:port/d", {2}),
        ("[::1/d", {2}),
        ("no-such-host.invalid/d", {3}),
        ("127.0.0.1:1/d?sslmode=bogus", {2, 3}),
        ("127.0.0.1:1/d?connect_timeout=abc", {2, 3}),
        ("127.0.0.1:1/d?foo=1", {2, 3}),
        ("127.0.0.1:1/d?port=abc", {2, 3}),
        (f"127.0.0.1:1/d?password={PLAIN}", {3}),
        (f"127.0.0.1:1/d?sslpassword={PLAIN}&sslkey=/none", {2, 3}),
        (f"127.0.0.1:1/d?foo={PLAIN}", {2, 3}),
        (f"127.0.0.1:1/d?options={PLAIN}", {2, 3}),
        ("127.0.0.1@127.0.0.1:1/d", {2, 3}),
        ("127.0.0.1:1/d#x", {2, 3}),
        ("", {2, 3}),
    ],
    ids=str,
)
def test_a_warehouse_url_that_does_not_work_tells_no_password(end: str, codes: set[int], discreet: Discreet) -> None:
    discreet.env["CHECKLY_ETL_WAREHOUSE_URL"] = f"postgresql://nobody:{PLAIN}@{end}"
    for command in ("status", "sync", "migrate", "doctor"):
        run = discreet(command, "-v")
        assert run.code in codes, (command, run.err)


def test_a_bug_tells_no_secret_and_no_data(
    discreet: Discreet, new_warehouse: Callable[[str], str], small_world: World
) -> None:
    """A database that refuses a row with an error that nobody foresaw: the traceback is logged, and nothing else."""
    url = new_warehouse("postgresql")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("ALTER TABLE test_sessions ADD CONSTRAINT refuse CHECK (started_at IS NULL)")
    try:
        with Simulator(small_world, rate_limit=0) as simulator:
            discreet.env.update(secretive(simulator.url, url))
            for style in STYLES[:2]:
                run = discreet.with_bugs("sync", *style)
                assert run.code == 1
                assert "a bug in checkly-etl" in run.err
                assert "Failing row contains" not in run.err, "data has no place in a log"
                with closing(Database(url)) as database:
                    make_due(database)
        holds_no_secret(url)
    finally:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("ALTER TABLE test_sessions DROP CONSTRAINT refuse")


# --- settings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "env",
    [
        {"CHECKLY_ACCOUNT_ID": PLAIN, "CHECKLY_API_KEY": ACCOUNT},
        {"CHECKLY_ACCOUNT_ID": PLAIN},
        {"CHECKLY_API_KEY": "", "CHECKLY_API_KEY_FILE": PLAIN},
        {"CHECKLY_API_KEY": f"{PLAIN} {PLAIN}"},
        {"CHECKLY_API_KEY": PLAIN, "CHECKLY_API_KEY_FILE": "/dev/null"},
        {"CHECKLY_API_KEY": PLAIN, "CHECKLY_API_URL": f"https://api.checklyhq.com/?key={PLAIN}"},
        {"CHECKLY_API_KEY": PLAIN, "CHECKLY_API_URL": f"https://{PLAIN}@api.checklyhq.com"},
        {"CHECKLY_API_KEY": PLAIN, "CHECKLY_API_URL": f"https://api.checklyhq.com/ {PLAIN}"},
        {"CHECKLY_API_KEY": PLAIN, "CHECKLY_API_URL": PLAIN},
        {"CHECKLY_ETL_WAREHOUSE_URL": "", "CHECKLY_ETL_WAREHOUSE_URL_FILE": f"postgresql://u:{PLAIN}@h/d"},
        {"CHECKLY_ETL_WAREHOUSE_URL": f"mysql://u:{PLAIN}@h/d"},
        {"CHECKLY_ETL_WAREHOUSE_URL": f"u:{PLAIN}@h/d"},
        {"CHECKLY_ETL_WAREHOUSE_URL": f"sqlite://u:{PLAIN}@h/d"},
        {"CHECKLY_ETL_WAREHOUSE_URL": f"sqlite:///x.db?password={PLAIN}"},
        {"CHECKLY_ETL_OBSERVE__TOKEN": f"{PLAIN}\n{PLAIN}"},
        {"CHECKLY_ETL_CHECKLY__API_KEY": PLAIN},
        {"CHECKLY_ETL_WAREHOUSE__URL": f"postgresql://u:{PLAIN}@h/d"},
        {"CHECKLY_ETL_CHECKLY__ACCOUNTS": json.dumps([{"id": ACCOUNT, "api_key_env": PLAIN}])},
        {"CHECKLY_ETL_CHECKLY__ACCOUNTS": json.dumps([{"id": ACCOUNT, "api_key": PLAIN}])},
        {"CHECKLY_ETL_CHECKLY__ACCOUNTS": f'[{{"id": "{ACCOUNT}", "api_key_env": "{PLAIN}"'},
    ],
    ids=str,
)
def test_settings_that_are_wrong_tell_no_secret(env: dict[str, str], discreet: Discreet) -> None:
    for command in (("sync",), ("sync", "--json"), ("status", "-v"), ("doctor",)):
        assert discreet(*command, **env).code in (2, 3)


FILES = [
    "warehouse: {url: 'postgresql://u:SECRET@h/d'}",
    'warehouse: {url: "postgresql://u:SECRET@h/d}',
    "warehouse: {url: postgresql://u:SECRET@h/d",
    "warehouse:\n  url: postgresql://u:SECRET@h/d: x",
    "warehouse:\n\turl: SECRET",
    "checkly: {api_key: SECRET}",
    "checkly:\n  account_id: x\n  api_key:SECRET",
    "checkly:\n  account_id: x\n    api_key:SECRET",
    "checkly:\n  account_id: SECRET",
    "checkly:\n  api_key: !SECRET x",
    "checkly:\n  api_key: *SECRET",
    "checkly:\n  api_key: &SECRET [",
    "checkly:\n  api_key: 'SECRET''",
    'checkly:\n  api_key: "\\qSECRET"',
    "checkly:\n  api_key: %SECRET\n  - x",
    "checkly:\n  api_key: @SECRET",
    "checkly:\n  api_key: `SECRET`",
    "checkly:\n  api_key: {SECRET: }: x",
    "checkly:\n  api_key: [SECRET]",
    "checkly:\n  accounts: [{id: SECRET}]",
    "checkly:\n  accounts: [{id: x, api_key: SECRET}]",
    "checkly:\n  accounts: [{id: x, api_key_env: SECRET}]",
    "observe: {token: SECRET}",
    "inbox: [{url: 'amqp://u:SECRET@h/', queue: q}]",
    "SECRET",
    "%TAG ! SECRET",
    "--- SECRET\n--- x",
]


@pytest.mark.parametrize("content", FILES)
def test_a_file_with_a_mistake_where_a_secret_stands_does_not_show_it(
    content: str, discreet: Discreet, tmp_path: Path
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(content.replace("SECRET", PLAIN))
    for style in (("--json",), ("-v",)):
        run = discreet("sync", "--config", str(file), *style, CHECKLY_ACCOUNT_ID="", CHECKLY_ETL_WAREHOUSE_URL="")
        assert run.code == 2, run.err


def test_a_secret_that_the_environment_tells_is_hidden_in_any_mistake(discreet: Discreet, tmp_path: Path) -> None:
    """The program knows its key; wherever else somebody put it by mistake, no message repeats it."""
    discreet.env["CHECKLY_API_KEY"] = PLAIN
    (tmp_path / "named.yaml").write_text(f"checkly: {{{PLAIN}: x}}\n")
    (tmp_path / "valued.yaml").write_text(f"export: {{lookback: {PLAIN}}}\n")
    for arguments in (
        ("sync", PLAIN),
        ("sync", f"--key={PLAIN}"),
        (PLAIN,),
        ("enqueue", PLAIN),
        ("dead", "show", PLAIN),
        ("backfill", "--since", PLAIN),
        ("sync", "--config", f"/nowhere/{PLAIN}"),
        ("sync", "--config", "named.yaml"),
        ("sync", "--config", "valued.yaml"),
    ):
        for style in ((), ("--json",)):
            assert discreet(*arguments, *style).code == 2, arguments


def test_keys_of_several_accounts_and_secrets_from_files_are_hidden_alike(
    discreet: Discreet, new_warehouse: Callable[[str], str], small_world: World, tmp_path: Path
) -> None:
    keys = {"KEY_ONE": "cu_one_" + "1" * 20, "KEY_TWO": "cu_two_" + "2" * 20}
    ids = {"KEY_ONE": ACCOUNT, "KEY_TWO": uuid(2)}
    (tmp_path / "key").write_text(keys["KEY_TWO"] + "\n")
    url = new_warehouse("postgresql")
    (tmp_path / "url").write_text(with_password(url))
    discreet.env.update(
        CHECKLY_ETL_CHECKLY__ACCOUNTS=json.dumps([{"id": ids[name], "api_key_env": name} for name in keys]),
        KEY_ONE=keys["KEY_ONE"],
        KEY_TWO_FILE=str(tmp_path / "key"),
        CHECKLY_ETL_WAREHOUSE_URL="",
        CHECKLY_ETL_WAREHOUSE_URL_FILE=str(tmp_path / "url"),
    )
    discreet.secrets = all_forms(*keys.values())
    with Simulator(accounts={ACCOUNT: small_world}, rate_limit=0) as simulator:
        discreet.env["CHECKLY_API_URL"] = simulator.url
        simulator.add_fault(kind="status", status=500, probability=0.2)
        for run in discreet.in_every_style("sync"):
            assert run.code == 3
            assert "KEY_TWO" in run.err + run.out, "the variable is named"
        discreet("doctor", "-v")
        discreet("status", "--json")
    sent = {request.headers["authorization"] for request in simulator.requests}
    assert sent == {f"Bearer {key}" for key in keys.values()}
    holds_no_secret(url, secrets=discreet.secrets)


# --- processes ----------------------------------------------------------------------------------------------------


def test_neither_the_process_list_nor_the_database_servers_shows_a_secret(
    new_warehouse: Callable[[str], str], small_world: World
) -> None:
    url = new_warehouse("postgresql")
    with Simulator(small_world, rate_limit=0) as simulator, processes(simulator.url, url) as some:
        simulator.add_fault(match="/v1/", kind="delay", seconds=0.3)
        worker = some.start("sync", "-v")
        wait_until(lambda: len(simulator.requests) > 3)
        listed = Path(f"/proc/{worker.process.pid}/cmdline").read_bytes()
        listed += b"".join(task.read_bytes() for task in Path(f"/proc/{worker.process.pid}/task").glob("*/comm"))
        database = Database(url)
        activity = repr(rows(database, "SELECT * FROM pg_stat_activity WHERE application_name = 'checkly-etl'"))
        database.close()
        assert "checkly-etl" in activity
        for secret in all_forms():
            assert secret.encode() not in listed
            assert secret not in activity
        worker.process.send_signal(signal.SIGTERM)
        assert worker.wait(30) == 143


@pytest.mark.parametrize("number", [signal.SIGABRT, signal.SIGSEGV, signal.SIGINT, signal.SIGTERM])
def test_a_process_that_is_killed_while_it_waits_tells_no_secret(
    number: signal.Signals, new_warehouse: Callable[[str], str], small_world: World
) -> None:
    """With Python's fault handler, as people switch it on who look for a crash."""
    url = new_warehouse("sqlite")
    with Simulator(small_world, rate_limit=0) as simulator:
        simulator.add_fault(match="/v1/test-sessions/", kind="delay", seconds=1.5)
        debugging = {"PYTHONFAULTHANDLER": "1", "PYTHONDEVMODE": "1", "CHECKLY_ETL_SCHEDULE__GRACE": "1s"}
        with processes(simulator.url, url, **debugging) as some:
            worker = some.start("sync", "-v")
            wait_until(lambda: len(simulator.requests) > 3)
            worker.process.send_signal(number)
            worker.process.wait(30)
            worker._read()
            assert worker.process.returncode != 0
            for secret in all_forms():
                assert secret not in worker.out + worker.err


def test_nothing_else_is_told_the_key(new_warehouse: Callable[[str], str], small_world: World) -> None:
    """Neither the host that a redirect names, nor one of `.netrc`, nor a second host of any kind."""
    with Parrot(lambda head: http(b"200 OK", b"{}")) as other, Simulator(small_world, rate_limit=0) as simulator:
        simulator.add_fault(kind="redirect", location=f"{other.url}/v1/test-sessions", probability=0.5)
        home = Path(new_warehouse("sqlite").removeprefix("sqlite:///")).parent
        (home / ".netrc").write_text(f"machine 127.0.0.1 login somebody password {PLAIN}\n")
        (home / ".netrc").chmod(0o600)
        with processes(simulator.url, new_warehouse("sqlite"), HOME=str(home)) as some:
            for _ in range(3):
                some.run("sync", "-v")
        assert other.heads == []
        assert {request.headers["authorization"] for request in simulator.requests} == {f"Bearer {KEY}"}
