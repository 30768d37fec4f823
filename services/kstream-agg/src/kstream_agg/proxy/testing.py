"""A real push proxy for tests and benchmarks: started on free ports, ended whatever happens."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import httpx2
import psutil
import yaml

from kstream_agg.core.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from typing import Self

__all__ = ["Load", "RunningProxy"]

_READY_S = 60.0
_STOP_S = 60.0
_POLL_S = 0.05


class RunningProxy:
    """A push proxy as a process of its own; a context manager that waits until it is ready.

    Args:
        folder: Where its configuration, log output and write-ahead log are kept.
        bootstrap_servers: The brokers.
        settings: The YAML settings by group, over those for free ports and a log in `folder`.
        environment: Further variables.
        ready: Whether to wait for `/readyz`, and not for the port alone.
        file_limit: No file of it may grow beyond so many bytes: a full disk.
    """

    def __init__(  # noqa: PLR0913 - a proxy has as many sides as a test may want to set
        self,
        folder: Path,
        bootstrap_servers: str,
        settings: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        environment: Mapping[str, str] | None = None,
        ready: bool = True,
        file_limit: int | None = None,
    ) -> None:
        self._file_limit = file_limit
        self._folder = folder
        self._ready = ready
        self._environment = dict(environment or {})
        self.settings: dict[str, Any] = {
            "kafka": {"brokers": [bootstrap_servers]},
            "http": {"port": 0, "metrics_port": 0, "workers": 1},
            "wal": {"directory": str(folder / "wal")},
            "log": {"format": "json"},
        }
        for group, values in (settings or {}).items():
            self.settings[group] = {**self.settings.get(group, {}), **values}
        self._output = folder / "proxy.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0
        self.metrics_port = 0

    @property
    def url(self) -> str:
        """Where it serves, without a path."""
        scheme = "https" if self.settings["http"].get("tls_key") else "http"
        return f"{scheme}://127.0.0.1:{self.port}"

    @property
    def metrics_url(self) -> str:
        """Where it serves /metrics, without a path."""
        return f"http://127.0.0.1:{self.metrics_port}"

    @property
    def pid(self) -> int:
        """The parent process."""
        assert self._process is not None  # noqa: S101 - only while it runs
        return self._process.pid

    @property
    def output(self) -> str:
        """What it has logged since it was started last."""
        return self._output.read_text(encoding="utf-8", errors="replace")

    def start(self) -> None:
        """Start it.

        Raises:
            UnavailableError: It is not ready in time, or has ended; its output is in the message.
        """
        self.port = self.metrics_port = 0
        self._folder.mkdir(parents=True, exist_ok=True)
        config = self._folder / "proxy.yaml"
        config.write_text(yaml.safe_dump(self.settings), encoding="utf-8")
        command = [sys.executable, "-m", "kstream_agg", "push-proxy", "--config", str(config)]
        if self._file_limit is not None:
            command = [
                "/bin/sh",
                "-c",
                f'ulimit -f {self._file_limit // 512}; exec "$@"',
                "sh",
                *command,
            ]
        # Only what a test says is set: the machine's own variables are not.
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("KSTREAM__")}
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=inherited | self._environment,
                start_new_session=True,
            )
        try:
            self.wait_until(self._has_ports, "its ports")
            if self._ready:
                self.wait_until(self._is_ready, "readiness")
        except BaseException:
            self.kill()
            raise

    def workers(self) -> list[int]:
        """The worker processes."""
        found = []
        for child in psutil.Process(self.pid).children():
            with suppress(psutil.NoSuchProcess):  # a zombie is none either
                if "spawn_main" in " ".join(child.cmdline()):
                    found.append(child.pid)
        return found

    def resident_bytes(self) -> int:
        """The memory of the parent and all its children."""
        parent = psutil.Process(self.pid)
        return sum(p.memory_info().rss for p in [parent, *parent.children(recursive=True)])

    def stop(self) -> int:
        """End it with SIGTERM.

        Returns:
            Its exit code.
        """
        assert self._process is not None  # noqa: S101 - only while it runs
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def kill(self) -> None:
        """SIGKILL to it and its workers, if they run."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that carry these labels."""
        total = 0.0
        for line in httpx2.get(f"{self.metrics_url}/metrics", timeout=_READY_S).text.splitlines():
            head, _, value = line.rpartition(" ")
            found, _, given = head.partition("{")
            if found == name and all(f'{k}="{v}"' in given for k, v in labels.items()):
                total += float(value)
        return total

    def wait_until(
        self, condition: Callable[[], bool], what: str, timeout_s: float = _READY_S
    ) -> None:
        """Wait until a condition holds.

        Raises:
            UnavailableError: It does not in time, or the proxy has ended.
        """
        deadline = time.monotonic() + timeout_s
        while not condition():
            if self._process is not None and self._process.poll() is not None:
                raise UnavailableError(f"the proxy has ended: {self.output[-2000:]}")
            if time.monotonic() > deadline:
                raise UnavailableError(f"{what}: not in {timeout_s} s: {self.output[-2000:]}")
            time.sleep(_POLL_S)

    def _has_ports(self) -> bool:
        for line in self.output.splitlines():
            with suppress(ValueError):
                said = json.loads(line)
                self.metrics_port = said.get("http_port", self.metrics_port)
                if said.get("event") == "listening":
                    self.port = said["port"]
        return bool(self.port and self.metrics_port)

    def _is_ready(self) -> bool:
        with suppress(httpx2.HTTPError):
            return httpx2.get(f"{self.metrics_url}/readyz", timeout=_READY_S).status_code == 200
        return False

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._process is not None and self._process.poll() is None:
            try:
                self.stop()
            finally:
                self.kill()


