from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from kstream_agg.stack.accounts import server_account
from kstream_agg.stack.component import Account
from kstream_agg.stack.testing import open_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)


@pytest.fixture
def folder() -> Iterator[Path]:
    with open_folder() as folder:
        program = folder / "postgres"
        program.touch(mode=0o755)
        program.chmod(0o755)
        yield folder


def test_ordinary_user_stays(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert server_account(folder / "data", folder / "postgres") is None


@pytest.mark.usefixtures("root")
def test_root_gives_way_to_a_user_without_rights(folder: Path) -> None:
    account = server_account(folder / "data", folder / "postgres")
    assert account is not None
    assert account.uid != 0
    assert not account.traverse


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("closed", ["", "postgres"])
def test_closed_folder_or_program_needs_the_right_to_pass(folder: Path, closed: str) -> None:
    (folder / closed).chmod(0o700)
    account = server_account(folder / "data", folder / "postgres")
    assert account is not None
    assert account.traverse


@pytest.mark.usefixtures("root")
@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_folder_keeps_its_owner(folder: Path) -> None:
    home = folder / "data"
    home.mkdir()
    os.chown(home, 4321, 4322)
    assert server_account(home, folder / "postgres") == Account(4321, 4322)
