"""Real Redis and RabbitMQ servers, and what puts messages into them: Debian's client programs, as a CI job has them.

Nothing here imports the program: what a test reads with it was written by software that is not ours.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NoReturn, Self
from urllib.parse import quote, urlsplit

import pika
import pytest
import redis
from pika.exceptions import AMQPError
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.servers import free_port

START_SECONDS = 120  # RabbitMQ needs seven on an idle machine
STOP_SECONDS = 30
LOCAL_REDIS = "redis://127.0.0.1:6379/0"
LOCAL_AMQP = "amqp://guest:guest@127.0.0.1:5672/"
TOO_LONG_FOR_AN_ARGUMENT = 100_000  # bytes; Linux takes 128 KiB
_numbers = itertools.count(1)


# --- servers of a test's own --------------------------------------------------------------------------------


class _OwnServer(ABC):
    """A server in a folder and on a port of its own, which may be stopped, killed and started again."""

    def __init__(self, name: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=f"etl-own-{name}-"))
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()

    @property
    @abstractmethod
    def url(self) -> str:
        """What a client connects to."""

    @abstractmethod
    def _command(self) -> list[str]:
        """What runs it in the foreground."""

    @abstractmethod
    def _is_ready(self) -> bool:
        """It does what a client asks."""

    def _env(self) -> dict[str, str]:
        """A home of its own too: Erlang keeps a secret there."""
        return {**os.environ, "HOME": str(self.folder)}

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        end = time.monotonic() + STOP_SECONDS
        while left := self.processes():  # Erlang's helpers end by themselves, a moment after it
            assert time.monotonic() < end, f"still there: {left}"
            time.sleep(0.02)
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self) -> None:
        """Returns when clients are served."""
        assert self._process is None, "it runs already"
        with (self.folder / "output").open("ab") as output:
            self._process = subprocess.Popen(
                self._command(),
                cwd=self.folder,
                env=self._env(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # a Ctrl-C is pytest's: it ends the server in order
            )
        end = time.monotonic() + START_SECONDS
        # The port first: clients write of each refused connection into the test's log.
        while not (_takes_connections("127.0.0.1", self.port) and self._is_ready()):
            if self._process.poll() is not None or time.monotonic() > end:
                self.kill()
                raise AssertionError((self.folder / "output").read_text(errors="replace")[-3000:])
            time.sleep(0.02)

    def stop(self) -> None:
        """In order, as a restart of the machine does."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        self._process = None

    def kill(self) -> None:
        """As the kernel does when memory is short. Only what the server has confirmed is sure to be there again."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait(STOP_SECONDS)
        self._process = None

    def restart(self, down: float = 0.0) -> None:
        """A stop, `down` seconds of nothing, and a start."""
        self.stop()
        time.sleep(down)
        self.start()

    def processes(self) -> list[int]:
        """Ids of what it has started, its children's children too: who is in its folder. Empty without a /proc."""
        here = (str(self.folder), f"{self.folder} (deleted)")
        found = []
        for path in Path("/proc").glob("[0-9]*/cwd"):
            try:
                if str(path.readlink()) in here:
                    found.append(int(path.parent.name))
            except OSError:  # it has ended, or is somebody else's
                continue
        return found


