"""The scenario at work: what all connections and REST calls of a simulated exchange share."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, Final

from kstream_agg.deribit.simulation.link_faults import LinkFaults
from kstream_agg.deribit.simulation.rpc import RpcError
from kstream_agg.deribit.simulation.scenario import Scenario, change_scenario
from kstream_agg.deribit.simulation.spelling import Spelling

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kstream_agg.core.clock import Clock
    from kstream_agg.deribit.simulation.rpc import Moment

__all__ = ["Adversary", "SkewedClock"]

_OMITTED: Final = 2  # of the asked rows at an answer's begin, as measured on the archive


class SkewedClock:
    """Another clock, some way ahead; runs as fast.

    Args:
        clock: The other one.
        skew_ms: How far ahead.
    """

    def __init__(self, clock: Clock, skew_ms: int) -> None:
        self._clock = clock
        self._skew_ms = skew_ms

    def now_ms(self) -> int:
        """Wall-clock time in milliseconds since the epoch."""
        return self._clock.now_ms() + self._skew_ms

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back."""
        return self._clock.monotonic()


class Adversary:
    """Decides what goes wrong.

    Args:
        scenario: What, and how often; `change` replaces parts of it at run time.
    """

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.spelling = Spelling(lambda: self.scenario)
        self._rest = self._rng("rest")
        self._handshakes = self._rng("handshakes")
        self._calls = self._rng("calls")
        self._links = 0
        self._notifications = 0
        self._maintenance_until: float | None = None
        self.cuts = 0
        """Connections ended so far."""

    def change(self, changes: Mapping[str, Any]) -> Scenario:
        """Replace fields of the scenario.

        Raises:
            SettingsError: One is unknown or wrong.
        """
        self.scenario = change_scenario(self.scenario, changes)
        return self.scenario

    def link_faults(self) -> LinkFaults:
        """The faults of the next connection."""
        self._links += 1
        return LinkFaults(lambda: self.scenario, self._rng(f"link {self._links}"), self._may_cut)

    def refuses_handshake(self) -> int | None:
        """The HTTP status a handshake is refused with; None when it is not."""
        if self._handshakes.random() >= self.scenario.refuse_handshakes:
            return None
        return self._handshakes.choice((429, 503))

    def refuses_call(self, now: Moment) -> RpcError | None:
        """The error a websocket call is answered with; None when it is not."""
        if self.in_maintenance(now):
            return RpcError(11051, "system_maintenance")
        if self._calls.random() < self.scenario.too_many_requests:
            return RpcError(10028, "too_many_requests")
        return None

    def in_maintenance(self, now: Moment) -> bool:
        """Whether the exchange is under maintenance."""
        return self._maintenance_until is not None and now.monotonic < self._maintenance_until

    def begins_maintenance(self, notifications: int, now: Moment) -> bool:
        """Whether maintenance begins with so many more notifications sent; it does so once."""
        after = self.scenario.maintenance_after
        self._notifications += notifications
        if not after or self._notifications < after or self._maintenance_until is not None:
            return False
        self._maintenance_until = now.monotonic + self.scenario.maintenance_s
        return True

    def rest_delay_s(self) -> float:
        """How long an answer over REST takes."""
        return self.scenario.rest_slow_s if self._rest.random() < self.scenario.rest_slow else 0.0

    def rest_failure(self) -> int | None:
        """The HTTP status of a failure: 0 cuts the connection, 200 is a page that is no JSON."""
        if self._rest.random() < self.scenario.rest_limit:
            return 429
        if self._rest.random() < self.scenario.rest_fail:
            return self._rest.choice((500, 502, 200, 0))
        return None

    def spoil(self, method: str, result: object, later: list[Any]) -> object:
        """A result of the history calls as it is given.

        Args:
            method: The call.
            result: What is right.
            later: Trades that were not asked for.
        """
        if not (isinstance(result, dict) and "trades" in result):
            return result
        if self._rest.random() < self.scenario.rest_empty:
            return {"trades": [], "has_more": False}
        if self._rest.random() < self.scenario.rest_leak:
            by_number = method.endswith("by_instrument")
            omitted = _OMITTED if by_number and len(result["trades"]) > _OMITTED else 0
            return {**result, "trades": [*result["trades"][omitted:], *later]}
        return result

    def _may_cut(self) -> bool:
        if self.cuts >= self.scenario.disconnects:
            return False
        self.cuts += 1
        return True

    def _rng(self, part: str) -> random.Random:
        return random.Random(f"{self.scenario.seed} {part}")  # noqa: S311 - no secrets
