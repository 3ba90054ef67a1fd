"""`checkly-etl doctor`: what it says of installations that work, and of every way in which they are broken."""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url

import etl.database
from etl import doctor, schema
from etl.database import Database, network_filesystem
from etl.simulator import Simulator, World
from etl.tables import metadata
from tests.conftest import ACCOUNT, KEY, Program, Run, environment
from tests.documents import detail, entry, result, uuid
from tests.servers import OwnPostgres

CHECKOUT = Path(__file__).parents[1]
OTHER_ACCOUNT = "44444444-4444-4444-8444-444444444444"
PASSWORD = "sesame-open"
EMPTY_LIST = b'{"entries": [], "nextId": null}'
AS_NOBODY = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups")
API_CHECKS = ["proxy", "DNS", "API", "key", "account", "entitlement", "clock"]
_numbers = count(1)


@pytest.fixture
def patient(
    simulator: Simulator,
    new_warehouse: Callable[[str], str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Program:
    """checkly-etl with a SQLite warehouse, for what does not depend on the warehouse."""
    monkeypatch.chdir(tmp_path)
    return Program(environment(simulator.url, new_warehouse("sqlite")), capsys, monkeypatch)


def examined(program: Program, **env: str) -> Run:
    """How `doctor --json` ends; whatever is wrong, it tells no secret and shows no traceback."""
    began = time.monotonic()
    run = program("doctor", "--json", **env)
    assert time.monotonic() - began < 25
    for secret in (KEY, PASSWORD, "Traceback"):
        assert secret not in run.out + run.err
    assert run.json["exit_code"] == run.code
    assert run.json["outcome"] == ("failed" if run.code else "ok")
    assert (run.json["error"] is None) == (run.code == 0)
    for check in run.json["checks"]:
        assert check["status"] == {0: "ok", 1: "warning"}.get(check["exit_code"], "failed")
        assert "\n" not in check["text"]
    return run


def made(run: Run) -> list[str]:
    """The checks that were made, in order."""
    return [check["check"] for check in run.json["checks"]]


def said(run: Run, what: str, status: str) -> str:
    """What the one check of this name says."""
    [check] = [check for check in run.json["checks"] if check["check"] == what]
    assert check["status"] == status, run.json["checks"]
    return str(check["text"])


def only_trouble(run: Run, what: str, status: str = "failed") -> str:
    """What the one check says that is not good."""
    assert [check["check"] for check in run.json["checks"] if check["status"] != "ok"] == [what], run.json["checks"]
    return said(run, what, status)


# --- healthy ------------------------------------------------------------------------------------------------------


def test_of_a_healthy_installation_every_line_says_ok_and_nothing_is_written(
    program: Program, database: Database, engine_name: str, tmp_path: Path
) -> None:
    assert program("sync").code == 0
    database.close()  # the last one takes -wal and -shm away
    before = _everything(database), _files(tmp_path)
    run = program("doctor")
    assert run.code == 0, run.out
    assert run.err == ""
    assert all(line.startswith("ok       ") for line in run.out.splitlines()), run.out
    assert (_everything(database), _files(tmp_path)) == before
    told = made(examined(program))
    in_database = ["disk"] if engine_name == "sqlite" else ["database clock", "disk"]
    ends = ["privileges", "schema", "queue", "last success"]
    assert told == ["settings", *API_CHECKS, "warehouse", "version", *in_database, *ends]


def _everything(database: Database) -> dict[str, str]:
    with database.reading() as connection:
        found = {table.name: str(connection.execute(table.select()).all()) for table in metadata.sorted_tables}
    database.close()
    return found


def _files(folder: Path) -> dict[Path, tuple[int, bytes]]:
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir() if path.is_file()}


def test_an_installation_that_has_never_synced_is_healthy_and_is_told_how_to_go_on(program: Program) -> None:
    run = examined(program)
    assert run.code == 0
    assert "never so far; run checkly-etl sync" in said(run, "last success", "ok")
    assert said(run, "queue", "ok") == "0 due, 0 scheduled, 0 leased, 0 dead"


def test_the_most_severe_finding_decides_the_exit_code(patient: Program, simulator: Simulator) -> None:
    simulator.add_fault(match="/v1/test-sessions", kind="status", status=402)
    assert examined(patient).code == 1
    refused = {"CHECKLY_ETL_WAREHOUSE_URL": f"postgresql://u:{PASSWORD}@127.0.0.1:1/d"}
    assert examined(patient, **refused).code == 3
    assert examined(patient, **refused, CHECKLY_API_KEY="").code == 2


def test_settings_that_are_wrong_are_one_json_object_too(patient: Program) -> None:
    run = patient("doctor", "--json", CHECKLY_ETL_EXPORT__LEASE="soon")
    assert run.code == run.json["exit_code"] == 2
    assert "CHECKLY_ETL_EXPORT__LEASE" in run.json["error"]


# --- the way to the API -------------------------------------------------------------------------------------------


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(EMPTY_LIST)))
        self.end_headers()
        self.wfile.write(EMPTY_LIST)

    def do_CONNECT(self) -> None:
        self.send_response(self.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """A client that hangs up is what is tested."""


@contextmanager
def serving(status: int = 200, tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """The port of a server of the standard library that answers everything with this status and an empty list."""
    with _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"status": status})) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield int(server.server_address[1])
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ssl.SSLContext]:
    """A self-signed certificate of localhost, and a server's context with it."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    return _signed(folder, "localhost", "-days", "2")


def _signed(folder: Path, name: str, *options: str) -> tuple[Path, ssl.SSLContext]:
    made, key = folder / f"{name}.pem", folder / f"{name}.key"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
    names = ["-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}", "-keyout", str(key), "-out", str(made)]
    subprocess.run([*command.split(), *names, *options], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made, key)
    return made, context


def test_a_host_that_does_not_exist_is_told_once_and_the_warehouse_is_examined_all_the_same(program: Program) -> None:
    run = examined(program, CHECKLY_API_URL="https://no-such-host.invalid")
    assert run.code == 3
    told = only_trouble(run, "DNS")
    assert "no-such-host.invalid, the host of CHECKLY_API_URL, cannot be looked up" in told
    assert "name servers" in told
    assert {"TLS", "API", "key", "account", "entitlement", "clock"}.isdisjoint(made(run))
    assert made(run)[-1] == "last success"


@pytest.mark.parametrize("host", ["a" * 64 + ".invalid", "a..b"])
def test_a_host_name_that_can_be_none_is_no_bug(patient: Program, host: str) -> None:
    run = examined(patient, CHECKLY_API_URL=f"https://{host}")
    assert run.code == 3
    assert "CHECKLY_API_URL" in only_trouble(run, "DNS")


def test_a_refused_connection_names_the_url_and_the_ways_out(patient: Program) -> None:
    run = examined(patient, CHECKLY_API_URL="http://127.0.0.1:1")
    assert run.code == 3
    told = only_trouble(run, "API")
    assert "http://127.0.0.1:1 cannot be reached: Connection refused" in told
    assert "check CHECKLY_API_URL" in told
    assert "HTTP_PROXY" in told
    assert "key" not in made(run)


def test_an_api_that_does_not_answer_is_not_waited_for(patient: Program, simulator: Simulator) -> None:
    simulator.add_fault(kind="delay", seconds=40)
    run = examined(patient, CHECKLY_ETL_CHECKLY__TIMEOUT="1s")
    assert run.code == 3
    assert f"{simulator.url} did not answer within 1 s" in only_trouble(run, "API")
    assert len(simulator.requests) == 1, "not asked twice"


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ({"kind": "garbage"}, "not JSON"),
        ({"kind": "status", "status": 503}, "503"),
        ({"kind": "status", "status": 404}, "not the Checkly API"),
        ({"kind": "redirect"}, "redirects are not followed"),
        ({"kind": "status", "status": 200, "body": "[]"}, "answered 200 with JSON that is not what was asked for"),
    ],
)
def test_whoever_answers_in_the_place_of_the_api_is_told_from_it(
    patient: Program, simulator: Simulator, fault: dict[str, Any], expected: str
) -> None:
    simulator.add_fault(**fault)
    run = examined(patient)
    assert run.code == 3
    told = only_trouble(run, "API")
    assert expected in told
    assert "CHECKLY_API_URL" in told
    assert "key" not in made(run)


def test_a_certificate_that_nobody_vouches_for_names_the_variable_for_a_private_ca(
    patient: Program, certificate: tuple[Path, ssl.SSLContext]
) -> None:
    file, context = certificate
    with serving(tls=context) as port:
        url = f"https://localhost:{port}"
        run = examined(patient, CHECKLY_API_URL=url)
        assert run.code == 3
        told = only_trouble(run, "TLS")
        assert f"{url}: TLS failed: certificate verify failed: self-signed certificate; " in told
        assert "set REQUESTS_CA_BUNDLE to a PEM file" in told
        assert "key" not in made(run)

        run = examined(patient, CHECKLY_API_URL=url, REQUESTS_CA_BUNDLE=str(file))
        assert run.code == 0
        assert said(run, "TLS", "ok") == "the certificate of localhost is accepted"

        run = examined(patient, CHECKLY_API_URL=url, REQUESTS_CA_BUNDLE="/none.pem")
        assert run.code == 2
        assert only_trouble(run, "TLS") == "REQUESTS_CA_BUNDLE: there is no file /none.pem"

        run = examined(patient, CHECKLY_API_URL=f"https://127.0.0.1:{port}", REQUESTS_CA_BUNDLE=str(file))
        assert run.code == 3
        assert "the certificate is another host's: check CHECKLY_API_URL" in only_trouble(run, "TLS")


def test_a_certificate_that_has_expired_is_not_taken_for_a_private_ca(patient: Program, tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    (tmp_path / "index.txt").touch()
    (tmp_path / "ca.cnf").write_text(
        "[ca]\ndefault_ca = d\n[d]\ndatabase = index.txt\nnew_certs_dir = .\nrand_serial = yes\npolicy = p\n"
        "default_md = sha256\nx509_extensions = x\n[p]\ncommonName = supplied\n[x]\nbasicConstraints = CA:true\n"
        "subjectAltName = DNS:localhost\n"
    )
    file, key = tmp_path / "old.pem", tmp_path / "old.key"
    for command in (
        "openssl req -new -newkey rsa:2048 -nodes -subj /CN=localhost -keyout old.key -out old.csr",
        "openssl ca -batch -selfsign -config ca.cnf -keyfile old.key -in old.csr -out old.pem -notext "
        "-startdate 20200101000000Z -enddate 20200102000000Z",
    ):
        subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file, key)
    with serving(tls=context) as port:
        run = examined(patient, CHECKLY_API_URL=f"https://localhost:{port}", REQUESTS_CA_BUNDLE=str(file))
    told = only_trouble(run, "TLS")
    assert "expired" in told
    assert "clock" in told
    assert "REQUESTS_CA_BUNDLE" not in told


def test_a_port_that_speaks_no_tls_is_told(patient: Program, simulator: Simulator) -> None:
    run = examined(patient, CHECKLY_API_URL=simulator.url.replace("http:", "https:"))
    assert run.code == 3
    assert "check host and port of CHECKLY_API_URL" in only_trouble(run, "TLS")


def test_the_proxy_is_named_without_its_password(patient: Program) -> None:
    with serving() as port:
        run = examined(
            patient,
            CHECKLY_API_URL="http://api.invalid",
            CHECKLY_ETL_CHECKLY__ALLOW_HTTP="true",
            HTTP_PROXY=f"http://someone:{PASSWORD}@127.0.0.1:{port}",
        )
    assert run.code == 0
    told = said(run, "proxy", "ok")
    assert f"http://***@127.0.0.1:{port} leads to http://api.invalid" in told
    assert "HTTP_PROXY" in told
    assert said(run, "DNS", "ok").startswith("127.0.0.1 "), "the API's own name is the proxy's business"


def test_without_a_proxy_the_doctor_says_none(patient: Program) -> None:
    assert said(examined(patient), "proxy", "ok").startswith("none: ")


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_is_not_there_is_named_with_its_variable(patient: Program, scheme: str) -> None:
    run = examined(
        patient,
        CHECKLY_API_URL=f"{scheme}://api.invalid",
        CHECKLY_ETL_CHECKLY__ALLOW_HTTP="true",
        ALL_PROXY=f"http://u:{PASSWORD}@127.0.0.1:1",
    )
    assert run.code == 3
    told = only_trouble(run, "API")
    assert f"the proxy to {scheme}://api.invalid cannot be used: Connection refused" in told
    assert "http://***@127.0.0.1:1" in told
    assert f"check {scheme.upper()}_PROXY" in told


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_wants_a_password_is_told_where_to_put_it(patient: Program, scheme: str) -> None:
    with serving(407) as port:
        run = examined(
            patient,
            CHECKLY_API_URL=f"{scheme}://api.invalid",
            CHECKLY_ETL_CHECKLY__ALLOW_HTTP="true",
            ALL_PROXY=f"http://127.0.0.1:{port}",
        )
    assert run.code == 3
    told = only_trouble(run, "API")
    assert "407" in told
    assert f"http://127.0.0.1:{port}" in told
    assert f"http://USER:PASSWORD@HOST:PORT into {scheme.upper()}_PROXY" in told


def test_a_proxy_whose_host_does_not_exist_is_a_matter_of_dns(patient: Program) -> None:
    run = examined(patient, HTTP_PROXY=f"http://u:{PASSWORD}@proxy.invalid:3128")
    assert run.code == 3
    assert "proxy.invalid, the host of the proxy in HTTP_PROXY or ALL_PROXY" in only_trouble(run, "DNS")


def test_a_proxy_that_is_no_url_is_a_mistake_of_the_settings(patient: Program) -> None:
    run = examined(patient, HTTP_PROXY=f"socks5://u:{PASSWORD}@h:1")
    assert run.code == 2
    assert "HTTP_PROXY (or ALL_PROXY) must be the URL of an HTTP proxy" in only_trouble(run, "proxy")


# --- key, account, plan, clock ------------------------------------------------------------------------------------


def test_a_refused_key_names_its_variable_and_where_to_make_another(patient: Program, simulator: Simulator) -> None:
    simulator.api_key = "another"
    run = examined(patient)
    assert run.code == 3
    told = only_trouble(run, "key")
    for part in (ACCOUNT, "401", "check CHECKLY_API_KEY", "https://app.checklyhq.com/settings/user/api-keys"):
        assert part in told
    assert {"account", "entitlement"}.isdisjoint(made(run))


def test_a_key_that_is_not_set_is_told_and_the_way_to_the_api_is_examined(patient: Program) -> None:
    run = examined(patient, CHECKLY_API_KEY="")
    assert run.code == 2
    assert "CHECKLY_API_KEY is not set" in only_trouble(run, "key")
    assert "DNS" in made(run)


def test_a_refused_account_is_told_from_a_refused_key(
    patient: Program, small_world: World, simulator: Simulator
) -> None:
    with Simulator(accounts={OTHER_ACCOUNT: small_world}, rate_limit=0) as other:
        other.add_fault(match="/v1/", kind="status", status=403)
        run = examined(patient, CHECKLY_API_URL=other.url)
    assert run.code == 3
    told = only_trouble(run, "account")
    assert f"refuses account {ACCOUNT} (403); check the account id" in told
    assert "CHECKLY_API_KEY" in told
    assert said(run, "key", "ok")


def test_a_plan_without_the_list_is_a_warning_until_discovery_is_off(patient: Program, simulator: Simulator) -> None:
    simulator.add_fault(match="/v1/test-sessions", kind="status", status=402)
    run = examined(patient)
    assert run.code == 1
    told = only_trouble(run, "entitlement", "warning")
    assert "checkly-etl enqueue" in told
    assert "set export.discover to false" in told
    run = examined(patient, CHECKLY_ETL_EXPORT__DISCOVER="false")
    assert run.code == 0
    assert "(402)" in said(run, "entitlement", "ok")


def test_a_rate_limit_that_is_used_up_is_not_taken_for_a_bad_key(patient: Program, simulator: Simulator) -> None:
    simulator.add_fault(kind="status", status=429)
    run = examined(patient)
    assert run.code == 3
    assert "try again later" in only_trouble(run, "key")


def test_an_account_that_the_api_has_paused_is_not_called_before_the_pause_ends(
    program: Program, simulator: Simulator
) -> None:
    simulator.add_fault(match="/v1/", kind="status", status=429, headers={"Retry-After": "400"}, times=1)
    assert program("sync").code == 3
    simulator.clear_requests()
    run = examined(program)
    assert (run.code, simulator.requests) == (1, [])
    assert f"{ACCOUNT}: paused by the API until 20" in only_trouble(run, "pause", "warning")

    run = program("status")
    assert "paused         by the API until 20" in run.out
    assert program("status", "--json").json["paused"].keys() == {ACCOUNT}


def test_each_account_is_examined_by_its_own_key(patient: Program, small_world: World, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        f"checkly: {{accounts: [{{id: {ACCOUNT}, name: shop}}, "
        f"{{id: {OTHER_ACCOUNT}, name: bank, api_key_env: BANK_KEY}}]}}\n"
    )
    with Simulator(accounts={ACCOUNT: small_world}, rate_limit=0) as only_one:
        run = examined(patient, CHECKLY_API_URL=only_one.url, BANK_KEY="cu_bank")
        assert run.code == 3
        assert [check["text"] for check in run.json["checks"] if check["check"] == "key"] == [
            f"shop ({ACCOUNT}): the key in CHECKLY_API_KEY is accepted",
            f"bank ({OTHER_ACCOUNT}): the key in BANK_KEY is accepted",
        ]
        assert [check["status"] for check in run.json["checks"] if check["check"] == "account"] == ["ok", "failed"]
        assert made(run).count("API") == 1
        run = examined(patient, CHECKLY_API_URL=only_one.url)
        assert run.code == 2
        assert "BANK_KEY is not set" in next(c["text"] for c in run.json["checks"] if c["check"] == "key")
        assert made(run).count("entitlement") == 1, "the other one is examined all the same"


@pytest.mark.parametrize(("minutes", "how"), [(-10, "10 min ahead of"), (10, "10 min behind")])
def test_a_clock_that_differs_from_the_apis_is_a_warning_that_names_ntp(
    patient: Program, simulator: Simulator, minutes: int, how: str
) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(minutes=minutes), usegmt=True)
    simulator.add_fault(kind="status", status=200, headers={"Date": date}, body=EMPTY_LIST.decode())
    run = examined(patient)
    assert run.code == 1
    told = only_trouble(run, "clock", "warning")
    assert f"this machine's clock is {how} the API's" in told
    assert "chrony" in told
    assert "certificates" in told


@pytest.mark.parametrize("date", ["yesterday", ""])
def test_an_api_that_does_not_tell_the_time_is_not_asked_for_it(
    patient: Program, simulator: Simulator, date: str
) -> None:
    simulator.add_fault(kind="status", status=200, headers={"Date": date}, body=EMPTY_LIST.decode())
    run = examined(patient)
    assert run.code == 0
    assert "clock" not in made(run)


# --- the warehouse ------------------------------------------------------------------------------------------------


@contextmanager
def changed(url: str, *statements: str) -> Iterator[None]:
    """A PostgreSQL database, changed by its superuser."""
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())
        yield


@pytest.fixture
def postgres(new_warehouse: Callable[[str], str]) -> str:
    """URL of a migrated PostgreSQL warehouse, as its superuser."""
    return new_warehouse("postgresql")


@pytest.fixture
def role(postgres: str) -> Iterator[str]:
    """The warehouse's URL as a role that may only connect and read; and where it stands in the URL, its password."""
    name = f"etl_reader_{os.getpid()}_{next(_numbers)}"
    rights = (
        f"CREATE ROLE {name} LOGIN PASSWORD '{PASSWORD}'",
        f"GRANT USAGE ON SCHEMA public TO {name}",
        f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {name}",
    )
    with changed(postgres, *rights):
        pass
    yield make_url(postgres).set(username=name, password=PASSWORD).render_as_string(hide_password=False)
    with changed(postgres, f"DROP OWNED BY {name}", f"DROP ROLE {name}"):
        pass


