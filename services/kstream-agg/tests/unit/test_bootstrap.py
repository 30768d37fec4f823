"""The Makefile's own set-up: what it names, and when it makes the environment anew."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[4]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A checkout with an environment that is only a link to this Python."""
    for name in ("Makefile", ".ci"):
        source = CHECKOUT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy2
        copy(source, tmp_path / name)
    package = tmp_path / "services" / "kstream-agg"
    package.mkdir(parents=True)
    for name in ("pyproject.toml", "requirements-stack.lock", "requirements-dev.lock"):
        (package / name).write_text("", encoding="utf-8")
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "python").symlink_to(sys.executable)
    (tmp_path / ".venv" / ".made-in").write_text(f"{tmp_path.resolve()}\n", encoding="utf-8")
    (tmp_path / ".venv" / ".runtime").touch()
    return tmp_path


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", "--no-print-directory", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_a_whole_environment_is_kept(copy: Path) -> None:
    assert "bootstrap.sh" not in make(copy, "-n", "setup").stdout


def test_an_environment_made_elsewhere_is_made_anew(copy: Path) -> None:
    (copy / ".venv" / ".made-in").write_text("/elsewhere\n", encoding="utf-8")
    assert "bootstrap.sh requirements-stack.lock" in make(copy, "-n", "setup").stdout


def test_an_environment_whose_python_is_gone_is_made_anew(copy: Path) -> None:
    (copy / ".venv" / "bin" / "python").unlink()
    assert "bootstrap.sh requirements-stack.lock" in make(copy, "-n", "setup").stdout


def test_doctor_shows_every_prerequisite_before_it_installs_anything(copy: Path) -> None:
    shutil.rmtree(copy / ".venv")
    done = make(copy, "doctor", "PYTHON=no-such-python")
    assert done.returncode != 0
    assert "no Python found as 'no-such-python'" in done.stderr
    assert "remedy: install Python 3.11" in done.stderr
    assert "MB free on this disk" in done.stdout + done.stderr
    assert not (copy / ".venv").exists()


def test_help_lists_every_target_with_a_line() -> None:
    text = (CHECKOUT / "Makefile").read_text(encoding="utf-8")
    targets = {
        word
        for line in text.splitlines()
        if line.startswith(".PHONY:")
        for word in line.split()[1:]
    }
    listed = {line.split()[0] for line in make(CHECKOUT, "help").stdout.splitlines() if line}
    assert listed == targets
