"""`kstream-agg dlq`: look at dead letters, and send chosen ones back."""

from __future__ import annotations

import contextlib
import difflib
import getpass
import json
import os
import signal
import socket
import sys
import threading
from bisect import insort
from collections import Counter
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from kstream_agg.cli.backfill import parse_time
from kstream_agg.cli.letters import audits_of, letter_json, print_letters, time_text
from kstream_agg.cli.mending import (
    describe_value,
    edited_value,
    file_value,
    json_value,
    record_value,
)
from kstream_agg.cli.tools import open_cluster, open_tools
from kstream_agg.core.clock import SystemClock
from kstream_agg.core.errors import ContractError, SettingsError
from kstream_agg.core.metrics import Metrics
from kstream_agg.core.names import dead_letter_topic
from kstream_agg.kafka.dead_letters import (
    LetterFilter,
    Selection,
    parse_selection,
    read_letters,
)
from kstream_agg.kafka.registry import SchemaRegistry
from kstream_agg.kafka.replays import Replay, Replayer, audit_topic, known_replays
from kstream_agg.kafka.topic_reader import TopicReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from kstream_agg.core.settings import RegistrySettings
    from kstream_agg.kafka.cluster import TopicDescription
    from kstream_agg.kafka.dead_letters import DeadLetter
    from kstream_agg.kafka.replays import Audit

__all__ = ["dlq"]

_SUFFIX: Final = dead_letter_topic("")


@click.group()
def dlq() -> None:
    """Look at dead letters, and send chosen ones back to their topics.

    SELECTION is TOPIC, TOPIC/PARTITION, TOPIC/PARTITION/OFFSET or TOPIC/PARTITION/FROM-TO, where
    TOPIC is a dead-letter topic or the one whose letters it holds.
    """


def _filters(command: Callable[..., None]) -> Callable[..., None]:
    """The options that choose letters, handed on as one `LetterFilter` named `which`."""
    for option in (
        click.option("--until", help="Set aside before this time."),
        click.option("--since", help="Set aside at this time or later: ISO 8601, UTC."),
        click.option("--error", help="Class of the error, e.g. CheckViolation."),
        click.option("--stage", help="What failed, e.g. decode, write, VALUE_CONVERTER."),
        click.option("--origin", help="Topic the records come from."),
    ):
        command = option(command)
    return command


def _which(origin: str | None, stage: str | None, error: str | None, since: str | None,
           until: str | None) -> LetterFilter:  # fmt: skip
    return LetterFilter(
        origin,
        stage,
        error,
        None if since is None else parse_time(since),
        None if until is None else parse_time(until),
    )


@dlq.command("list")
@click.argument("selection", nargs=-1)
@_filters
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True,
              help="Show so many at most.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def list_command(
    selection: tuple[str, ...], limit: int, *, as_json: bool, **filters: str | None
) -> None:
    """List dead letters: of all topics, or of SELECTION."""
    settings, _ = open_tools("dlq")
    known = open_cluster(settings, "dlq").topics()
    chosen = _choose(selection, known) or [
        Selection(name) for name in sorted(known) if name.endswith(_SUFFIX)
    ]
    with TopicReader(settings.kafka, "dlq") as reader:
        replays = known_replays(reader)
        shown: list[DeadLetter] = []
        more = 0
        for letter in read_letters(reader, chosen, _which(**filters)):
            # Never more in memory than are shown.
            insort(shown, letter, key=attrgetter("place"))
            if len(shown) > limit:
                shown.pop()
                more += 1
    if as_json:
        for letter in shown:
            sys.stdout.write(json.dumps(letter_json(letter, audits_of(replays, letter))) + "\n")
    else:
        print_letters(shown, replays)
    if more:
        click.echo(f"{more} more: raise --limit or choose fewer", err=True)


@dlq.command("show")
@click.argument("place")
@click.option("--raw", is_flag=True, help="Nothing but the value's bytes.")
def show_command(place: str, *, raw: bool) -> None:
    """Show one dead letter as JSON: PLACE is TOPIC/PARTITION/OFFSET.

    The value stands under "record" (an Avro record, decoded), "text" or "base64".
    """
    settings, _ = open_tools("dlq")
    known = open_cluster(settings, "dlq").topics()
    with TopicReader(settings.kafka, "dlq") as reader:
        letter = _only(list(read_letters(reader, _choose([place], known), LetterFilter())), place)
        audits = audits_of(known_replays(reader), letter)
    if raw:
        sys.stdout.buffer.write(letter.value or b"")
        return
    shown = letter_json(letter, audits)
    shown["headers"] = [
        [name, None if value is None else value.decode("utf-8", "replace")]
        for name, value in letter.headers
    ]
    with SchemaRegistry(settings.registry) as registry:
        shown |= describe_value(letter.value, registry)
    text = json.dumps(shown, default=json_value, ensure_ascii=False, indent=2)
    sys.stdout.write(text + "\n")


@dlq.command("replay")
@click.argument("selection", nargs=-1, required=True)
@_filters
@click.option("--to", help="Another topic than the one they come from.")
@click.option("--value-file", type=click.Path(path_type=Path), help="Send these bytes instead.")
@click.option("--record-file", type=click.Path(path_type=Path),
              help="Send this JSON object instead, as a record of the topic's schema.")  # fmt: skip
