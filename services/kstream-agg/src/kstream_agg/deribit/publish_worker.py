"""The thread that takes what was received and commits it to Kafka."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

from kstream_agg.core.errors import DeliveryError
from kstream_agg.deribit.handover import Inquiry

if TYPE_CHECKING:
    from collections.abc import Callable

    from kstream_agg.core.clock import Clock
    from kstream_agg.deribit.handover import HandOver
    from kstream_agg.deribit.publisher import TradePublisher
    from kstream_agg.kafka.transactions import TransactionWriter

__all__ = ["PublishWorker"]

_STANDSTILL_S: Final = 60.0  # a broker's restart takes less
_IDLE_WAIT_S: Final = 0.2


class PublishWorker:
    """The thread that takes receipts and produces their records.

    Args:
        handover: Where they come from.
        publisher: Makes transactions of them.
        writer: What it writes with.
        clock: Measures how long nothing is committed.
        on_failure: Called once when the thread cannot go on.
    """

    def __init__(
        self,
        handover: HandOver,
        publisher: TradePublisher,
        writer: TransactionWriter,
        clock: Clock,
        on_failure: Callable[[], None],
    ) -> None:
        self._handover = handover
        self._publisher = publisher
        self._writer = writer
        self._clock = clock
        self._on_failure = on_failure
        self._progress_at = clock.monotonic()
        self._failure: BaseException | None = None
        self._ended = threading.Event()
        # A daemon: a producer that waits for a dead Kafka must not keep the process alive.
        self._thread = threading.Thread(target=self._run, name="publish", daemon=True)

    def start(self) -> None:
        """Begin to take receipts."""
        self._thread.start()

    def finish(self, within_s: float) -> None:
        """Wait until what was handed over is committed; the hand-over must be closed.

        Args:
            within_s: Longest wait in seconds.

        Raises:
            DeliveryError: Kafka has not taken everything.
        """
        self._thread.join(within_s)
        self._ended.set()  # ends a commit that waits for Kafka
        if self._failure is not None:
            raise self._failure
        if self._thread.is_alive():
            raise DeliveryError(
                f"Kafka took nothing for {within_s:.0f} s; trades in {len(self._handover)} bytes "
                "of frames, and what was on its way, are not written",
                remedy="is Kafka running? they are fetched from the exchange at the next start",
            )

    def check(self) -> str | None:
        """A health check: what is wrong when records wait and none is committed."""
        still = self._clock.monotonic() - self._progress_at
        if still <= _STANDSTILL_S:
            return None
        waiting = self._writer.pending
        return f"Kafka has taken nothing for {still:.0f} s, while {waiting} records wait"

    def _run(self) -> None:
        try:
            while not self._handover.finished:
                self._step()
            self._publisher.commit(self._may_wait)
        except BaseException as error:  # noqa: BLE001 - a thread's end must reach the main thread, whatever it is
            self._failure = error
            self._writer.abandon()  # readers need not wait for the next start to see what follows
            self._on_failure()

    def _step(self) -> None:
        publisher = self._publisher
        due_in = publisher.due_in()
        if due_in is not None and due_in <= 0:
            publisher.commit(self._may_wait)
            self._progress_at = self._clock.monotonic()
            return
        item = self._handover.get(_IDLE_WAIT_S if due_in is None else due_in)
        if item is None:
            self._writer.poll()
            if due_in is None:
                self._progress_at = self._clock.monotonic()
        elif isinstance(item, Inquiry):
            item.carry_out(publisher)
        else:
            publisher.publish(item)

    def _may_wait(self) -> bool:
        return not self._ended.is_set()
