"""Servers of a test's own, which it may stop, kill, hold up and start again: Redis and RabbitMQ.

::

    with PrivateRedis(tmp_path, appendonly="always") as redis:
        app = Celeriac(broker=redis.url)
        redis.kill()
        redis.start()          # the same port, what was on disk

They listen on 127.0.0.1 only, keep everything in the given folder, and end with the process that started them,
however that ends. Linux only. Not thread-safe.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Literal, Self
from urllib.parse import quote

from celeriac.testing import guard
from celeriac.testing.certificates import Certificates

__all__ = ["PrivateRabbitMQ", "PrivateRedis", "PrivateServer", "ServerMissing", "free_port"]

_numbers = count(1)


class ServerMissing(Exception):
    """A server is neither running nor installed. The message says what to install."""


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on, at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class PrivateServer(ABC):
    """A server process with its folder and port, which stay the same when it is started again.

    As a context manager it runs while the block runs. Every method that starts something returns when the
    server answers, or raises `RuntimeError` with the end of its log.
    """

    #: Seconds a start may take.
    start_timeout: float = 60.0

    def __init__(self, folder: Path, *, port: int = 0) -> None:
        self.folder = folder
        self.port = port or free_port()
        self._guard: subprocess.Popen[bytes] | None = None

    @property
    @abstractmethod
    def url(self) -> str:
        """Where clients find it, as `broker_url` has it."""

    @abstractmethod
    def _command(self) -> Sequence[str]:
        """What runs the server in the foreground; may write its configuration first."""

    @abstractmethod
    def _answers(self, connection: socket.socket) -> bool:
        """Speak the server's protocol: is it ready to serve?"""

    def _environment(self) -> Mapping[str, str]:
        return os.environ

    @property
    def log_path(self) -> Path:
        return self.folder / "server.log"

    @property
    def log(self) -> str:
        """What the server printed, since it was first started."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    @property
    def running(self) -> bool:
        return self._guard is not None and self._guard.poll() is None

    def start(self) -> Self:
        """Start it and wait until it serves."""
        if self.running:
            raise RuntimeError(f"{type(self).__name__} on port {self.port} runs already")
        self.launch()
        self.wait_until_ready()
        return self

    def launch(self) -> None:
        """Start it and do not wait: a server on its way up."""
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-I", "-S", str(guard.__file__), *self._command()]
        with self.log_path.open("ab") as log:
            self._guard = subprocess.Popen(
                command,
                cwd=self.folder,
                env=self._environment(),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + self.start_timeout
        while not self._is_ready():
            if not self.running or time.monotonic() > deadline:
                status = self._guard.poll() if self._guard else None
                self.kill()
                how = "did not answer in time" if status is None else f"ended with status {status}"
                raise RuntimeError(f"{type(self).__name__} on port {self.port} {how}:\n{self.log[-3000:]}")
            time.sleep(0.02)

    def _is_ready(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1.0) as connection:
                return self._answers(connection)
        except OSError:
            return False

    def processes(self) -> list[int]:
        """Process ids of the server and what it started."""
        return guard.descendants(self._guard.pid) if self._guard and self.running else []

    def pause(self) -> None:
        """Suspend it (SIGSTOP): connections stay open, new ones are accepted by the system, nothing answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after `pause`."""
        self._signal(signal.SIGCONT)

    def stop(self, timeout: float = 30.0) -> None:
        """Shut it down as its operator would, and wait; killed after `timeout` seconds."""
        if self._guard is None:
            return
        self.resume()
        self._guard.terminate()
        try:
            self._guard.wait(timeout)
        except subprocess.TimeoutExpired:
            pass
        self.kill()

    def kill(self) -> None:
        """SIGKILL it and all it started, and wait until they are gone."""
        if self._guard is None:
            return
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        self._guard.wait()
        self._guard = None

    def restart(self) -> None:
        """`stop`, then `start`."""
        self.stop()
        self.start()

    def _signal(self, number: signal.Signals) -> None:
        for pid in self.processes():
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass

    def __enter__(self) -> Self:
        return self if self.running else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


class PrivateRedis(PrivateServer):
    """A Redis (or Valkey) server.

    :param appendonly: ``"always"``: what was answered survives a kill; ``"everysec"``: but for the last second;
        None: nothing is kept on disk.
    :param password: of the default user.
    :param users: name → rules as in ``ACL SETUSER``: ``{"app": "on >secret ~* &* +@all"}``.
    :param tls: encrypted connections only, with these certificates.
    :param config: more lines of ``redis.conf``: ``{"replicaof": "127.0.0.1 6380"}``.
    :raises ServerMissing: neither ``redis-server`` nor ``valkey-server`` is installed.
    """

    def __init__(
        self,
        folder: Path,
        *,
        port: int = 0,
        appendonly: Literal["always", "everysec"] | None = None,
        password: str | None = None,
        users: Mapping[str, str] | None = None,
        tls: Certificates | None = None,
        config: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(folder, port=port)
        self.binary = redis_binary()
        self.appendonly = appendonly
        self.password = password
        self.users = dict(users or {})
        self.tls = tls
        self.config = dict(config or {})

    @property
    def url(self) -> str:
        return self.url_of("", self.password) if self.password else self._url("")

    def url_of(self, user: str, password: str | None) -> str:
        """The URL with which a user of `users` logs in."""
        return self._url(f"{quote(user)}:{quote(password or '', safe='')}@")

    def _url(self, login: str) -> str:
        return f"{'rediss' if self.tls else 'redis'}://{login}127.0.0.1:{self.port}/0"

    def _command(self) -> Sequence[str]:
        lines = {
            "bind": "127.0.0.1",
            "port": "0" if self.tls else str(self.port),
            "dir": f'"{self.folder}"',
            "daemonize": "no",
            "save": '""',
            "appendonly": "yes" if self.appendonly else "no",
            "appendfsync": self.appendonly or "no",
        }
        if self.password:
            lines["requirepass"] = f'"{self.password}"'
        if self.tls:
            lines |= {
                "tls-port": str(self.port),
                "tls-cert-file": f'"{self.tls.certificate}"',
                "tls-key-file": f'"{self.tls.key}"',
                "tls-ca-cert-file": f'"{self.tls.authority}"',
                "tls-auth-clients": "optional",
            }
        config = [f"{name} {value}" for name, value in {**lines, **self.config}.items()]
        config += [f"user {name} {rules}" for name, rules in self.users.items()]
        path = self.folder / "redis.conf"
        path.write_text("\n".join(config) + "\n")
        return [self.binary, str(path)]

    def _answers(self, connection: socket.socket) -> bool:
        if self.tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            context.load_cert_chain(self.tls.certificate, self.tls.key)
            connection = context.wrap_socket(connection)
        with connection:
            connection.sendall(b"PING\r\n")
            answer = connection.recv(100)
        # Whoever is asked for a password is served; "-LOADING" is not.
        return answer.startswith((b"+PONG", b"-NOAUTH", b"-NOPERM", b"-MASTERDOWN"))


class PrivateRabbitMQ(PrivateServer):
    """A RabbitMQ node, with an ``epmd`` of its own: it neither sees nor disturbs another on this host.

    A first start takes about four seconds of one core, ``rabbitmqctl("stop_app")`` and ``("start_app")`` one.

    :param config: more lines of ``rabbitmq.conf``: ``{"heartbeat": "10"}``.
    :param consumer_timeout: seconds after which the server closes the channel of a consumer that has not
        acknowledged; looked at every second then, not every minute. None: the server's own, half an hour.
    :param plugins: to enable: ``["rabbitmq_management"]``.
    :raises ServerMissing: ``rabbitmq-server`` is not installed.
    """

    def __init__(
        self,
        folder: Path,
        *,
        port: int = 0,
        config: Mapping[str, str] | None = None,
        consumer_timeout: float | None = None,
        plugins: Sequence[str] = (),
    ) -> None:
        super().__init__(folder, port=port)
        self.binary = rabbitmq_binary("rabbitmq-server")
        self.config = dict(config or {})
        self.consumer_timeout = consumer_timeout
        self.plugins = tuple(plugins)
        self.node = f"celeriac-{os.getpid()}-{next(_numbers)}@localhost"
        self._names_port, self._node_port = free_port(), free_port()

    @property
    def url(self) -> str:
        return self.url_of("/")

    def url_of(self, vhost: str) -> str:
        """The URL of a virtual host."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}/{quote(vhost, safe='') if vhost != '/' else '/'}"

    def rabbitmqctl(self, *arguments: str, timeout: float = 60.0) -> str:
        """Run ``rabbitmqctl`` against this node and return what it prints; raises `RuntimeError`."""
        return run_rabbitmqctl(*arguments, node=self.node, environment=self._environment(), timeout=timeout)

    def add_vhost(self, name: str) -> str:
        """Make a virtual host that ``guest`` may use; returns its URL."""
        self.rabbitmqctl("add_vhost", name)
        self.rabbitmqctl("set_permissions", "-p", name, "guest", ".*", ".*", ".*")
        return self.url_of(name)

    def _environment(self) -> Mapping[str, str]:
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("RABBITMQ_", "ERL_"))
        }
        return {
            **kept,
            "HOME": str(self.folder),
            "ERL_EPMD_PORT": str(self._names_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_CONF_ENV_FILE": os.devnull,
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.folder / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.folder),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_NODENAME": self.node,
            "RABBITMQ_DIST_PORT": str(self._node_port),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        }

    def _command(self) -> Sequence[str]:
        lines = {
            "listeners.tcp.1": f"127.0.0.1:{self.port}",
            "log.console": "true",
            "log.console.level": "info",
            "log.file": "false",
            "vm_memory_high_watermark.absolute": "1GB",
            "disk_free_limit.absolute": "50MB",
        }
        advanced = "[]."
        if self.consumer_timeout is not None:
            milliseconds = round(self.consumer_timeout * 1000)
            advanced = (
                f"[{{rabbit, [{{consumer_timeout, {milliseconds}}}, {{channel_tick_interval, 1000}}]}}]."
            )
        config = "".join(f"{name} = {value}\n" for name, value in {**lines, **self.config}.items())
        (self.folder / "rabbitmq.conf").write_text(config)
        (self.folder / "advanced.config").write_text(advanced)
        (self.folder / "enabled_plugins").write_text(f"[{','.join(self.plugins)}].")
        return [self.binary]

    def _answers(self, connection: socket.socket) -> bool:
        connection.sendall(b"AMQP\x00\x00\x09\x01")
        # A method frame on channel 0: Connection.Start
        return connection.recv(3) == b"\x01\x00\x00"


