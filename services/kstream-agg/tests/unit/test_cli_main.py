"""The command's frame: help without imports, errors without tracebacks."""

from __future__ import annotations

import subprocess
import sys

import pytest
from click.testing import CliRunner

from kstream_agg.cli import main as cli_main


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kstream_agg", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=environment or None,
        timeout=60,
    )


def test_help_lists_every_command() -> None:
    said = run("--help")
    assert said.returncode == 0
    for command in cli_main._COMMANDS:
        assert command in said.stdout


@pytest.mark.parametrize("command", sorted(cli_main._COMMANDS))
def test_every_command_explains_itself(command: str) -> None:
    said = CliRunner().invoke(cli_main.cli, [command, "--help"], prog_name="kstream-agg")
    assert said.exit_code == 0, said.output
    assert f"Usage: kstream-agg {command}" in said.output


def test_a_wrong_setting_is_one_sentence_and_no_traceback() -> None:
    said = run("agg-producer", KSTREAM__TOPIC__PARTITIONS="many")
    assert said.returncode == 2
    assert "KSTREAM__TOPIC__PARTITIONS" in said.stderr
    assert "Traceback" not in said.stderr
    assert "Traceback" in run("--debug", "agg-producer", KSTREAM__TOPIC__PARTITIONS="many").stderr


def test_an_unknown_command_is_a_usage_error() -> None:
    said = run("no-such-command")
    assert said.returncode == 2
    assert "No such command" in said.stderr
