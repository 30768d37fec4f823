"""Giving back the memory that reading a mapped file has made resident.

LMDB reads through a map of its file; a page once read counts as this process's memory until the
system needs it elsewhere. Reading a log of gigabytes back would look like a leak, and where memory
is limited count as one. The pages stay in the system's cache.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Final

__all__ = ["release_mapped_pages"]

_MAPS: Final = Path("/proc/self/maps")
_MADV_DONTNEED: Final = 4  # linux/mman.h; on a shared file mapping it drops no data


def release_mapped_pages(file: Path) -> bool:
    """Drop the resident pages of a file's mappings.

    Args:
        file: The mapped file.

    Returns:
        Whether there was a mapping to release; False on systems without `/proc`.
    """
    try:
        lines = _MAPS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    found = False
    name = str(file.resolve())
    for line in lines:
        if line.endswith(name):
            start, _, end = line.split(" ", 1)[0].partition("-")
            address, length = int(start, 16), int(end, 16) - int(start, 16)
            libc = ctypes.CDLL(None)
            libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(length), _MADV_DONTNEED)
            found = True
    return found
