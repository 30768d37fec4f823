"""One channel's way into Kafka: its topics, its encoders and what its topic holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from kstream_agg.core.names import channel_topic, dead_letter_topic, gaps_topic, progress_topic
from kstream_agg.core.schemas import TRADE_GAP
from kstream_agg.deribit.ledger import ChannelProgress
from kstream_agg.deribit.progress import Period, ProgressCodec
from kstream_agg.deribit.trade_encoder import TradeEncoder
from kstream_agg.kafka.wire import RecordEncoder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kstream_agg.deribit.ledger import Anchor, Ledger, SeqRun

__all__ = ["Lane", "LaneSchemas", "LaneView"]


class LaneSchemas(NamedTuple):
    """Schema ids of a channel's topics in the registry."""

    trade: int
    progress: int
    gap: int


@dataclass(frozen=True, slots=True)
class LaneView:
    """What the search for missing trades needs to know: a copy, for other threads.

    Args:
        started_at: The topic is complete from here on, in exchange time (ms); None before the
            first trade.
        resume_at: Up to here it is compared with the exchange's history.
        anchor: A trade at `resume_at`.
        latest: The last trade received.
        holes: Instrument and numbers of what is looked for.
        periods: Periods that somebody has asked to fetch.
    """

    started_at: int | None
    resume_at: int
    anchor: Anchor | None
    latest: Anchor | None
    holes: tuple[tuple[str, SeqRun], ...]
    periods: tuple[Period, ...]


class Lane:
    """A channel's state; used by the thread that publishes.

    Args:
        channel: Its name.
        schemas: Schema ids of its topics.
        ledger: What its topic holds.
        periods: Periods that somebody has asked to fetch.
        overlap_ms: On a first start the topic begins so long before the first trade seen: what
            the stream may have lost at its begin.
    """

    def __init__(
        self,
        channel: str,
        schemas: LaneSchemas,
        ledger: Ledger,
        periods: list[Period] | None = None,
        overlap_ms: int = 60_000,
    ) -> None:
        self.channel = channel
        self.topic = channel_topic(channel)
        self.dead_letters = dead_letter_topic(self.topic)
        self.progress_topic = progress_topic(self.topic)
        self.gaps_topic = gaps_topic(self.topic)
        self.encoder = TradeEncoder(schemas.trade)
        self.ledger = ledger
        self.latest: Anchor | None = None
        self._periods = {period.subject: period for period in periods or ()}
        self._changed_periods: dict[str, Period | None] = {}
        self._fetched: set[str] = set()
        self._codec = ProgressCodec(schemas.progress)
        self._encode_gap = RecordEncoder(TRADE_GAP, schemas.gap).encode
        self._overlap_ms = overlap_ms
        self._changed = False

    def note_receipt(self, first_ms: int, latest: Anchor, received_at: int) -> None:
        """Trades were received.

        Args:
            first_ms: Exchange time of the first of them.
            latest: The last of them.
            received_at: When.
        """
        channel = self.ledger.channel
        if channel is None:
            begin = first_ms - self._overlap_ms
            self.ledger.channel = ChannelProgress(begin, begin, None, received_at)
        else:
            channel.received_at = received_at
        self.latest = latest
        self._changed = True

    def advance(self, resume_at: int, anchor: Anchor | None) -> None:
        """The topic has been compared with the exchange's history up to `resume_at`."""
        channel = self.ledger.channel
        if channel is not None and resume_at > channel.resume_at:
            channel.resume_at = resume_at
            channel.anchor = anchor
            self._changed = True

    def set_period(self, period: Period) -> None:
        """A period is to be fetched, or was fetched up to `at_ms`; it is forgotten at its end."""
        ended = period.at_ms >= period.to_ms
        if ended:
            self._periods.pop(period.subject, None)
            self._fetched.add(period.subject)
        else:
            self._periods[period.subject] = period
        self._changed_periods[period.subject] = None if ended else period

    def view(self) -> LaneView:
        """What the search for missing trades needs."""
        channel = self.ledger.channel
        return LaneView(
            channel.started_at if channel else None,
            channel.resume_at if channel else 0,
            channel.anchor if channel else None,
            self.latest,
            tuple(self.ledger.holes()),
            tuple(self._periods.values()),
        )

    def ask_for(self, period: Period) -> Period:
        """How far a period is fetched; one that was never asked for is begun."""
        known = self._periods.get(period.subject)
        if known is not None:
            return known
        if period.subject in self._fetched:
            return Period(period.from_ms, period.to_ms, period.to_ms)
        self.set_period(period)
        return period

    def gap_record(self, name: str, run: SeqRun, given_up_at: int, reason: str) -> bytes:
        """The record of trades that are missing for good."""
        return self._encode_gap(
            {
                "instrument_name": name,
                "first_seq": run[0],
                "last_seq": run[1],
                "given_up_at": given_up_at,
                "reason": reason,
            }
        )

    def take_changes(self, now_ms: int) -> Iterator[tuple[str, bytes | None]]:
        """Subject and value of the progress records to be written now; they count as written."""
        ledger, codec = self.ledger, self._codec
        for name in ledger.touched:
            yield name, codec.instrument(name, ledger.instruments[name], now_ms)
        ledger.touched.clear()
        if self._changed and ledger.channel is not None:
            yield self.channel, codec.channel(self.channel, ledger.channel)
            self._changed = False
        for subject, period in self._changed_periods.items():
            yield subject, codec.period(period, now_ms) if period else None
        self._changed_periods.clear()
