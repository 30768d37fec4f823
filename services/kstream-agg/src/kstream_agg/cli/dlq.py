"""`kstream-agg dlq`: look at dead letters, and send chosen ones back."""

from __future__ import annotations

import difflib
import getpass
import json
import signal
import socket
import sys
import threading
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from rich.table import Table

from kstream_agg.cli.backfill import parse_time
from kstream_agg.cli.mending import (
    describe_value,
    edited_value,
    file_value,
    json_value,
    record_value,
)
from kstream_agg.cli.tools import open_cluster, open_tools, output
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
    from collections.abc import Callable, Mapping, Sequence

    from kstream_agg.core.settings import RegistrySettings
    from kstream_agg.kafka.cluster import TopicDescription
    from kstream_agg.kafka.dead_letters import DeadLetter
    from kstream_agg.kafka.replays import Audit

__all__ = ["dlq"]

_SUFFIX: Final = dead_letter_topic("")
_SHOWN: Final = 100  # characters of a message in the table


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
        letters = read_letters(reader, chosen, _which(**filters))
        shown = list(islice(letters, limit))
        more = sum(1 for _ in letters)
    if as_json:
        for letter in shown:
            sys.stdout.write(json.dumps(_as_json(letter, _audits(replays, letter))) + "\n")
    else:
        _print(shown, replays)
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
        audits = _audits(known_replays(reader), letter)
    if raw:
        sys.stdout.buffer.write(letter.value or b"")
        return
    shown = _as_json(letter, audits)
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
    """Send dead letters back to the topics they come from, each exactly once.

    Key and headers are those the record had; the header "replayed.from" names the letter. What was
    sent back, where to, when and by whom is kept in the topic dlq-replays, written in the same
    transaction: letters that stand there are not sent again. Ended early, it can be called again.
    """
    settings, _ = open_tools("dlq")
    cluster = open_cluster(settings, "dlq")
    known = cluster.topics()
    chosen = _choose(selection, known)
    with TopicReader(settings.kafka, "dlq") as reader:
        letters = list(read_letters(reader, chosen, _which(**filters)))
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
    due = [r for r in wanted if force or r.identity not in replays]
    _announce(wanted, due)
    if dry_run:
        return
    if due and not yes:
        click.confirm("Send them?", abort=True)
    cluster.create_topics([audit_topic(settings.topic)])
    by = f"{getpass.getuser()}@{socket.gethostname()}"
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    sent = 0
    replayer = Replayer(settings.kafka, Metrics(), SystemClock(), by)
    for replay, audit, is_new in replayer.send(wanted, stop, again=force):
        _tell(replay, audit, is_new=is_new)
        sent += is_new
    click.echo(f"{sent} sent back, {len(wanted) - len(due)} were before")
    if stop.is_set():
        sys.exit(1)


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


def _announce(wanted: Sequence[Replay], due: Sequence[Replay]) -> None:
    for topic, count in sorted(Counter(replay.topic for replay in due).items()):
        click.echo(f"to send to {topic}: {count}", err=True)
    if len(wanted) > len(due):
        click.echo(f"sent back before: {len(wanted) - len(due)}", err=True)


def _tell(replay: Replay, audit: Audit, *, is_new: bool) -> None:
    place = f"{audit.to.topic}/{audit.to.partition}/{audit.to.offset}"
    if is_new:
        mended = " (mended)" if audit.is_mended else ""
        click.echo(f"{replay.letter.place} -> {place}{mended}")
    else:
        click.echo(f"{replay.letter.place}: sent back {_time(audit.at_ms)} by {audit.by}: {place}")


def _audits(replays: Mapping[tuple[Any, int], list[Audit]], letter: DeadLetter) -> list[Audit]:
    return replays.get((letter.place, letter.timestamp), [])


def _as_json(letter: DeadLetter, audits: Sequence[Audit]) -> dict[str, Any]:
    origin = letter.origin
    return {
        "place": str(letter.place),
        "at": _time(letter.timestamp),
        "origin": None
        if origin is None
        else {"topic": origin.topic, "partition": origin.partition, "offset": origin.offset,
              "timestamp": origin.timestamp},
        "stage": letter.stage,
        "error": letter.error_class,
        "message": letter.message,
        "key": None if letter.key is None else letter.key.decode("utf-8", "replace"),
        "replayed_from": letter.replayed_from,
        "replays": [
            {"to": f"{a.to.topic}/{a.to.partition}/{a.to.offset}", "at": _time(a.at_ms),
             "by": a.by, "mended": a.is_mended}
            for a in audits
        ],
    }  # fmt: skip


def _print(letters: Sequence[DeadLetter], replays: Mapping[tuple[Any, int], list[Audit]]) -> None:
    if not letters:
        output().print("no dead letters")
        return
    table = Table("letter", "set aside", "from", "stage", "error", "message", "sent back")
    for letter in letters:
        message = " ".join(letter.message.split())
        if len(message) > _SHOWN:
            message = message[: _SHOWN - 1] + "…"
        audits = _audits(replays, letter)
        back = f"{_time(audits[-1].at_ms)}" if audits else ""
        table.add_row(
            str(letter.place),
            _time(letter.timestamp),
            str(letter.origin_place or ""),
            letter.stage,
            letter.error_class.rsplit(".", 1)[-1],
            message,
            back,
        )
    output().print(table)


def _time(ms: int) -> str:
    if ms < 0:
        return ""
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds")
