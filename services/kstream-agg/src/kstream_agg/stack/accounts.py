"""Another user for the server that refuses to run as root."""

from __future__ import annotations

import os
import pwd
import stat
from typing import TYPE_CHECKING, Final

from kstream_agg.core.errors import PrerequisiteError
from kstream_agg.stack.component import Account
from kstream_agg.stack.launch import may_traverse

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["hand_over", "server_account"]

_USERS: Final = ("postgres", "nobody")


def server_account(home: Path, program: Path) -> Account | None:
    """The user a server runs under; None, the present one, unless that is root.

    Args:
        home: The server's folder: who owns it already goes on with it.
        program: What is to be run.

    Raises:
        PrerequisiteError: There is no such user, or it cannot get to the folder or the program.
    """
    if os.geteuid() != 0:
        return None
    closed = _closed_to_others(home.parent) or _closed_to_others(program)
    if closed and not may_traverse():
        raise PrerequisiteError(
            f"Postgres does not run as root, and another user cannot pass {closed}",
            remedy="let others pass it (chmod o+x), or keep the checkout and its data "
            "(KSTREAM__DATA_DIR) in a folder that they may pass",
        )
    if home.exists() and home.stat().st_uid != 0:
        return Account(home.stat().st_uid, home.stat().st_gid, closed is not None)
    uid, gid = _unprivileged_user()
    return Account(uid, gid, closed is not None)


def hand_over(account: Account | None, *paths: Path) -> None:
    """Make the account the owner of files and folders."""
    if account is not None:
        for path in paths:
            os.chown(path, account.uid, account.gid)


def _unprivileged_user() -> tuple[int, int]:
    """Numbers of a user that has an entry: without one `initdb` refuses to work."""
    for name in _USERS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return entry.pw_uid, entry.pw_gid
    raise PrerequisiteError(
        f"Postgres does not run as root, and there is no user {' or '.join(_USERS)}",
        remedy="add one (useradd --system postgres), or run this as another user than root",
    )


def _closed_to_others(path: Path) -> Path | None:
    """What keeps others from a folder or a program: it or a folder above; None when open."""
    for each in (path, *path.parents):
        # A data folder that does not exist yet is made by us, open to pass.
        if each.exists() and not each.stat().st_mode & stat.S_IXOTH:
            return each
    return None
