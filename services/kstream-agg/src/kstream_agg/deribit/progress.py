"""Progress records: a ledger's changes as records of `{topic}-progress`, and back again.

One compacted topic a raw topic; keys are the subjects: instruments, the channel, and periods that
somebody has asked to fetch. A first start finds it empty.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from kstream_agg.core.schemas import SOURCE_PROGRESS
from kstream_agg.deribit.ledger import Anchor, ChannelProgress, InstrumentLedger, Ledger
from kstream_agg.kafka.wire import RecordEncoder

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kstream_agg.deribit.ledger import SeqRun
    from kstream_agg.kafka.wire import RecordDecoder

__all__ = ["Period", "ProgressCodec", "restore_ledger", "restore_periods"]

_CHANNEL: Final = "trades."
_PERIOD: Final = "backfill."
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Period:
    """A period of a channel that somebody has asked to fetch, in exchange time (ms).

    Args:
        from_ms: Its begin.
        to_ms: Its end, inclusive.
        at_ms: Up to here it is fetched.
    """

    from_ms: int
    to_ms: int
    at_ms: int

    @property
    def subject(self) -> str:
        """The key of its record."""
        return f"{_PERIOD}{self.from_ms}.{self.to_ms}"


class ProgressCodec:
    """Encodes progress records of one schema id.

    Args:
        schema_id: The id of the SourceProgress schema in the registry.
    """

    def __init__(self, schema_id: int) -> None:
        self._encode = RecordEncoder(SOURCE_PROGRESS, schema_id).encode

    def instrument(self, name: str, entry: InstrumentLedger, received_at: int) -> bytes:
        """The record of an instrument."""
        return self._encode(
            {
                "subject": name,
                "first_seq": entry.first,
                "highest_seq": entry.highest,
                "holes": _runs_text(entry.holes),
                "gaps": _runs_text(entry.gaps),
                "received_at": received_at,
            }
        )

    def channel(self, channel: str, progress: ChannelProgress) -> bytes:
        """The record of a channel."""
        return self._encode(
            {
                "subject": channel,
                "started_at": progress.started_at,
                "resume_at": progress.resume_at,
                "anchor": json.dumps(progress.anchor) if progress.anchor else None,
                "received_at": progress.received_at,
            }
        )

    def period(self, period: Period, received_at: int) -> bytes:
        """The record of a period."""
        return self._encode(
            {
                "subject": period.subject,
                "started_at": period.from_ms,
                "resume_at": period.at_ms,
                "ends_at": period.to_ms,
                "received_at": received_at,
            }
        )


def restore_ledger(values: Iterable[bytes], decoder: RecordDecoder) -> Ledger:
    """The ledger that progress records tell of.

    Args:
        values: The newest of each key.
        decoder: Of the registry's schemas.

    Raises:
        InvalidRecordError: One cannot be decoded.
    """
    ledger = Ledger()
    for value in values:
        record = decoder.decode(value)
        subject: str = record["subject"]
        if subject.startswith(_CHANNEL):
            ledger.channel = ChannelProgress(
                _ms(record["started_at"]),
                _ms(record["resume_at"]),
                Anchor(*json.loads(record["anchor"])) if record["anchor"] else None,
                _ms(record["received_at"]),
            )
        elif not subject.startswith(_PERIOD):
            ledger.instruments[subject] = InstrumentLedger(
                record["first_seq"],
                record["highest_seq"],
                _runs(record["holes"]),
                _runs(record["gaps"]),
            )
    return ledger


def restore_periods(values: Iterable[bytes], decoder: RecordDecoder) -> list[Period]:
    """The periods that are not yet fetched to their end.

    Raises:
        InvalidRecordError: A record cannot be decoded.
    """
    records = (decoder.decode(value) for value in values)
    return [
        Period(_ms(found["started_at"]), _ms(found["ends_at"]), _ms(found["resume_at"]))
        for found in records
        if found["subject"].startswith(_PERIOD)
    ]


def _runs_text(runs: list[SeqRun]) -> str | None:
    return json.dumps(runs, separators=(",", ":")) if runs else None


def _runs(text: str | None) -> list[SeqRun]:
    return [(first, last) for first, last in json.loads(text)] if text else []


def _ms(value: Any) -> int:  # noqa: ANN401 - what the decoder gives
    return value if isinstance(value, int) else (value - _EPOCH) // timedelta(milliseconds=1)
