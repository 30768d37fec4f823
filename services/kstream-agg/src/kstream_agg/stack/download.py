"""Fetching pinned files over HTTP: in parallel, resumed, verified before they get their name.

A file grows as `NAME.part` beside its place; a new attempt asks for the rest of it (HTTP Range).
Only when size and sha256 are right is it renamed: what has its name is whole.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TYPE_CHECKING, Protocol

import httpx2

from kstream_agg.core.errors import PrerequisiteError, StackError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

__all__ = ["Fetcher", "Progress", "Target", "default_repository", "disk_errors"]

# A few at a time: the small files are round trips, the three large ones the bandwidth.
_PARALLEL = 6
_ATTEMPTS = 4
_CHUNK = 1 << 18

Target = tuple[str, "Path", str, int]
"""Path in the repository, place on disk, sha256 (hexadecimal), size (bytes)."""


class _Stream(Protocol):
    def __call__(self, *, headers: dict[str, str]) -> AbstractContextManager[httpx2.Response]: ...


class Progress(Protocol):
    """Is told how a download goes; called from several threads."""

    def start(self, files: int, size: int) -> None:
        """So many files and bytes are to be fetched."""

    def advance(self, size: int) -> None:
        """So many bytes have come; negative when some turned out useless."""


def default_repository() -> str:
    """The base address of Maven's public repository, as the Maven client `jgo` knows it.

    Raises:
        PrerequisiteError: `jgo` is not installed: it belongs to the `stack` extra.
    """
    try:
        from jgo.constants import (  # noqa: PLC0415 - 0.2 s, and only a download needs it
            MAVEN_CENTRAL_URL,
        )
    except ImportError as error:
        raise PrerequisiteError(
            "the local stack's packages are not installed (jgo is missing)",
            remedy="run 'make setup', or install the package with its 'stack' extra",
        ) from error
    return str(MAVEN_CENTRAL_URL)


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn the disk's errors into sentences.

    Raises:
        StackError: The disk is full, or the folder cannot be written.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StackError(
                f"the disk that holds {folder} is full",
                remedy="free 1.5 GB there, or set KSTREAM_CACHE_DIR to a folder on another disk; "
                "what is fetched so far is kept",
            ) from error
        raise StackError(
            f"{folder} cannot be written: {error.strerror}",
            remedy="mend its permissions, or set KSTREAM_CACHE_DIR to a folder of yours",
        ) from error


class Fetcher:
    """Fetches files of one repository.

    Args:
        repository: Its base address; None takes the public one.
        pause: Waits some seconds between attempts.
    """

    def __init__(
        self, repository: str | None = None, *, pause: Callable[[float], None] = time.sleep
    ) -> None:
        self._repository = repository
        self._pause = pause
        self._cancelled = threading.Event()

    def fetch_all(self, targets: Sequence[Target], progress: Progress | None = None) -> None:
        """Fetch files, a few at a time; the first error ends it, what has come is kept.

        Raises:
            StackError: The disk is full, or a file is not what the lock says.
            UnavailableError: The repository cannot be reached.
        """
        if not targets:
            return
        base = (self._repository or default_repository()).rstrip("/")
        report = progress.advance if progress else _ignore
        if progress:
            progress.start(len(targets), sum(size for *_, size in targets))
        # Largest first: the end of it is not spent on one file alone.
        ordered = sorted(targets, key=lambda target: -target[3])
        with (
            httpx2.Client(timeout=30, follow_redirects=True) as client,
            ThreadPoolExecutor(_PARALLEL, thread_name_prefix="fetch") as pool,
        ):
            futures = [
                pool.submit(self._fetch, client, f"{base}/{target[0]}", target, report)
                for target in ordered
            ]
            try:
                for future in as_completed(futures):
                    future.result()
            except BaseException:
                self._cancelled.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def _fetch(
        self, client: httpx2.Client, url: str, target: Target, report: Callable[[int], None]
    ) -> None:
        _, place, sha256, size = target
        part = place.with_name(place.name + ".part")
        stream = functools.partial(client.stream, "GET", url)
        with disk_errors(place.parent):
            place.parent.mkdir(parents=True, exist_ok=True)
        for attempt in range(_ATTEMPTS):
            last = attempt == _ATTEMPTS - 1
            try:
                _receive(stream, part, size, report, self._cancelled)
            except httpx2.HTTPError as error:
                if last or not _can_pass(error):
                    raise UnavailableError(
                        f"{place.name} cannot be fetched: {_explain(error)}",
                        remedy="check the network and proxy settings (HTTPS_PROXY, SSL_CERT_FILE) "
                        "and start again: it goes on where it stopped",
                    ) from error
                report(-_length(part))
                self._pause(2.0**attempt)
                continue
            if self._cancelled.is_set():
                return
            if _take(part, place, sha256, size):
                return
            report(-_length(part))
            part.unlink(missing_ok=True)
            if last:
                raise StackError(
                    f"{place.name} was fetched, but is not the file the lock names "
                    f"(size {size}, sha256 {sha256[:12]}…)",
                    remedy="something between here and the repository changes files; "
                    "set [artifacts] repository in config/stack/default.toml to another one",
                )


def _receive(
    stream: _Stream,
    part: Path,
    size: int,
    report: Callable[[int], None],
    cancelled: threading.Event,
) -> None:
    """Append to `part` what is missing of it."""
    have = _length(part)
    if have > size:
        part.unlink()
        have = 0
    report(have)
    if have == size:
        return
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with stream(headers=headers) as response:
        response.raise_for_status()
        resumed = response.status_code == httpx2.codes.PARTIAL_CONTENT
        with disk_errors(part.parent), part.open("ab" if resumed else "wb") as file:
            if not resumed:
                report(-have)
            for chunk in response.iter_raw(_CHUNK):
                file.write(chunk)
                report(len(chunk))
                if cancelled.is_set():
                    return


def _take(part: Path, place: Path, sha256: str, size: int) -> bool:
    """Give a whole `part` its name; False when it is damaged."""
    with disk_errors(part.parent):
        if part.stat().st_size != size:
            return False
        with part.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                return False
        part.replace(place)
    return True


def _length(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _can_pass(error: httpx2.HTTPError) -> bool:
    if isinstance(error, httpx2.HTTPStatusError):
        return error.response.status_code in (408, 429) or error.response.status_code >= 500
    return isinstance(error, httpx2.TransportError)


def _explain(error: httpx2.HTTPError) -> str:
    if isinstance(error, httpx2.HTTPStatusError):
        return f"the repository answers {error.response.status_code}"
    if isinstance(error, httpx2.TimeoutException):
        return "the repository does not answer in time"
    return f"the repository cannot be reached ({error})"


def _ignore(size: int) -> None:
    del size
