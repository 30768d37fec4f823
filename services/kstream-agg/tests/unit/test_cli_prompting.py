"""The prompt: in a terminal a failure is told and the next line read; a script ends with it."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from kstream_agg.cli.prompting import Verb, run_prompt
from kstream_agg.core.errors import ContractError, KStreamError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class Sent:
    """What the verb `send` was called with."""

    def __init__(self) -> None:
        self.words: list[list[str]] = []
        self.verbs = {"send": Verb("TOPIC VALUE", "sends", 2, 2, self.run)}

    def run(self, words: Sequence[str]) -> None:
        if words[0] == "unknown":
            raise ContractError("there is no topic 'unknown'", remedy="make it")
        self.words.append(list(words))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_is_told_what_failed_and_asked_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KSTREAM_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(sys, "stdin", Terminal())
    sent = Sent()
    with create_pipe_input() as typed, create_app_session(input=typed, output=DummyOutput()):
        typed.send_text("sned x\rsend unknown x\rsend t 'two words'\rsend 'open\rquit\r")
        run_prompt("producer", "A producer:", sent.verbs, lambda: ["t"])
    assert sent.words == [["t", "two words"]]
    said = capsys.readouterr().out
    assert said.startswith("A producer:\n  send TOPIC VALUE")
    assert "error: there is no 'sned'\nremedy: there is send, quit" in said
    assert "error: there is no topic 'unknown'\nremedy: make it" in said
    assert "this line cannot be read" in said
    assert "+send t 'two words'" in (tmp_path / "producer-history").read_text("utf-8")


def test_a_script_ends_with_the_first_line_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("send t x\n# nothing\nsend t\nsend t y\n"))
    sent = Sent()
    with pytest.raises(KStreamError, match="is used so: send TOPIC VALUE"):
        run_prompt("producer", "A producer:", sent.verbs, list)
    assert sent.words == [["t", "x"]]