class OwnRedis(_OwnServer):
    """A Redis that writes down each change before it answers: nothing is lost by `restart` or `kill`."""

    def __init__(self, password: str | None = None) -> None:
        super().__init__("redis")
        self._password = password

    @property
    def url(self) -> str:
        """With the user's name where there is a password: without one, redis-cli 7 logs in as nobody and fails."""
        login = "" if self._password is None else f"default:{quote(self._password, safe='')}@"
        return f"redis://{login}127.0.0.1:{self.port}/0"

    @staticmethod
    def is_here() -> bool:
        """Debian's package is installed."""
        return shutil.which("redis-server") is not None

    def _command(self) -> list[str]:
        command = ["redis-server", "--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.folder)]
        command += ["--save", "", "--appendonly", "yes", "--daemonize", "no"]
        return command if self._password is None else [*command, "--requirepass", self._password]

    def _is_ready(self) -> bool:
        return _is_redis(self.url)


class OwnRabbitMQ(_OwnServer):
    """A RabbitMQ without plugins, which shares nothing with one that is on the machine, not even epmd."""

    def __init__(self) -> None:
        super().__init__("rabbitmq")
        self._names_port, self._dist_port = free_port(), free_port()
        self._node = f"etl-{os.getpid()}-{next(_numbers)}@localhost"
        self._epmd: subprocess.Popen[bytes] | None = None
        (self.folder / "plugins").write_text("[].\n")
        (self.folder / "environment").touch()
        self._link_plugins(self.folder / "available")
        # It refuses what is published when less than this is free: 50 MB, if it is not told otherwise.
        (self.folder / "rabbitmq.conf").write_text("disk_free_limit.absolute = 1MB\n")

    @property
    def url(self) -> str:
        """The user that every new broker has, and its one virtual host."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}/"

    @staticmethod
    def is_here() -> bool:
        """Debian's package is installed."""
        return _rabbitmq_server() is not None and shutil.which("epmd") is not None

    def __exit__(self, *_: object) -> None:
        try:
            self.stop()
        finally:
            if self._epmd is not None:
                self._epmd.terminate()
                self._epmd.wait(STOP_SECONDS)
                self._epmd = None
        super().__exit__()

    def start(self) -> None:
        """Returns when it lets the user in; the first start needs as long as a later one."""
        if self._epmd is None:
            # Erlang starts one as a daemon if it finds none, and that would outlive the broker.
            self._epmd = subprocess.Popen(
                ["epmd", "-port", str(self._names_port), "-address", "127.0.0.1"],
                cwd=self.folder,
                env=self._env(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            end = time.monotonic() + STOP_SECONDS
            while not _takes_connections("127.0.0.1", self._names_port):
                assert self._epmd.poll() is None, "epmd does not start"
                assert time.monotonic() < end, "epmd does not answer"
                time.sleep(0.02)
        super().start()

    def _command(self) -> list[str]:
        return [str(_rabbitmq_server())]

    def _link_plugins(self, few: Path) -> None:
        """At each start it reads all that is installed, which are two of seven seconds: show it what it needs."""
        few.mkdir()
        for part in (Path(str(_rabbitmq_server())).resolve().parent.parent / "plugins").glob("*"):
            if part.name.startswith("rabbitmq_prelaunch") or not part.name.startswith("rabbitmq_"):
                (few / part.name).symlink_to(part)

    def _env(self) -> dict[str, str]:
        theirs = ("RABBITMQ_", "ERL_", "NOTIFY_SOCKET")
        return {
            **{name: value for name, value in super()._env().items() if not name.startswith(theirs)},
            # The script becomes the broker, instead of a shell that waits for it: signals reach it, and so does kill.
            "RUNNING_UNDER_SYSTEMD": "true",
            "ERL_EPMD_PORT": str(self._names_port),
            "ERL_FLAGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "RABBITMQ_CONF_ENV_FILE": str(self.folder / "environment"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.folder / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "plugins"),
            "RABBITMQ_PLUGINS_DIR": str(self.folder / "available"),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.folder / "log"),
            "RABBITMQ_PID_FILE": str(self.folder / "pid"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(self.folder / "config"),
            "RABBITMQ_NODENAME": self._node,
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._dist_port),
        }

    def _is_ready(self) -> bool:
        return _is_rabbitmq(self.url)


def _rabbitmq_server() -> str | None:
    """Debian's in the PATH is a wrapper: as root it becomes another user, who may not use our folder."""
    return shutil.which("rabbitmq-server", path="/usr/lib/rabbitmq/bin") or shutil.which("rabbitmq-server")


# --- any server ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """URL of a Redis: TEST_REDIS_URL, the machine's, or one of this worker's own."""
    given = os.environ.get("TEST_REDIS_URL")
    if given or _is_redis(LOCAL_REDIS):
        yield given or LOCAL_REDIS
    elif OwnRedis.is_here():
        with OwnRedis() as own:
            yield own.url
    else:
        _missing("no Redis: install redis-server or set TEST_REDIS_URL")


@pytest.fixture(scope="session")
def amqp_url() -> Iterator[str]:
    """URL of a RabbitMQ: TEST_AMQP_URL, the machine's, or one of this worker's own."""
    given = os.environ.get("TEST_AMQP_URL")
    if given or _is_rabbitmq(LOCAL_AMQP):
        yield given or LOCAL_AMQP
    elif OwnRabbitMQ.is_here():
        with OwnRabbitMQ() as own:
            yield own.url
    else:
        _missing("no RabbitMQ: install rabbitmq-server or set TEST_AMQP_URL")


@pytest.fixture
def redis_queue(redis_url: str) -> Iterator[str]:
    """A key that nobody uses; it and all that begin with it are deleted after the test."""
    name = f"etl-test-{uuid.uuid4().hex}"
    yield name
    with closing(redis.Redis.from_url(redis_url)) as client:
        for key in list(client.scan_iter(match=f"{name}*", count=1000)):
            client.delete(key)


@pytest.fixture
def amqp_queue(amqp_url: str) -> Iterator[str]:
    """The name of a queue that does not exist; if it does after the test, it is deleted."""
    name = f"etl-test-{uuid.uuid4().hex}"
    yield name
    with closing(pika.BlockingConnection(pika.URLParameters(amqp_url))) as connection:
        connection.channel().queue_delete(name)


def _is_redis(url: str) -> bool:
    """It answers, and without an error."""
    if not _takes_connections_of(url):
        return False
    retry = Retry(NoBackoff(), 0)
    with closing(redis.Redis.from_url(url, socket_timeout=5, socket_connect_timeout=5, retry=retry)) as client:
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False


def _is_rabbitmq(url: str) -> bool:
    """It lets the user in."""
    if not _takes_connections_of(url):
        return False
    parameters = pika.URLParameters(url)
    parameters.connection_attempts = 1
    parameters.socket_timeout = parameters.stack_timeout = 5
    try:
        pika.BlockingConnection(parameters).close()
    except (AMQPError, OSError):
        return False
    return True


def _takes_connections_of(url: str) -> bool:
    parts = urlsplit(url)
    return _takes_connections(str(parts.hostname), int(parts.port or 0))


def _takes_connections(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=2).close()
    except OSError:
        return False
    return True


def _missing(reason: str) -> NoReturn:
    """CI may not skip."""
    if os.environ.get("CHECKLY_ETL_TEST_REAL") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


# --- producers ----------------------------------------------------------------------------------------------


def redis_push(url: str, queue: str, text: str) -> None:
    """Append to a list, as `redis-cli -u URL RPUSH QUEUE TEXT`."""
    _redis_cli(url, "RPUSH", queue, text, answer=r"\d+")


def redis_add(url: str, stream: str, *fields: str) -> None:
    """Append an entry of alternating names and values, as `redis-cli -u URL XADD STREAM '*' NAME VALUE`."""
    _redis_cli(url, "XADD", stream, "*", *fields, answer=r"\d+-\d+")


def amqp_publish(url: str, queue: str, text: str) -> None:
    """Publish by the default exchange, as `amqp-publish -u URL -r QUEUE -p -b TEXT`.

    Where the queue does not exist the broker drops it, and amqp-publish ends well: see `amqp_declare`.
    """
    command = ["amqp-publish", f"--url={_with_vhost(url)}", f"--routing-key={queue}", "--persistent"]
    if len(text.encode()) < TOO_LONG_FOR_AN_ARGUMENT:
        _run([*command, f"--body={text}"], package="amqp-tools")
    else:
        _run(command, package="amqp-tools", stdin=text)


def amqp_declare(url: str, queue: str) -> None:
    """Make a durable queue, as `amqp-declare-queue -u URL -q QUEUE -d`."""
    _run(["amqp-declare-queue", f"--url={_with_vhost(url)}", f"--queue={queue}", "--durable"], package="amqp-tools")


def _with_vhost(url: str) -> str:
    """What pika takes for the virtual host `/` is one without a name for amqp-tools, which brokers refuse."""
    parts = urlsplit(url)
    return parts._replace(path="/%2f").geturl() if parts.path in ("", "/") else url


def _redis_cli(url: str, *command: str, answer: str) -> None:
    *before, last = command
    if len(last.encode()) < TOO_LONG_FOR_AN_ARGUMENT:
        out = _run(["redis-cli", "-u", url, *command], package="redis-tools")
    else:
        out = _run(["redis-cli", "-u", url, "-x", *before], package="redis-tools", stdin=last)
    # It ends with 0 also when the server says no; `-e` is not in redis-cli 6.
    assert re.fullmatch(answer, out.strip()), out


def _run(command: list[str], *, package: str, stdin: str = "") -> str:
    if shutil.which(command[0]) is None:
        _missing(f"no {command[0]}: install {package}")
    # Bytes: text would end lines as the machine does, and say that it is UTF-8 only where the locale does.
    done = subprocess.run(command, input=stdin.encode(), capture_output=True, timeout=60, check=False)
    out, said = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
    assert done.returncode == 0, f"{command[0]} {done.returncode}: {out}{said}"
    return out