class Load:
    """Clients that push numbered records and note which were answered 200; a context manager.

    Args:
        port: Asked anew for every connection: the proxy may come back on another one.
        topic: Where to.
        clients: How many push at the same time.
        wait: Whether they wait for the delivery.
        size: How many bytes each value has at least.
    """

    def __init__(
        self,
        port: Callable[[], int],
        topic: str,
        *,
        clients: int = 8,
        wait: bool = False,
        size: int = 0,
    ) -> None:
        self._port = port
        self._topic = topic
        self._wait = wait
        self._filler = "x" * size
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._run, args=(number,), daemon=True)
            for number in range(clients)
        ]
        self.accepted: set[str] = set()
        """What begins the values of the records answered 200."""
        self.statuses: Counter[int] = Counter()
        """Answers by status; 0 where a connection broke."""

    def wait_for(self, count: int, timeout_s: float = _READY_S) -> None:
        """Wait until so many more records are answered 200.

        Raises:
            UnavailableError: They are not in time.
        """
        target = self.statuses[200] + count
        deadline = time.monotonic() + timeout_s
        while self.statuses[200] < target:
            if time.monotonic() > deadline:
                raise UnavailableError(f"no {count} answers in {timeout_s} s: {self.statuses}")
            time.sleep(_POLL_S)

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, client: int) -> None:
        number = 0
        connection: http.client.HTTPConnection | None = None
        while not self._stop.is_set():
            number += 1
            name = f"{client}-{number} "
            try:
                if connection is None:
                    connection = http.client.HTTPConnection("127.0.0.1", self._port(), timeout=30)
                status = self._push(connection, name)
            except (OSError, http.client.HTTPException):
                status = 0
                self._stop.wait(_POLL_S)
            if not status and connection is not None:
                connection.close()
                connection = None
            with self._lock:
                self.statuses[status] += 1
                if status == 200:
                    self.accepted.add(name)
        if connection is not None:
            connection.close()

    def _push(self, connection: http.client.HTTPConnection, name: str) -> int:
        record = {"topic": self._topic, "data": name + self._filler}
        body = json.dumps({"records": [record], "wait_for_send": self._wait})
        connection.request("POST", "/push", body)
        answer = connection.getresponse()
        answer.read()
        return answer.status
