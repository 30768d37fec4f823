"""The components' log files: bounded, and read back for people.

A file that has grown too large is copied aside and cut to nothing: its writers append, so they
go on at the new beginning, and no pipe stands between them and the disk.
"""

from __future__ import annotations

import os
import shutil
import time
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["follow", "last_error", "rotate_logs", "tail"]

_MAX_BYTES = 20 << 20
# What a program says at its end is in there, whatever it has logged before.
_END_BYTES = 64 << 10


def rotate_logs(folder: Path, max_bytes: int = _MAX_BYTES) -> None:
    """Set aside as `.log.1` what has grown beyond `max_bytes`; the older one goes."""
    for log in folder.glob("*.log"):
        if log.stat().st_size > max_bytes:
            shutil.copyfile(log, log.with_name(log.name + ".1"))
            with log.open("r+b") as file:
                file.truncate(0)


def tail(log: Path, lines: int) -> list[str]:
    """The last lines of a log, the part set aside included; empty without a file."""
    last: deque[str] = deque(maxlen=lines)
    for path in (log.with_name(log.name + ".1"), log):
        if path.exists():
            with path.open(encoding="utf-8", errors="replace") as file:
                last.extend(line.rstrip("\n") for line in file)
    return list(last)


def last_error(log: Path, begin: int = 0) -> str | None:
    """The last error that the command line has written into a log, and its remedy.

    Args:
        log: The log.
        begin: Where to begin in it (bytes); all of it when it was cut meanwhile.

    Returns:
        One sentence; None when there is none.
    """
    try:
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(begin if begin <= size else 0, size - _END_BYTES))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return None
    said: str | None = None
    for line in lines:
        if line.startswith("error: "):
            said = line.removeprefix("error: ")
        elif line.startswith("remedy: ") and said is not None:
            said += f" ({line})"
    return said


def follow(log: Path, pause: Callable[[float], None] = time.sleep) -> Iterator[str]:
    """Lines as they are appended, for ever; begins again when the file is cut."""
    position = log.stat().st_size if log.exists() else 0
    while True:
        size = log.stat().st_size if log.exists() else 0
        if size < position:
            position = 0
        if size > position:
            with log.open("rb") as file:
                file.seek(position)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    position += len(line)
                    yield line.decode("utf-8", "replace").rstrip("\n")
        pause(0.2)
