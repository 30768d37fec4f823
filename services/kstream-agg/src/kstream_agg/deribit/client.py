"""Moves bytes between the exchange and a `Session`, and opens the next session for ever.

Whatever ends a session, a name that does not resolve included, leads to the next attempt. What the
session receives goes into a `HandOver`; while that is full nothing is read from the socket.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Final

from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from kstream_agg.core.logs import get_logger
from kstream_agg.core.metrics import FRAMES_RECEIVED, SESSION_CONNECTS, SESSION_UP
from kstream_agg.deribit.backoff import Backoff
from kstream_agg.deribit.events import (
    BadFrame,
    ChannelsMissing,
    Event,
    Ignored,
    Lost,
    Notice,
    Refused,
    Send,
    Subscribed,
    Trades,
)
from kstream_agg.deribit.handover import Receipt
from kstream_agg.deribit.session import Session, SessionTimes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from websockets.asyncio.client import ClientConnection

    from kstream_agg.core.service import ServiceContext
    from kstream_agg.deribit.handover import HandOver
    from kstream_agg.deribit.settings import ExchangeSettings

__all__ = ["StreamClient"]

_log = get_logger(__name__)

_TICK_S: Final = 0.25  # timers of the session are seconds long; four wake-ups a second cost nothing
_CLOSE_TIMEOUT_S: Final = 2.0
_STABLE_S: Final = 30.0  # a session that ends sooner counts as a failed attempt
_STUCK_S: Final = 30.0  # no healthy event loop pauses so long


class StreamClient:
    """The live source of trades.

    Args:
        settings: Where the exchange is.
        channels: What to subscribe to.
        handover: Takes what is received.
        context: Clock, metrics, health (ready while every channel is subscribed) and the event
            that ends the client.
        jitter: A random number in [0, 1) for the waits between attempts.
    """

    def __init__(
        self,
        settings: ExchangeSettings,
        channels: Sequence[str],
        handover: HandOver,
        context: ServiceContext,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._settings = settings
        self._channels = tuple(channels)
        self._handover = handover
        self._clock = context.clock
        self._health = context.health
        self._stop = context.stop
        self._frames = context.metrics.counter(FRAMES_RECEIVED)
        self._connects = context.metrics.counter(SESSION_CONNECTS)
        self._up = context.metrics.gauge(SESSION_UP)
        self._backoff = Backoff(settings.reconnect_min_s, settings.reconnect_max_s, jitter)
        self._times = SessionTimes(heartbeat_interval=settings.heartbeat_interval_s)
        self._was_ready = False
        self._lost: Lost | None = None
        self._waiting_for_room = False
        self._ticked_at: float | None = None
        context.health.add_check("exchange_client", self._check)

    async def run(self) -> None:
        """Receive until `stop` is set.

        Raises:
            ChannelRefusedError: On a first start the exchange does not give us the channels.
        """
        sessions = asyncio.create_task(self._run_sessions())
        stopped = asyncio.create_task(self._wait_for_stop())
        try:
            await asyncio.wait({sessions, stopped}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sessions, stopped):
                task.cancel()
            await asyncio.gather(sessions, stopped, return_exceptions=True)
            self._up.set(0)
        if not sessions.cancelled():
            sessions.result()

    async def _wait_for_stop(self) -> None:
        while not self._stop.is_set():  # noqa: ASYNC110 - set by a signal handler, not in this loop
            await asyncio.sleep(_TICK_S)

    async def _run_sessions(self) -> None:
        while True:
            started = self._clock.monotonic()
            opened = False
            self._lost = None
            try:
                async with self._connect() as websocket:
                    opened = True
                    lost = await self._run_session(websocket)
            except (OSError, WebSocketException, TimeoutError, EOFError, UnicodeError) as error:
                # UnicodeError: a host name that cannot be written as a DNS name.
                lost = Lost(_describe(error))
            self._up.set(0)
            if self._clock.monotonic() - started > _STABLE_S:
                self._backoff.reset()
            await self._wait(lost, opened=opened)

    def _connect(self) -> connect:
        return connect(
            self._settings.url,
            compression="deflate" if self._settings.compression else None,
            max_size=self._settings.max_frame_bytes,
            open_timeout=self._settings.connect_timeout_s,
            close_timeout=_CLOSE_TIMEOUT_S,
            ping_interval=None,  # the session's own heartbeat tells whether the other side lives
        )

    async def _run_session(self, websocket: ClientConnection) -> Lost:
        self._connects.inc()
        attempts = None if self._was_ready else self._settings.subscribe_attempts
        session = Session(self._channels, attempts=attempts, times=self._times)
        await self._apply(websocket, session, session.start(self._clock.monotonic()))
        tasks = {
            asyncio.create_task(self._read(websocket, session)),
            asyncio.create_task(self._tick(websocket, session)),
        }
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in done:
            task.result()
        return self._lost or Lost("ended without a reason")

    async def _read(self, websocket: ClientConnection, session: Session) -> None:
        clock = self._clock
        while self._lost is None:
            frame = await websocket.recv(decode=False)
            self._frames.inc()
            events = session.receive(frame, clock.monotonic())
            await self._apply(websocket, session, events)

    async def _tick(self, websocket: ClientConnection, session: Session) -> None:
        while self._lost is None:
            now = self._ticked_at = self._clock.monotonic()
            # While we do not read, the exchange's silence is ours.
            if not self._waiting_for_room:
                await self._apply(websocket, session, session.poll(now))
            await asyncio.sleep(_TICK_S)

    async def _apply(
        self, websocket: ClientConnection, session: Session, events: Iterable[Event]
    ) -> None:
        for event in events:
            match event:
                case Trades(batch=batch):
                    await self._hand_over(
                        Receipt(batch, self._clock.now_ms(), "stream", session.simulated)
                    )
                case BadFrame():
                    _log.warning("frame set aside", reason=str(event.error))
                    await self._hand_over(
                        Receipt(event, self._clock.now_ms(), "stream", session.simulated)
                    )
                case Send(text=text):
                    await websocket.send(text)
                case Lost():
                    self._lost = event
                case Refused(error=error):
                    raise error
                case _:
                    self._report(session, event)

    async def _hand_over(self, receipt: Receipt) -> None:
        if self._handover.try_put(receipt):
            return
        self._waiting_for_room = True
        try:
            await self._handover.put(receipt)
        finally:
            self._waiting_for_room = False

    def _report(self, session: Session, event: Event) -> None:
        match event:
            case Subscribed(channels=channels):
                self._was_ready = True
                self._up.set(1)
                self._health.set_ready()
                _log.info("subscribed", channels=channels, simulated=session.simulated)
            case ChannelsMissing(channels=channels, reason=reason, retry_s=retry_s):
                names = ", ".join(channels)
                self._health.set_not_ready(f"the exchange leaves out {names}: {reason}")
                _log.warning(
                    "the exchange leaves channels out",
                    channels=channels,
                    reason=reason,
                    retry_in_s=retry_s,
                )
            case Notice(message=message):
                _log.warning("notice from the exchange", message=message)
            case Ignored(what=what):
                _log.debug("message ignored", what=what)
            case _:
                pass

    async def _wait(self, lost: Lost, *, opened: bool) -> None:
        wait = self._backoff.next_wait(lost.wait_s)
        reason = lost.reason
        url = self._settings.url
        if opened:
            _log.warning("the exchange session has ended", reason=reason, retry_in_s=round(wait, 1))
        else:
            _log.warning(
                "the exchange cannot be reached",
                url=url,
                reason=reason,
                retry_in_s=round(wait, 1),
                alternative="make demo plays a recorded session without the exchange",
            )
        self._health.set_not_ready(f"no session with the exchange at {url}: {reason}")
        until = self._clock.monotonic() + wait
        while (left := until - self._clock.monotonic()) > 0:
            self._ticked_at = self._clock.monotonic()
            await asyncio.sleep(min(_TICK_S, left))

    def _check(self) -> str | None:
        if self._ticked_at is None:
            return None
        still = self._clock.monotonic() - self._ticked_at
        limit = _STUCK_S + self._settings.connect_timeout_s
        return f"the exchange client has stood still for {still:.0f} s" if still > limit else None


def _describe(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return str(error) or type(error).__name__
