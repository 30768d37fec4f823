"""From a batch of messages to columns of trades."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import polars as pl
from confluent_kafka import Message

from kstream_agg.aggregate.runs import Trades
from kstream_agg.core.errors import InvalidRecordError
from kstream_agg.kafka.columns import ColumnDecoder
from kstream_agg.kafka.wire import Rejected

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

__all__ = ["Instruments", "TradeReader"]

_COLUMNS: Final[dict[str, type[pl.DataType]]] = {
    "instrument_name": pl.String,
    "trade_seq": pl.Int64,
    "timestamp": pl.Int64,
    "received_at": pl.Int64,
    "price": pl.Float64,
    "amount": pl.Float64,
}
# The years 1 to 9999, in ms: what a timestamp can mean to whoever reads the results.
_FIRST_MS: Final = -62_135_596_800_000
_LAST_MS: Final = 253_402_300_799_999


class Instruments(dict[bytes, int]):
    """A number for each instrument, given when its key is first looked up."""

    def __init__(self) -> None:
        super().__init__()
        self._names: list[str] = []

    def __missing__(self, key: bytes) -> int:
        number = self[key] = len(self._names)
        self._names.append(key.decode())
        return number

    def name_of(self, number: int) -> str:
        """The instrument with this number."""
        return self._names[number]


class TradeReader:
    """Reads the trades of a batch by columns.

    Args:
        schema_by_id: Gives the schema of an id, None when there is none.
        instruments: Numbers the instruments.
        groups: Topics all of whose trades count as one instrument's, and its name. Offsets then
            stand for the trades' numbers, which only mean something within an instrument.
    """

    def __init__(
        self,
        schema_by_id: Callable[[int], dict[str, Any] | None],
        instruments: Instruments,
        groups: Mapping[str, str] | None = None,
    ) -> None:
        self._decoder = ColumnDecoder(schema_by_id, _COLUMNS, "instrument_name")
        self._instruments = instruments
        self._groups = {topic: instruments[name.encode()] for topic, name in (groups or {}).items()}

    def read(self, messages: Sequence[Message]) -> tuple[Trades, NDArray[np.int64], list[Rejected]]:
        """Decode messages that follow each other in a partition.

        Returns:
            The trades, for each its place among the messages, and what is no trade.

        Raises:
            UnavailableError: The schema registry is needed and does not answer.
        """
        values = list(map(Message.value, messages))
        keys = list(map(Message.key, messages))
        batch = self._decoder.decode(values, keys)
        frame, rows, rejected = batch.frame, batch.rows, batch.rejected
        fits = _fits(frame)
        if not fits.all():
            error = InvalidRecordError(
                "price or amount is no finite number, or a time is not in the years 1 to 9999",
                stage="validate",
            )
            rejected = sorted(
                [*rejected, *(Rejected(int(row), error) for row in rows[~fits])],
                key=lambda item: item.index,
            )
            frame, rows = frame.filter(fits), rows[fits]
        offset = _offsets(messages)[rows]
        group = self._groups.get(messages[0].topic() or "")
        if group is None:
            if len(rows) < len(keys):
                keys = [keys[row] for row in rows.tolist()]
            instrument = np.fromiter(
                map(self._instruments.__getitem__, keys),  # type: ignore[arg-type]  # compared with the names
                dtype=np.int32,
                count=len(keys),
            )
        else:
            instrument = np.full(len(rows), group, dtype=np.int32)
        trades = Trades(
            offset=offset,
            instrument=instrument,
            trade_seq=frame["trade_seq"].to_numpy() if group is None else offset,
            timestamp=frame["timestamp"].to_numpy(),
            received_at=frame["received_at"].to_numpy(),
            price=frame["price"].to_numpy(),
            amount=frame["amount"].to_numpy(),
        )
        return trades, rows, rejected


def _fits(frame: pl.DataFrame) -> NDArray[np.bool_]:
    fits: NDArray[np.bool_] = np.isfinite(frame["price"].to_numpy()) & np.isfinite(
        frame["amount"].to_numpy()
    )
    for name in ("timestamp", "received_at"):
        times = frame[name].to_numpy()
        fits &= (times >= _FIRST_MS) & (times <= _LAST_MS)
    return fits


def _offsets(messages: Sequence[Message]) -> NDArray[np.int64]:
    first, last = messages[0].offset() or 0, messages[-1].offset() or 0
    if last - first + 1 == len(messages):  # no holes, as compaction and transactions leave them
        return np.arange(first, last + 1, dtype=np.int64)
    return np.fromiter(map(Message.offset, messages), dtype=np.int64, count=len(messages))
