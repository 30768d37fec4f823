"""Another user for the server that refuses to run as root."""

from __future__ import annotations

import os
import pwd
import stat
from typing import TYPE_CHECKING

from kstream_agg.stack.component import Account

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["hand_over", "server_account"]


def server_account(home: Path, program: Path) -> Account | None:
    """The user a server runs under; None, the present one, unless that is root.

    Args:
        home: The server's folder: who owns it already goes on with it.
        program: What is to be run.
    """
    if os.geteuid() != 0:
        return None
    traverse = not (_is_open(home.parent) and _is_open(program))
    if home.exists() and home.stat().st_uid != 0:
        return Account(home.stat().st_uid, home.stat().st_gid, traverse)
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(entry.pw_uid, entry.pw_gid, traverse)
    # No such names, as in the smallest images: the number that means nobody everywhere.
    return Account(65534, 65534, traverse)


def hand_over(account: Account | None, *paths: Path) -> None:
    """Make the account the owner of files and folders."""
    if account is not None:
        for path in paths:
            os.chown(path, account.uid, account.gid)


def _is_open(path: Path) -> bool:
    """Whether anybody may enter a folder, or run a program, and all folders above it."""
    for each in (path, *path.parents):
        # A data folder that does not exist yet is made by us, open to pass.
        if each.exists() and not each.stat().st_mode & stat.S_IXOTH:
            return False
    return True
