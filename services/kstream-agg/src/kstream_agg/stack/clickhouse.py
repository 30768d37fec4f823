"""A ClickHouse server as a local process, for the example, the benchmark and the tests.

ClickHouse is not among what PyPI and Maven Central carry, so it is no component of the local
stack. Taken is, in this order, what is on the PATH (`clickhouse`, `clickhouse-server`), and on
Debian and its relatives the distribution's package, unpacked into the cache folder: no root and no
change of the system. Debian's is version 18.16 of 2018.
"""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import httpx2

from kstream_agg.core.errors import PrerequisiteError, StackError
from kstream_agg.stack.artifacts import ArtifactCache
from kstream_agg.stack.ports import free_ports

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import TracebackType
    from typing import Self

__all__ = ["ClickHouseProgram", "ClickHouseServer", "find_clickhouse"]

_PACKAGE: Final = "clickhouse-server"
_READY_S: Final = 60.0
_END_S: Final = 20.0
_APT_S: Final = 300.0
_REMEDY: Final = (
    "name a running server with KSTREAM__CLICKHOUSE__URL, or install ClickHouse "
    "(https://clickhouse.com/docs/install)"
)
_CONFIG: Final = """\
<yandex>
  <logger><level>warning</level><console>1</console></logger>
  <listen_host>127.0.0.1</listen_host>
  <http_port>{port}</http_port>
  <path>{folder}/data/</path>
  <tmp_path>{folder}/tmp/</tmp_path>
  <user_files_path>{folder}/user_files/</user_files_path>
  <format_schema_path>{folder}/format_schemas/</format_schema_path>
  <users_config>users.xml</users_config>
  <default_profile>default</default_profile>
  <default_database>default</default_database>
  <keep_alive_timeout>3</keep_alive_timeout>
  <mark_cache_size>67108864</mark_cache_size>
  <timezone>UTC</timezone>
</yandex>
"""
_USERS: Final = """\
<yandex>
  <profiles><default/></profiles>
  <users><default>
    <password/><networks><ip>127.0.0.1</ip></networks>
    <profile>default</profile><quota>default</quota>
  </default></users>
  <quotas><default/></quotas>
</yandex>
"""


@dataclass(frozen=True, slots=True)
class ClickHouseProgram:
    """How the server is started, before its own arguments."""

    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


def find_clickhouse(cache: ArtifactCache | None = None) -> ClickHouseProgram:
    """The server on this machine; the distribution's package is fetched when there is none.

    Raises:
        PrerequisiteError: There is none, and none can be fetched.
    """
    if found := shutil.which("clickhouse"):
        return ClickHouseProgram((found, "server"))
    if found := shutil.which("clickhouse-server"):
        return ClickHouseProgram((found,))
    cache = cache or ArtifactCache()
    folder = cache.folder / "debian" / f"{_PACKAGE}-{platform.machine()}"
    with cache.locked():
        if not folder.is_dir():
            _fetch(folder)
    libraries = [folder / "lib", *(folder / "usr" / "lib").glob("*-linux-gnu*")]
    libraries += (folder / "lib").glob("*-linux-gnu*")
    libraries += [path / "libmariadb3" for path in libraries if (path / "libmariadb3").is_dir()]
    return ClickHouseProgram(
        (str(folder / "usr" / "sbin" / _PACKAGE),),
        {"LD_LIBRARY_PATH": ":".join(map(str, libraries))},
    )


def _fetch(folder: Path) -> None:
    """Unpack Debian's package, and what it needs that is not installed, into a folder."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise PrerequisiteError("there is no ClickHouse on this machine", remedy=_REMEDY)
    new = folder.with_name(folder.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    archives = new / "archives"
    (archives / "partial").mkdir(parents=True)
    command = ["apt-get", "install", "--download-only", "--no-install-recommends", "--yes"]
    command += ["-o", f"Dir::Cache::archives={archives}", "-o", "Debug::NoLocking=1", _PACKAGE]
    done = _run(command)
    if done.returncode != 0:
        # The lists of a fresh container are empty.
        _run(["apt-get", "update"])
        done = _run(command)
    if done.returncode != 0:
        said = done.stdout.strip().splitlines()
        reason = said[-1] if said else "no reason given"
        raise PrerequisiteError(f"apt-get has no {_PACKAGE}: {reason}", remedy=_REMEDY)
    for archive in archives.glob("*.deb"):
        if _run(["dpkg-deb", "-x", str(archive), str(new)]).returncode != 0:
            raise PrerequisiteError(f"{archive.name} cannot be unpacked", remedy=_REMEDY)
    shutil.rmtree(archives)
    new.rename(folder)


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        check=False,
        timeout=_APT_S,
        env={**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"},
    )


class ClickHouseServer:
    """A server with data of its own; a context manager that ends it, without waiting for merges.

    Args:
        folder: Its data; the caller removes it.
        program: The server; by default the one that `find_clickhouse` finds.
        port: Of its HTTP interface; by default a free one.
    """

    def __init__(
        self, folder: Path, *, program: ClickHouseProgram | None = None, port: int | None = None
    ) -> None:
        self._folder = folder
        self._program = program or find_clickhouse()
        self.port = port or free_ports(1)[0]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Its HTTP interface."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it and wait until it answers.

        Raises:
            StackError: It has ended, or does not answer in time.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        config = self._folder / "config.xml"
        config.write_text(_CONFIG.format(port=self.port, folder=self._folder), encoding="utf-8")
        (self._folder / "users.xml").write_text(_USERS, encoding="utf-8")
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self._program.argv, f"--config-file={config}"],
                cwd=self._folder,
                env={**os.environ, **self._program.environment},
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )
        deadline = time.monotonic() + _READY_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise StackError(f"ClickHouse has not started: {self._last_words()}")
            time.sleep(0.05)

    def kill(self) -> None:
        """End it as SIGKILL does."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it, in good order if it will."""
        self._end(signal.SIGTERM)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()

    def _answers(self) -> bool:
        try:
            return httpx2.get(f"{self.url}/ping", timeout=2, trust_env=False).status_code == 200
        except httpx2.HTTPError:
            return False

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(how)
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _last_words(self) -> str:
        text = (self._folder / "server.log").read_text("utf-8", "replace").strip()
        return text[-1_000:] or "it says nothing"
