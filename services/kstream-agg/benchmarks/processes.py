"""Programs under measurement: started, watched from outside, ended whatever happens."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psutil

from kstream_agg.core.errors import ContractError, StackError, UnavailableError
from kstream_agg.core.settings import ENV_PREFIX
from kstream_agg.stack.ports import free_ports

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType
    from typing import Self

__all__ = ["POLL_S", "Pass", "Service", "reference", "say", "watch"]

_HERE: Final = Path(__file__).parent
_END_WITHIN_S: Final = 20.0
POLL_S: Final = 0.05
"""Seconds between two looks at a program."""
_LOG_TAIL_BYTES: Final = 2_000
# Names a folder for cProfile's files, one a service: its main thread alone, and slower for it.
_PROFILE_VARIABLE: Final = "KSTREAM_BENCH_PROFILE"


def say(text: str) -> None:
    """Tell the person who waits; results alone go to standard output."""
    print(text, file=sys.stderr, flush=True)


class Service:
    """One of our programs in a process of its own; a context manager that ends it.

    Args:
        arguments: Of `kstream-agg`.
        environment: Its `KSTREAM__…` variables, beside those of this process.
        folder: Where it runs and its log is written.
        changes: Settings of this service alone, without their prefix.
    """

    def __init__(
        self,
        arguments: tuple[str, ...],
        environment: Mapping[str, str],
        folder: Path,
        changes: Mapping[str, str] | None = None,
    ) -> None:
        self._arguments = arguments
        self._http = free_ports(1)[0]
        own = {"HTTP__PORT": str(self._http), "LOG__LEVEL": "warning", **(changes or {})}
        prefixed = {ENV_PREFIX + name: value for name, value in own.items()}
        self._environment = {**os.environ, **environment, **prefixed}
        self._folder = folder
        self._log = folder / f"{arguments[0]}.log"

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, *self._profiler(), "-m", "kstream_agg", *self._arguments],
                env=self._environment,
                cwd=self._folder,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.process = psutil.Process(self._process.pid)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(_END_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def check(self) -> None:
        """Raise when it has ended badly.

        Raises:
            StackError: With the end of its log.
        """
        if self._process.poll():
            tail = self._log.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace")
            raise StackError(f"{self._arguments[0]} has ended: {tail}")

    def _profiler(self) -> tuple[str, ...]:
        folder = os.environ.get(_PROFILE_VARIABLE)
        if not folder:
            return ()
        return ("-m", "cProfile", "-o", str(Path(folder, f"{self._arguments[0]}.prof").absolute()))

    def wait_done(self, timeout_s: float = 180.0) -> None:
        """Return once it has ended well.

        Raises:
            StackError: It has ended badly.
            UnavailableError: It has not ended in time.
        """
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            name = " ".join(self._arguments)
            raise UnavailableError(f"{name} has not ended in {timeout_s:.0f} s") from error
        self.check()

    def wait_ready(self, timeout_s: float = 60.0) -> None:
        """Return once it says that it is ready.

        Raises:
            StackError: It has ended.
            UnavailableError: It was not ready in time.
        """
        deadline = time.monotonic() + timeout_s
        while self._get("/readyz") is None:
            self.check()
            if time.monotonic() > deadline:
                raise UnavailableError(f"{self._arguments[0]} is not ready in {timeout_s:.0f} s")
            time.sleep(POLL_S)

    def counter(self, name: str, topic: str, workers: int = 1) -> int:
        """A counter's value for a topic; 0 while it has none or does not answer.

        Of several workers the sum, once each of them has counted something.
        """
        values = self.counters(name, f'topic="{topic}"')
        return sum(values) if sum(map(bool, values)) >= workers else 0

    def counters(self, name: str, label: str) -> list[int]:
        """A counter's values with this label, one a worker; none while it does not answer."""
        self.check()
        start = f"{name}_total{{"
        return [
            round(float(line.rpartition(" ")[2]))
            for line in (self._get("/metrics") or "").splitlines()
            if line.startswith(start) and label in line
        ]

    def quantile(self, name: str, share: float) -> float:
        """A quantile of a histogram without labels, interpolated within its bucket."""
        self.check()
        start = f'{name}_bucket{{le="'
        buckets = []
        for line in (self._get("/metrics") or "").splitlines():
            if line.startswith(start):
                upper, _, rest = line.removeprefix(start).partition('"} ')
                buckets.append((float(upper), float(rest.split()[0])))
        wanted = share * buckets[-1][1]
        low_edge = low_count = 0.0
        for edge, count in buckets:
            if count >= wanted:
                return low_edge + (edge - low_edge) * (wanted - low_count) / (count - low_count)
            low_edge, low_count = edge, count
        return low_edge

    def _get(self, path: str) -> str | None:
        connection = http.client.HTTPConnection("127.0.0.1", self._http, timeout=5)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.read().decode() if answer.status == 200 else None
        except OSError:
            return None
        finally:
            connection.close()


@dataclass(frozen=True, slots=True)
class Pass:
    """How a number of records went by.

    Args:
        records: Those after the first look that saw any.
        seconds: From that look to the last record.
        cpu_s: CPU time of the watched process in these seconds.
        rss_peak: The most memory it held, bytes.
    """

    records: int
    seconds: float
    cpu_s: float
    rss_peak: int

    @property
    def per_s(self) -> float:
        """Records per second."""
        return self.records / self.seconds

    @property
    def cpu_s_per_million(self) -> float:
        """CPU-seconds for a million records."""
        return self.cpu_s * 1e6 / self.records


def watch(  # noqa: PLR0913 - what is told by name
    read: Callable[[], int],
    total: int,
    process: psutil.Process,
    *,
    timeout_s: float = 300.0,
    exactly: bool = True,
    poll_s: float = POLL_S,
) -> Pass:
    """Watch a count until it reaches `total`.

    Time starts when the first records are seen: what a program needs to start is not counted, and
    neither are those records.

    Args:
        read: Gives the count.
        total: Where it ends.
        process: Whose CPU time and memory are taken, with those of its children.
        timeout_s: Longest wait.
        exactly: Whether more than the total is an error.
        poll_s: Seconds between two looks.

    Raises:
        UnavailableError: That took longer.
        ContractError: It went by unseen, or beyond the total.
    """
    deadline = time.monotonic() + timeout_s
    first: tuple[int, float, float] | None = None
    rss_peak = 0
    while True:
        count, now = read(), time.monotonic()
        family = [process, *process.children()]
        cpu_s = sum(map(_cpu_s, family))
        rss_peak = max(rss_peak, sum(member.memory_info().rss for member in family))
        if first is None and count > 0:
            first = (count, now, cpu_s)
        if count >= total:
            break
        if now > deadline:
            raise UnavailableError(f"{count:,} of {total:,} records after {timeout_s:.0f} s")
        time.sleep(poll_s)
    if first is None or first[0] >= total or (exactly and count > total):
        raise ContractError(f"{count:,} of {total:,} records were seen at once, or too many")
    return Pass(total - first[0], now - first[1], cpu_s - first[2], rss_peak)


def reference(script: str, *arguments: object) -> dict[str, Any]:
    """Run a bare loop, one of the scripts beside this, in a process of its own.

    Returns:
        The JSON object it prints.

    Raises:
        StackError: It has failed.
    """
    done = subprocess.run(
        [sys.executable, str(_HERE / script), *map(str, arguments)],
        stdout=subprocess.PIPE,
        check=False,
    )
    if done.returncode != 0:
        raise StackError(f"the bare loop {script} has failed")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system