def user_of(url: str) -> str:
    return str(make_url(url).username)


def test_the_clock_of_the_database_counts_too(patient: Program, postgres: str) -> None:
    name = make_url(postgres).database
    wrong = (
        "CREATE SCHEMA wrong",
        "CREATE FUNCTION wrong.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS"
        " 'SELECT pg_catalog.clock_timestamp() - interval ''3 hours'''",
        f'ALTER DATABASE "{name}" SET search_path TO wrong, pg_catalog, public',
    )
    with changed(postgres, *wrong):
        run = examined(patient, CHECKLY_ETL_WAREHOUSE_URL=postgres)
    with changed(postgres, f'ALTER DATABASE "{name}" RESET search_path', "DROP SCHEMA wrong CASCADE"):
        pass
    assert run.code == 1
    told = only_trouble(run, "database clock", "warning")
    assert "the database's clock is 3 hours behind this machine's" in told
    assert "chrony" in told


@pytest.mark.parametrize("engine", ["sqlite", "postgresql"])
def test_a_warehouse_without_schema_names_the_command_that_makes_it(
    patient: Program, tmp_path: Path, engine: str, request: pytest.FixtureRequest
) -> None:
    if engine == "sqlite":
        url = f"sqlite:///{tmp_path}/none.db"
        sqlite3.connect(tmp_path / "none.db").execute("CREATE TABLE mine (x)").connection.close()
    else:
        url = request.getfixturevalue("postgres")
        with changed(url, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public"):
            pass
    run = examined(patient, CHECKLY_ETL_WAREHOUSE_URL=url)
    assert run.code == 2
    assert "no schema yet; create it with: checkly-etl migrate" in only_trouble(run, "schema")
    assert {"queue", "last success"}.isdisjoint(made(run))
    assert patient("migrate", CHECKLY_ETL_WAREHOUSE_URL=url).code == 0
    assert examined(patient, CHECKLY_ETL_WAREHOUSE_URL=url).code == 0


def test_a_sqlite_file_that_is_missing_is_not_made(patient: Program, tmp_path: Path) -> None:
    run = examined(patient, CHECKLY_ETL_WAREHOUSE_URL=f"sqlite:///{tmp_path}/none.db")
    assert run.code == 2
    assert f"no warehouse at {tmp_path}/none.db; create it with: checkly-etl migrate" in only_trouble(
        run, "warehouse"
    )
    assert made(run)[-1] == "warehouse"
    assert not (tmp_path / "none.db").exists()


def test_a_file_that_is_no_database_is_named(patient: Program, tmp_path: Path) -> None:
    (tmp_path / "notes.db").write_text("no database at all\n" * 500)
    run = examined(patient, CHECKLY_ETL_WAREHOUSE_URL=f"sqlite:///{tmp_path}/notes.db")
    assert run.code == 3
    assert f"{tmp_path}/notes.db: file is not a database" in only_trouble(run, "warehouse")


def test_a_schema_of_a_newer_release_asks_for_that_release(program: Program, database: Database) -> None:
    with database.writing() as connection:
        connection.execute(text(f"UPDATE {schema.VERSION_TABLE} SET version_num = '9999'"))
    run = examined(program)
    assert run.code == 2
    told = only_trouble(run, "schema")
    assert "(9999) is newer than this program's" in told
    assert "pip install --upgrade checkly-etl" in told
    assert "queue" not in made(run)


def test_a_schema_of_an_older_release_asks_for_migrate(program: Program, database: Database) -> None:
    with database.writing() as connection:
        connection.execute(text("UPDATE etl_views SET sha256 = 'old' WHERE view_name = 'v_freshness'"))
    run = examined(program)
    assert run.code == 2
    assert "bring it up to date with: checkly-etl migrate" in only_trouble(run, "schema")


def test_dead_letters_are_a_warning_that_names_the_command(program: Program, simulator: Simulator) -> None:
    simulator.put_test_session(detail(1, results=[result(1, status=7)]), entry(1))
    assert program("sync").code == 1
    run = examined(program)
    assert run.code == 1
    told = only_trouble(run, "queue", "warning")
    assert ", 1 dead; " in told
    assert "checkly-etl dead list" in told


def test_test_sessions_about_to_be_lost_are_a_warning(program: Program, simulator: Simulator) -> None:
    simulator.add_fault(match=f"/v1/test-sessions/{uuid(1)}", kind="status", status=500)
    simulator.put_test_session(detail(1), entry(1))
    for retention in ("3600d", "1d"):
        program("sync", CHECKLY_ETL_CHECKLY__RETENTION=retention)
    run = examined(program, CHECKLY_ETL_CHECKLY__RETENTION="1d")
    assert run.code == 1
    told = only_trouble(run, "queue", "warning")
    assert f"account {ACCOUNT}: Checkly deletes test sessions that are not exported yet" in told
    assert "run checkly-etl sync" in told


def test_work_that_is_due_is_told_with_its_age(program: Program, database: Database) -> None:
    program("enqueue", uuid(1), uuid(2))
    with database.writing() as connection:
        moment = (datetime.now(UTC) - timedelta(minutes=42)).strftime("%Y-%m-%d %H:%M:%S.%f")
        zone = "" if database.is_sqlite else "+00"
        connection.execute(
            text(f"UPDATE etl_queue SET available_at = '{moment}{zone}' WHERE test_session_id = '{uuid(1)}'")
        )
    run = examined(program)
    assert run.code == 0
    assert said(run, "queue", "ok") == "2 due (the oldest for 42 min), 0 scheduled, 0 leased, 0 dead"


def test_a_sync_that_has_long_stopped_to_run_is_a_warning(program: Program, database: Database) -> None:
    assert program("sync").code == 0
    with database.writing() as connection:
        moment = (datetime.now(UTC) - timedelta(days=6, hours=12)).strftime("%Y-%m-%d %H:%M:%S.%f")
        zone = "" if database.is_sqlite else "+00"
        connection.execute(text(f"UPDATE etl_accounts SET last_success_at = '{moment}{zone}'"))
    run = examined(program, CHECKLY_ETL_CHECKLY__RETENTION="7d")
    assert run.code == 1
    told = only_trouble(run, "last success", "warning")
    assert "6.5 days ago; Checkly keeps test sessions for 7 days" in told
    assert "checkly-etl status" in told
    assert examined(program, CHECKLY_ETL_CHECKLY__RETENTION="30d").code == 0
    assert examined(program, CHECKLY_ETL_CHECKLY__RETENTION="7d", CHECKLY_ETL_EXPORT__DISCOVER="false").code == 0


# --- PostgreSQL ---------------------------------------------------------------------------------------------------


def test_a_server_that_is_not_there_is_named_without_the_password(patient: Program) -> None:
    run = examined(patient, CHECKLY_ETL_WAREHOUSE_URL=f"postgresql://someone:{PASSWORD}@127.0.0.1:1/wh")
    assert run.code == 3
    told = only_trouble(run, "warehouse")
    assert "postgresql://someone:***@127.0.0.1:1/wh" in told
    assert "Connection refused" in told
    assert "check host and port in CHECKLY_ETL_WAREHOUSE_URL" in told
    assert made(run)[-1] == "warehouse"


def test_a_server_that_takes_connections_and_does_not_answer_is_not_waited_for(
    patient: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as PgBouncer when it is paused: it lets us in, and then nothing comes."""
    monkeypatch.setattr(doctor, "ANSWER_SECONDS", 1)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def let_in() -> None:
            for _ in range(2):  # who is paused is asked before all else
                with listener.accept()[0] as sock:
                    while sock.recv(8192)[4:6] == b"\x04\xd2":  # do you speak TLS, or GSS?
                        sock.sendall(b"N")
                    sock.sendall(b"R\0\0\0\x08\0\0\0\0S\0\0\0\x19client_encoding\0UTF8\0Z\0\0\0\x05I")
                    while sock.recv(8192):
                        pass

        thread = threading.Thread(target=let_in, daemon=True)
        thread.start()
        url = f"postgresql://u:{PASSWORD}@127.0.0.1:{listener.getsockname()[1]}/wh"
        run = examined(patient, CHECKLY_ETL_WAREHOUSE_URL=url)
        thread.join()
    assert run.code == 3
    told = only_trouble(run, "warehouse")
    assert "no answer within 1 s" in told
    assert "PgBouncer" in told


def test_a_database_host_that_does_not_exist_is_told(patient: Program) -> None:
    run = examined(patient, CHECKLY_ETL_WAREHOUSE_URL=f"postgresql://u:{PASSWORD}@db.invalid/wh")
    assert run.code == 3
    assert "its host db.invalid cannot be looked up" in only_trouble(run, "warehouse")


def test_a_database_that_does_not_exist_is_told_how_to_make_it(patient: Program, postgres_url: str) -> None:
    url = make_url(postgres_url).set(drivername="postgresql", database="no_such_database")
    run = examined(patient, CHECKLY_ETL_WAREHOUSE_URL=url.render_as_string(hide_password=False))
    assert run.code == 3
    told = only_trouble(run, "warehouse")
    assert '"no_such_database" does not exist' in told
    assert "CREATE DATABASE" in told


@pytest.fixture
def strict_server(postgres: str, role: str) -> Iterator[None]:
    """The server asks the role for its password; where it trusts everybody it is told to."""
    try:
        with psycopg.connect(make_url(role).set(password="wrong").render_as_string(hide_password=False)):
            pass
    except psycopg.OperationalError:
        yield
        return
    with psycopg.connect(postgres, autocommit=True) as connection:
        [(name,)] = connection.execute("SHOW hba_file").fetchall()
        file = Path(name)
        if not file.exists():
            pytest.skip("the server trusts everybody, and its pg_hba.conf is elsewhere")
        before = file.read_text()
        try:
            file.write_text(f"local all {user_of(role)} scram-sha-256\n{before}")
            connection.execute("SELECT pg_reload_conf()")
            time.sleep(0.5)
            yield
        finally:
            file.write_text(before)
            connection.execute("SELECT pg_reload_conf()")


@pytest.mark.usefixtures("strict_server")
def test_a_wrong_password_is_told_and_not_shown(patient: Program, role: str) -> None:
    url = make_url(role).set(password=f"not-{PASSWORD}").render_as_string(hide_password=False)
    with suppress(psycopg.OperationalError):
        psycopg.connect(url).close()
        pytest.skip("this server trusts whoever connects")
    run = examined(patient, CHECKLY_ETL_WAREHOUSE_URL=url)
    assert run.code == 3
    told = only_trouble(run, "warehouse")
    assert f'password authentication failed for user "{user_of(role)}"' in told
    assert "check user and password in CHECKLY_ETL_WAREHOUSE_URL" in told


def test_a_role_that_may_only_read_gets_the_grant_that_it_lacks(patient: Program, role: str, postgres: str) -> None:
    run = examined(patient, CHECKLY_ETL_WAREHOUSE_URL=role)
    assert run.code == 3
    told = only_trouble(run, "privileges")
    assert "GRANT INSERT, UPDATE, DELETE ON public." in told
    assert "public.etl_queue" in told
    assert told.endswith(f" TO {user_of(role)}")
    assert said(run, "schema", "ok")
    assert said(run, "queue", "ok")
    with changed(postgres, told[told.index("GRANT") :]):
        assert examined(patient, CHECKLY_ETL_WAREHOUSE_URL=role).code == 0
        assert patient("sync", CHECKLY_ETL_WAREHOUSE_URL=role).code == 0, "what the doctor asks for is enough"


def test_a_role_that_may_not_read_gets_the_grant_instead_of_a_word_about_the_schema(
    patient: Program, role: str, postgres: str
) -> None:
    name = user_of(role)
    with changed(postgres, f"REVOKE SELECT ON etl_views, etl_runs, v_checks FROM {name}"):
        run = examined(patient, CHECKLY_ETL_WAREHOUSE_URL=role)
    told = only_trouble(run, "privileges")
    assert "GRANT SELECT, INSERT, UPDATE, DELETE ON public.etl_runs TO" in told
    assert "GRANT SELECT ON public.etl_views, public.v_checks TO" in told
    assert made(run)[-1] == "privileges"
    with changed(postgres, f"REVOKE USAGE ON SCHEMA public FROM PUBLIC, {name}"):
        run = examined(patient, CHECKLY_ETL_WAREHOUSE_URL=role)
    assert run.code == 3
    assert f"GRANT USAGE ON SCHEMA public TO {name}" in only_trouble(run, "privileges")
    assert made(run)[-1] == "privileges"


def test_a_role_that_may_not_make_the_schema_is_told_before_it_runs_migrate(
    patient: Program, role: str, postgres: str
) -> None:
    with changed(postgres, "CREATE SCHEMA mine", f"GRANT USAGE ON SCHEMA mine TO {user_of(role)}"):
        env = {"CHECKLY_ETL_WAREHOUSE_URL": role}
        run = examined(patient, **env, CHECKLY_ETL_WAREHOUSE__SCHEMA="mine")
        assert f"GRANT CREATE ON SCHEMA mine TO {user_of(role)}" in said(run, "privileges", "failed")
        run = examined(patient, **env, CHECKLY_ETL_WAREHOUSE__SCHEMA="theirs")
        assert "GRANT CREATE ON DATABASE " in said(run, "privileges", "failed")


def test_a_database_that_is_read_only_is_told_which_setting_makes_it_so(patient: Program, postgres: str) -> None:
    name = make_url(postgres).database
    with changed(postgres, f'ALTER DATABASE "{name}" SET default_transaction_read_only TO on'):
        try:
            run = examined(patient, CHECKLY_ETL_WAREHOUSE_URL=postgres)
        finally:
            with changed(postgres, "SET default_transaction_read_only TO off", f'ALTER DATABASE "{name}" RESET ALL'):
                pass
    assert run.code == 3
    assert f"ALTER DATABASE {name} RESET default_transaction_read_only" in only_trouble(run, "privileges")


def test_a_standby_is_told_from_its_primary(patient: Program) -> None:
    with OwnPostgres() as server:
        with psycopg.connect(server.url) as connection:
            [(folder,)] = connection.execute("SHOW data_directory").fetchall()
        server.stop("fast")
        signal = Path(folder) / "standby.signal"
        signal.touch()
        os.chown(signal, Path(folder).stat().st_uid, -1)
        server.start()
        run = examined(patient, CHECKLY_ETL_WAREHOUSE_URL=server.url)
    assert run.code == 3
    told = only_trouble(run, "privileges")
    assert f"{server.url} is a standby" in told
    assert "name the primary in CHECKLY_ETL_WAREHOUSE_URL" in told


def test_a_database_of_another_encoding_is_refused(patient: Program, postgres_url: str) -> None:
    name = f"etl_ascii_{os.getpid()}_{next(_numbers)}"
    server = postgres_url.replace("+psycopg", "")
    create = f"CREATE DATABASE {name} ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    with changed(server, create):
        url = make_url(postgres_url).set(drivername="postgresql", database=name)
        run = examined(patient, CHECKLY_ETL_WAREHOUSE_URL=url.render_as_string(hide_password=False))
    with changed(server, f"DROP DATABASE {name} WITH (FORCE)"):
        pass
    assert run.code == 2
    assert "create the database with ENCODING 'UTF8'" in said(run, "version", "failed")


def test_a_table_that_a_migration_has_locked_is_not_waited_for(
    patient: Program, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "LOCK_SECONDS", 1)
    with psycopg.connect(postgres) as connection:
        connection.execute("LOCK TABLE etl_queue IN ACCESS EXCLUSIVE MODE")
        run = examined(patient, CHECKLY_ETL_WAREHOUSE_URL=postgres)
    assert run.code == 1
    assert "locked, by a migration for example" in said(run, "queue", "warning")


# --- SQLite -------------------------------------------------------------------------------------------------------


@pytest.fixture
def shared(sqlite_template: Path) -> Iterator[Path]:
    """A warehouse in a folder that every user of the machine may look into, but only its owner may write to."""
    with tempfile.TemporaryDirectory(prefix="etl-doctor-") as made:
        path = Path(made) / "warehouse.db"
        shutil.copy(sqlite_template, path)
        path.parent.chmod(0o755)
        yield path


def as_nobody(simulator: Simulator, path: Path) -> Run:
    """The doctor run by another user: root may write anywhere."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("only root can become another user")
    probe = [*AS_NOBODY, sys.executable, "-c", "import etl.cli, etl.schema"]
    if subprocess.run(probe, cwd=CHECKOUT, capture_output=True, check=False).returncode != 0:
        pytest.skip("another user cannot read this checkout")
    env = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run(
        [*AS_NOBODY, sys.executable, "-m", "etl", "doctor", "--json"],
        cwd="/",
        env={**env, **environment(simulator.url, f"sqlite:///{path}")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return Run(done.returncode, done.stdout, done.stderr)


def test_a_folder_that_cannot_be_written_is_named(simulator: Simulator, shared: Path) -> None:
    shared.chmod(0o666)
    run = as_nobody(simulator, shared)
    assert run.code == 3
    told = only_trouble(run, "warehouse")
    assert f"this user may not write the folder {shared.parent}: chown or chmod it" in told
    assert str(shared) in told


def test_a_file_that_can_be_read_but_not_written_is_named(simulator: Simulator, shared: Path) -> None:
    with closing(sqlite3.connect(shared, isolation_level=None)) as writer:
        writer.execute("UPDATE etl_accounts SET pauses = pauses")  # makes -wal and -shm: now it can be read
        run = as_nobody(simulator, shared)
    assert run.code == 3
    told = only_trouble(run, "privileges")
    assert f"the file {shared} and the folder {shared.parent}" in told
    assert "chown or chmod" in told
    assert said(run, "schema", "ok")


def test_a_reader_who_may_not_write_the_file_is_refused_before_what_sqlite_makes_beside_it_shuts_its_owner_out(
    simulator: Simulator, shared: Path
) -> None:
    shared.parent.chmod(0o777)
    run = as_nobody(simulator, shared)
    assert run.code == 3
    assert "would shut out the user whose file it is" in only_trouble(run, "warehouse")
    assert [file.name for file in shared.parent.iterdir()] == ["warehouse.db"]


def test_a_file_beside_the_warehouse_that_belongs_to_somebody_else_is_named(
    simulator: Simulator, shared: Path
) -> None:
    shared.parent.chmod(0o777)
    shared.chmod(0o666)
    with closing(sqlite3.connect(shared, isolation_level=None)) as writer:
        writer.execute("UPDATE etl_accounts SET pauses = pauses")
        for suffix in ("-wal", "-shm"):
            Path(f"{shared}{suffix}").chmod(0o644)
        run = as_nobody(simulator, shared)
    assert run.code == 3
    assert f"the file {shared}-wal and the file {shared}-shm: chown or chmod" in only_trouble(run, "privileges")


def test_a_file_that_somebody_keeps_locked_is_a_warning_after_3_s(patient: Program) -> None:
    path = patient.env["CHECKLY_ETL_WAREHOUSE_URL"].removeprefix("sqlite:///")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        run = examined(patient)
    assert run.code == 1
    told = only_trouble(run, "privileges", "warning")
    assert f"keeps {path} locked" in told
    assert f"fuser {path}" in told


@pytest.mark.parametrize(("size", "code", "status"), [("50m", 3, "failed"), ("500m", 1, "warning")])
def test_a_disk_with_little_room_is_told_before_it_is_full(
    patient: Program, sqlite_template: Path, tmp_path: Path, size: str, code: int, status: str
) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting is denied")
    try:
        shutil.copy(sqlite_template, folder / "warehouse.db")
        run = examined(patient, CHECKLY_ETL_WAREHOUSE_URL=f"sqlite:///{folder}/warehouse.db")
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)
    assert run.code == code
    told = only_trouble(run, "disk", status)
    assert "MB free" in told
    assert str(folder) in told
    assert "make room" in told


def mounts(*mounted: tuple[str, str]) -> str:
    """A mount table with these mount points and types."""
    lines = ["26 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw"]
    lines += [
        f"{27 + n} 26 0:{n} / {place} rw,relatime shared:{n} master:1 - {kind} server:/x rw"
        for n, (place, kind) in enumerate(mounted)
    ]
    return "\n".join(lines) + "\n"


@pytest.fixture
def mount_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that says what is mounted."""
    file = tmp_path / "mountinfo"
    monkeypatch.setattr(etl.database, "MOUNT_TABLE", file)
    return file


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "smb3", "ceph", "fuse.sshfs", "fuse.s3fs", "lustre"])
def test_sqlite_on_a_network_filesystem_is_refused_by_every_command(
    patient: Program, mount_table: Path, tmp_path: Path, kind: str
) -> None:
    share = tmp_path / "share"
    share.mkdir()
    mount_table.write_text(mounts((str(share), kind)))
    url = f"sqlite:///{share}/warehouse.db"
    run = examined(patient, CHECKLY_ETL_WAREHOUSE_URL=url)
    assert run.code == 2
    for told in [
        only_trouble(run, "warehouse"),
        *(
            ended.err
            for command in (("migrate",), ("sync",), ("status",), ("enqueue", uuid(1)), ("dead", "list"), ("replay",))
            if (ended := patient(*command, CHECKLY_ETL_WAREHOUSE_URL=url)).code == 2
        ),
    ]:
        assert f"{share}/warehouse.db lies on a network filesystem ({kind})" in told
        assert "Put the file on a local disk, or use PostgreSQL" in told
    assert patient("migrate", CHECKLY_ETL_WAREHOUSE_URL=url).code == 2
    assert list(share.iterdir()) == []


@pytest.mark.parametrize("kind", ["9p", "virtiofs", "overlay", "ext4", "xfs", "tmpfs", "fuse.lxcfs", "zfs"])
def test_sqlite_on_a_disk_of_the_machine_is_not_refused(
    patient: Program, mount_table: Path, tmp_path: Path, kind: str
) -> None:
    mount_table.write_text(mounts((str(tmp_path), kind)))
    assert examined(patient).code == 0


def test_the_filesystem_of_a_path_is_that_of_its_longest_and_latest_mount_point(
    mount_table: Path, tmp_path: Path
) -> None:
    real = Path(os.path.realpath(tmp_path))
    (real / "data").mkdir()
    (real / "link").symlink_to(real / "data")

    def found(place: str, *mounted: tuple[str, str]) -> str | None:
        mount_table.write_text(mounts(*((f"{real}{folder}", kind) for folder, kind in mounted)))
        return network_filesystem(real / place)

    assert found("data/x.db", ("/data", "nfs4")) == "nfs4"
    assert found("database/x.db", ("/data", "nfs4")) is None, "a name that only begins alike"
    assert found("data/x.db", ("/data/local", "ext4"), ("/data", "nfs")) == "nfs"
    assert found("data/local/x.db", ("/data/local", "ext4"), ("/data", "nfs")) is None
    assert found("data/x.db", ("/data", "autofs"), ("/data", "nfs")) == "nfs"
    assert found("data/x.db", ("/data", "nfs"), ("/data", "ext4")) is None, "covered by another one"
    assert found("link/x.db", ("/data", "nfs")) == "nfs", "behind a symbolic link"
    assert found("my data/not/yet/x.db", ("/my\\040data", "cifs")) == "cifs"
    mount_table.write_text("rubbish\n\n1 2 3 - x\n")
    assert network_filesystem(real / "x.db") is None
    mount_table.unlink()
    assert network_filesystem(real / "x.db") is None, "not Linux: nobody tells"
