"""The local stack's Java files: pinned by path, sha256 and size, kept in the user's cache folder.

`artifacts.lock.json` lists groups of Maven files. The cache holds them under their repository
path (`maven/…`), so that every checkout shares them; a lock file keeps two of them from fetching
at the same time. What is there and whole is not fetched: a warm start touches no network.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import sys
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from kstream_agg.core.errors import PrerequisiteError, StackError
from kstream_agg.stack.download import Fetcher, disk_errors

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from kstream_agg.stack.download import Progress

__all__ = ["Artifact", "ArtifactCache", "default_cache_dir", "read_lock"]

_CACHE_VARIABLE = "KSTREAM_CACHE_DIR"


@dataclass(frozen=True, slots=True)
class Artifact:
    """One file of a Maven repository.

    Attributes:
        path: Where it is in the repository.
        sha256: Its checksum, hexadecimal.
        size: Its length in bytes.
    """

    path: str
    sha256: str
    size: int

    @property
    def name(self) -> str:
        """The file's own name."""
        return self.path.rsplit("/", 1)[-1]


def read_lock(text: str | None = None) -> dict[str, tuple[Artifact, ...]]:
    """The locked files by group.

    Args:
        text: A lock file's content; default the one that comes with the package.
    """
    if text is None:
        text = resources.files(__package__).joinpath("artifacts.lock.json").read_text("utf-8")
    groups: dict[str, list[dict[str, str | int]]] = json.loads(text)
    return {
        group: tuple(
            Artifact(str(row["path"]), str(row["sha256"]), int(row["size"])) for row in rows
        )
        for group, rows in groups.items()
    }


def default_cache_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """`$KSTREAM_CACHE_DIR`, else `kstream-agg` in the platform's cache folder for users.

    Raises:
        PrerequisiteError: It would be in the user's home, and the user has none.
    """
    named = environ.get(_CACHE_VARIABLE)
    base = environ.get("XDG_CACHE_HOME")
    try:
        if named:
            return Path(named).expanduser().absolute()
        if sys.platform == "darwin":
            return Path.home() / "Library" / "Caches" / "kstream-agg"
        return (Path(base) if base else Path.home() / ".cache") / "kstream-agg"
    except RuntimeError as error:
        raise PrerequisiteError(
            "there is no cache folder for downloads: this user has no home",
            remedy=f"set {_CACHE_VARIABLE} to a folder's whole path, or HOME",
        ) from error


class ArtifactCache:
    """The cache folder.

    Args:
        folder: Where it is; made when missing.
        groups: The locked files by group; default the package's lock.
    """

    def __init__(
        self, folder: Path | None = None, groups: Mapping[str, tuple[Artifact, ...]] | None = None
    ) -> None:
        self.folder = folder or default_cache_dir()
        self._groups = groups if groups is not None else read_lock()

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the locked groups."""
        return tuple(self._groups)

    def files(self, group: str) -> list[Path]:
        """Where a group's files are or will be, in the order of the lock."""
        return [self._place(artifact) for artifact in self._groups[group]]

    def missing(self, groups: Iterable[str]) -> list[Artifact]:
        """The files of these groups that are absent or damaged; reads every byte of them."""
        wanted = [artifact for group in groups for artifact in self._groups[group]]
        return [artifact for artifact in wanted if not self._is_whole(artifact)]

    def absent_bytes(self, groups: Iterable[str] | None = None) -> int:
        """How much of these groups is still to be fetched, by presence and size alone (bytes).

        Args:
            groups: Names of groups; default all of them.
        """
        chosen = self._groups if groups is None else groups
        wanted = [artifact for group in chosen for artifact in self._groups.get(group, ())]
        return sum(a.size for a in wanted if _size(self._place(a)) != a.size)

    def ensure(
        self, groups: Iterable[str], fetcher: Fetcher, progress: Progress | None = None
    ) -> int:
        """Fetch what is missing or damaged.

        Args:
            groups: Names of groups.
            fetcher: Fetches one file.
            progress: Told about bytes as they come.

        Returns:
            How many files were fetched.

        Raises:
            StackError: The disk is full or the folder cannot be written.
            UnavailableError: The repository cannot be reached.
        """
        missing = self.missing(groups)
        if not missing:
            return 0
        with self.locked():
            # Another checkout may have fetched them while this one waited for the lock.
            missing = [artifact for artifact in missing if not self._is_whole(artifact)]
            fetcher.fetch_all(
                [(a.path, self._place(a), a.sha256, a.size) for a in missing], progress
            )
        return len(missing)

    def clear(self) -> bool:
        """Remove what the cache holds, and its folder when nothing else is in it.

        Returns:
            Whether there was anything to remove.

        Raises:
            StackError: The folder cannot be written.
        """
        if not self.folder.is_dir():
            return False
        with self.locked(), disk_errors(self.folder):
            for name in ("maven", "unpacked", "debian"):
                if (self.folder / name).is_dir():
                    shutil.rmtree(self.folder / name)
            (self.folder / ".lock").unlink()
        # Somebody else's files in a folder that the user has named stay.
        with contextlib.suppress(OSError):
            self.folder.rmdir()
        return True

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the cache for oneself while writing to it."""
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            file = (self.folder / ".lock").open("a")
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as error:
                raise StackError(
                    f"the cache folder {self.folder} cannot be locked: {error.strerror}",
                    remedy=f"set {_CACHE_VARIABLE} to a folder on a local disk",
                ) from error
            yield

    def unpacked(self, group: str) -> Path:
        """Where `group`'s unpacked form belongs: a new folder for new content."""
        digest = hashlib.sha256("".join(a.sha256 for a in self._groups[group]).encode())
        return self.folder / "unpacked" / f"{group}-{digest.hexdigest()[:12]}"

    def _place(self, artifact: Artifact) -> Path:
        return self.folder / "maven" / artifact.path

    def _is_whole(self, artifact: Artifact) -> bool:
        path = self._place(artifact)
        if _size(path) != artifact.size:
            return False
        try:
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == artifact.sha256
        except OSError as error:
            raise PrerequisiteError(
                f"{path} cannot be read: {error.strerror}",
                remedy=f"mend its permissions, or set {_CACHE_VARIABLE} to another folder",
            ) from error


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
