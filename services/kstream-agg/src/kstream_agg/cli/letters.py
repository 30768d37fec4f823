"""Dead letters as a table and as JSON."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from rich.markup import escape
from rich.table import Table

from kstream_agg.cli.tools import output
from kstream_agg.kafka.replays import identity_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kstream_agg.kafka.dead_letters import DeadLetter
    from kstream_agg.kafka.replays import Audit, Identity

__all__ = ["audits_of", "letter_json", "print_letters", "time_text"]

_SHOWN: Final = 100  # characters of a message in the table


def audits_of(replays: Mapping[Identity, list[Audit]], letter: DeadLetter) -> list[Audit]:
    """What is known of sending this letter's record back, the oldest first."""
    return replays.get(identity_of(letter), [])


def letter_json(letter: DeadLetter, audits: Sequence[Audit]) -> dict[str, Any]:
    """The letter without its value and headers, and where it was sent back to."""
    origin = letter.origin
    return {
        "place": str(letter.place),
        "at": time_text(letter.timestamp),
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
            {"to": f"{a.to.topic}/{a.to.partition}/{a.to.offset}", "at": time_text(a.at_ms),
             "by": a.by, "mended": a.is_mended}
            for a in audits
        ],
    }  # fmt: skip


def print_letters(letters: Sequence[DeadLetter], replays: Mapping[Identity, list[Audit]]) -> None:
    """Print a table, the newest replay of each letter in it."""
    if not letters:
        output().print("no dead letters")
        return
    table = Table("letter", "set aside", "from", "stage", "error", "message", "sent back")
    for letter in letters:
        message = " ".join(letter.message.split())
        if len(message) > _SHOWN:
            message = message[: _SHOWN - 1] + "…"
        audits = audits_of(replays, letter)
        back = f"{time_text(audits[-1].at_ms)}" if audits else ""
        table.add_row(
            str(letter.place),
            time_text(letter.timestamp),
            str(letter.origin_place or ""),
            letter.stage,
            letter.error_class.rsplit(".", 1)[-1],
            escape(message),
            back,
        )
    output().print(table)


def time_text(ms: int) -> str:
    """ISO 8601 in UTC; empty where the time (ms) is unknown, -1."""
    if ms < 0:
        return ""
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds")
