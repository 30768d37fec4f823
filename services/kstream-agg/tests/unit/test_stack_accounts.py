from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from kstream_agg.core.errors import PrerequisiteError
from kstream_agg.stack import accounts, doctor, launch
from kstream_agg.stack.accounts import server_account
from kstream_agg.stack.component import Account
from kstream_agg.stack.settings import StackSettings
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
def test_closed_folder_or_program_needs_the_right_to_pass(
    folder: Path, closed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / closed).chmod(0o700)
    monkeypatch.setattr(accounts, "may_traverse", lambda: True)
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


@pytest.mark.usefixtures("root")
def test_closed_folder_is_refused_where_nobody_may_pass_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accounts, "may_traverse", lambda: False)
    assert server_account(folder / "data", folder / "postgres") is not None
    folder.chmod(0o700)
    with pytest.raises(PrerequisiteError, match=f"cannot pass {folder}") as caught:
        server_account(folder / "data", folder / "postgres")
    assert "KSTREAM__DATA_DIR" in (caught.value.remedy or "")


@pytest.mark.usefixtures("root")
def test_root_without_another_user_is_told_to_add_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_entry(name: str) -> None:
        raise KeyError(name)

    monkeypatch.setattr("pwd.getpwnam", no_entry)
    with pytest.raises(PrerequisiteError, match="no user postgres or nobody") as caught:
        server_account(folder / "data", folder / "postgres")
    assert "useradd" in (caught.value.remedy or "")
    found = {c.what: c for c in doctor.examine(StackSettings(), folder, running=True)}
    assert found["Postgres"].remedy == caught.value.remedy


_WITHOUT_THE_RIGHT = (
    "import ctypes, os, sys\n"
    "PR_CAPBSET_DROP, CAP_DAC_READ_SEARCH = 24, 2\n"
    "assert ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_READ_SEARCH, 0, 0, 0) == 0\n"
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])\n"
)


@pytest.mark.skipif(
    sys.platform != "linux" or os.getuid() != 0, reason="only root on Linux gives rights up"
)
def test_no_stronger_right_is_kept_where_the_one_to_pass_is_not_allowed() -> None:
    shown = ["/bin/cat", "/proc/self/status"]
    options = ["--parent", str(os.getpid()), "--uid", "65534", "--gid", "65534", "--traverse"]
    command = [str(launch.__file__), *options, "--", *shown]
    kept = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, check=True, timeout=30
    )
    assert "CapEff:\t0000000000000004" in kept.stdout  # CAP_DAC_READ_SEARCH and nothing else
    refused = subprocess.run(
        [sys.executable, "-c", _WITHOUT_THE_RIGHT, *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert refused.returncode == 1
    assert refused.stdout == ""
    assert "does not let another user pass" in refused.stderr