@click.option("--edit", is_flag=True, help="Mend the value in $EDITOR.")
@click.option("--force", is_flag=True, help="Also those that were sent back before.")
@click.option("--dry-run", is_flag=True, help="Only show what would be sent.")
@click.option("--yes", is_flag=True, help="Don't ask.")
def replay_command(  # noqa: PLR0913 - each option of a command is an argument
    selection: tuple[str, ...],
    to: str | None,
    value_file: Path | None,
    record_file: Path | None,
    *,
    edit: bool,
    force: bool,
    dry_run: bool,
    yes: bool,
    **filters: str | None,
) -> None:
    """Send dead letters back to the topics they come from, each record exactly once.

    Key and headers are those the record had; the header "replayed.from" names the letter. What was
    sent back, where to, when and by whom is kept in the topic dlq-replays, written in the same
    transaction: letters that stand there are not sent again. Ended early, it can be called again.
    """
    settings, _ = open_tools("dlq")
    cluster = open_cluster(settings, "dlq")
    known = cluster.topics()
    chosen = _choose(selection, known)
    with TopicReader(settings.kafka, "dlq") as reader:
        letters = sorted(read_letters(reader, chosen, _which(**filters)), key=attrgetter("place"))
        replays = known_replays(reader)
    if not letters:
        raise ContractError(
            "no dead letter is chosen", remedy="look which there are: kstream-agg dlq list"
        )
    wanted = [_replay(letter, to, known) for letter in letters]
    if sum(map(bool, (value_file, record_file, edit))) > 1:
        raise SettingsError("--value-file, --record-file and --edit exclude each other")
    if value_file or record_file or edit:
        _only(letters, "a mended value")
        wanted = [_mend(wanted[0], settings.registry, value_file, record_file)]
    fresh = [replay for replay in wanted if force or replay.identity not in replays]
    due = list({replay.identity: replay for replay in fresh}.values())
    _announce(due, before=len(wanted) - len(fresh), twins=len(fresh) - len(due))
    if dry_run:
        return
    if due and not yes:
        click.confirm("Send them?", abort=True)
    cluster.create_topics([audit_topic(settings.topic)])
    replayer = Replayer(settings.kafka, Metrics(), SystemClock(), _who())
    sent = 0
    with _stopped_by_signals() as stop:
        for replay, audit, is_new in replayer.send(wanted, stop, again=force):
            _tell(replay, audit, is_new=is_new)
            sent += is_new
    click.echo(f"{sent} sent back, {len(wanted) - len(fresh)} were before")
    if stop.is_set():
        sys.exit(1)


def _who() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user has a number and no name
        user = f"uid-{os.getuid()}"
    return f"{user}@{socket.gethostname()}"


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[threading.Event]:
    """Ctrl-C and SIGTERM end a replay between two transactions."""
    stop = threading.Event()

    def ask(*_: object) -> None:
        stop.set()

    previous = {sig: signal.signal(sig, ask) for sig in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for sig, handler in previous.items():
            signal.signal(sig, handler)


def _choose(texts: Sequence[str], known: Mapping[str, TopicDescription]) -> list[Selection]:
    """The selections, each of a dead-letter topic that exists."""
    found = []
    for text in texts:
        selection = parse_selection(text)
        topic = selection.topic
        if not topic.endswith(_SUFFIX) and dead_letter_topic(topic) in known:
            topic = dead_letter_topic(topic)
        if topic not in known:
            letters = [name for name in known if name.endswith(_SUFFIX)]
            near = difflib.get_close_matches(topic, letters, n=3, cutoff=0.5) or sorted(letters)[:5]
            raise ContractError(
                f"there is no topic '{topic}'",
                remedy="dead letters are in " + ", ".join(near) if near else None,
            )
        found.append(replace(selection, topic=topic))
    return found


def _only(letters: Sequence[DeadLetter], what: str) -> DeadLetter:
    if len(letters) != 1:
        raise ContractError(
            f"{what} needs one dead letter, and {len(letters)} are chosen",
            remedy="name it: TOPIC/PARTITION/OFFSET, from kstream-agg dlq list",
        )
    return letters[0]


def _replay(letter: DeadLetter, to: str | None, known: Mapping[str, TopicDescription]) -> Replay:
    origin = letter.origin
    topic = to or (origin.topic if origin else None)
    if topic is None:
        raise ContractError(
            f"{letter.place} does not say which topic it comes from",
            remedy="name one with --to, and mind the value: it may never have been a record",
        )
    if topic not in known:
        raise ContractError(f"there is no topic '{topic}' to send {letter.place} to")
    # Where it stood, so that the order of its partition's readers is kept; unless that is gone.
    stays = to is None and origin is not None and origin.partition < known[topic].partitions
    partition = origin.partition if stays and origin is not None else -1
    return Replay(letter, topic, partition, letter.value)


def _mend(
    replay: Replay,
    registry_settings: RegistrySettings,
    value_file: Path | None,
    record_file: Path | None,
) -> Replay:
    if value_file is not None:
        return replace(replay, value=file_value(value_file))
    with SchemaRegistry(registry_settings) as registry:
        if record_file is None:
            value = edited_value(replay.value, replay.topic, registry)
        else:
            text = file_value(record_file).decode("utf-8", "replace")
            value = record_value(text, replay.topic, registry, str(record_file))
    return replace(replay, value=value)


def _announce(due: Sequence[Replay], before: int, twins: int) -> None:
    for topic, count in sorted(Counter(replay.topic for replay in due).items()):
        click.echo(f"to send to {topic}: {count}", err=True)
    if twins:
        click.echo(f"further letters of the same records, not sent: {twins}", err=True)
    if before:
        click.echo(f"sent back before: {before}", err=True)


def _tell(replay: Replay, audit: Audit, *, is_new: bool) -> None:
    place = f"{audit.to.topic}/{audit.to.partition}/{audit.to.offset}"
    if is_new:
        mended = " (mended)" if audit.is_mended else ""
        click.echo(f"{replay.letter.place} -> {place}{mended}")
    else:
        click.echo(
            f"{replay.letter.place}: sent back {time_text(audit.at_ms)} by {audit.by}: {place}"
        )