def redis_binary() -> str:
    """Path of the installed Redis or Valkey server; raises `ServerMissing`."""
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return found
    raise ServerMissing("no Redis server is installed: apt-get install redis-server (or valkey-server)")


def rabbitmq_binary(name: str) -> str:
    """Path of a program of the installed RabbitMQ; raises `ServerMissing`."""
    # Debian's /usr/sbin/rabbitmq-server is a wrapper that becomes another user, in that user's folder.
    found = shutil.which(name, path="/usr/lib/rabbitmq/bin") or shutil.which(name)
    if found is None:
        raise ServerMissing("no RabbitMQ server is installed: apt-get install rabbitmq-server")
    return found


def run_rabbitmqctl(
    *arguments: str, node: str | None = None, environment: Mapping[str, str] | None = None, timeout: float
) -> str:
    """Run ``rabbitmqctl``, by default against the node that this host's configuration names."""
    program = rabbitmq_binary("rabbitmqctl") if node else shutil.which("rabbitmqctl")
    if program is None:
        raise ServerMissing("rabbitmqctl is not installed: apt-get install rabbitmq-server")
    command = [program, *(("-n", node) if node else ()), "-q", *arguments]
    done = subprocess.run(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"rabbitmqctl {arguments[0]} ended with status {done.returncode}:\n{done.stdout}")
    return done.stdout
