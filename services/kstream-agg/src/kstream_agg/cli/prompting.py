"""A prompt of a few verbs: history and completion in a terminal, plain lines from a script."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from kstream_agg.core.errors import KStreamError
from kstream_agg.stack.artifacts import ArtifactCache

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from kstream_agg.kafka import KafkaCluster

__all__ = ["Verb", "open_prompt", "run_prompt"]


@dataclass(frozen=True, slots=True)
class Verb:
    """One verb of a prompt.

    Attributes:
        usage: Its arguments, as help shows them.
        help: What it does, in a line.
        least: So many arguments it needs.
        most: So many it takes.
        run: Does it.
    """

    usage: str
    help: str
    least: int
    most: int
    run: Callable[[Sequence[str]], None]


def open_prompt(name: str, cluster: KafkaCluster, verbs: dict[str, Verb]) -> None:
    """`run_prompt` for a client of a cluster, whose topics it completes."""
    greeting = f"A {name} on {cluster.settings.bootstrap_servers}:"
    run_prompt(name, greeting, verbs, lambda: sorted(cluster.topics()))


def run_prompt(
    name: str, greeting: str, verbs: dict[str, Verb], topics: Callable[[], Sequence[str]]
) -> None:
    """Read lines and do what they say, until `quit` or the input's end.

    A line that fails is one sentence with its remedy; the next one is read. From a script, the
    first failure ends it.

    Args:
        name: The prompt's, and its history's.
        greeting: Said first.
        verbs: By name.
        topics: Names to complete arguments with.

    Raises:
        KStreamError: A line of a script failed.
    """
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        click.echo(greeting)
        _help(verbs)
    for line in _typed(name, verbs, topics) if is_terminal else sys.stdin:
        try:
            if not _do(line, verbs):
                return
        except KStreamError as error:
            if not is_terminal:
                raise
            click.echo(f"error: {error}")
            if error.remedy:
                click.echo(f"remedy: {error.remedy}")
        except KeyboardInterrupt:
            click.echo("interrupted; 'quit' ends")


def _do(line: str, verbs: dict[str, Verb]) -> bool:
    """Do what a line says; False when that is to end."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError as error:
        raise KStreamError(f"this line cannot be read: {error}") from error
    if not words:
        return True
    verb, *arguments = words
    if verb in {"quit", "exit"}:
        return False
    if verb == "help":
        _help(verbs)
        return True
    known = verbs.get(verb)
    if known is None:
        raise KStreamError(f"there is no '{verb}'", remedy=f"there is {', '.join(verbs)}, quit")
    if not known.least <= len(arguments) <= known.most:
        raise KStreamError(f"{verb} is used so: {verb} {known.usage}".rstrip())
    known.run(arguments)
    return True


def _help(verbs: dict[str, Verb]) -> None:
    for name, verb in verbs.items():
        click.echo(f"  {f'{name} {verb.usage}'.strip():36} {verb.help}")
    click.echo(f"  {'help, quit':36} show this, end")


def _typed(name: str, verbs: dict[str, Verb], topics: Callable[[], Sequence[str]]) -> Iterator[str]:
    # Imported here: scripts do without it.
    from prompt_toolkit import PromptSession  # noqa: PLC0415 - as said
    from prompt_toolkit.completion import NestedCompleter, WordCompleter  # noqa: PLC0415 - as said
    from prompt_toolkit.history import FileHistory  # noqa: PLC0415 - as said

    folder = ArtifactCache().folder
    folder.mkdir(parents=True, exist_ok=True)
    words = WordCompleter(lambda: list(topics()))
    completer = NestedCompleter({**dict.fromkeys(verbs, words), "help": None, "quit": None})
    session: PromptSession[str] = PromptSession(
        f"{name}> ", history=FileHistory(str(folder / f"{name}-history")), completer=completer
    )
    while True:
        try:
            yield session.prompt()
        except KeyboardInterrupt:
            continue
        except EOFError:
            return
