"""What happens to the frames of one connection: pure; frames in, frames and steps out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

import msgspec

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterable

    from kstream_agg.deribit.simulation.scenario import CloseKind, Scenario

__all__ = ["Cut", "LinkFaults", "Pause", "Step"]

_NOTIFICATION: Final = b'{"jsonrpc":"2.0","method":"subscription","params":{"channel":"trades.'
_DATA: Final = b',"data":['
_END: Final = b"]}}"


@dataclass(frozen=True, slots=True)
class Pause:
    """Write nothing for so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Cut:
    """End the connection."""

    kind: CloseKind


Step: TypeAlias = bytes | Pause | Cut
"""A frame to be written, or what happens before the next one."""


class LinkFaults:
    """The faults of one connection.

    Args:
        scenario: Gives what goes wrong now; it can change.
        rng: Of this connection.
        may_cut: Asked before each end of the connection; False keeps it open.
    """

    def __init__(
        self,
        scenario: Callable[[], Scenario],
        rng: random.Random,
        may_cut: Callable[[], bool],
    ) -> None:
        self._scenario = scenario
        self._rng = rng
        self._may_cut = may_cut
        self._held: list[bytes] = []
        self._unmerged: bytes | None = None
        self._until_cut: int | None = None

    def apply(self, frames: Iterable[bytes]) -> list[Step]:
        """What becomes of frames that are due.

        What is held back from a batch follows with the next one; `flush` gives it at the end.
        """
        steps: list[Step] = []
        for frame in frames:
            if not frame.startswith(_NOTIFICATION):
                steps.append(frame)
                continue
            steps += self._change(frame)
            if self._is_cut_due():
                steps.append(Cut(self._rng.choice(self._scenario().disconnect_kinds)))
                break
        return steps

    def flush(self) -> list[bytes]:
        """What was held back."""
        held, self._held = self._held, []
        if self._unmerged is not None:
            held.append(self._unmerged)
            self._unmerged = None
        return held

    def _change(self, frame: bytes) -> list[Step]:
        scenario, chance = self._scenario(), self._rng.random
        if self._unmerged is not None:
            merged = _merge(self._unmerged, frame)
            self._unmerged = None
        elif chance() < scenario.merge:
            self._unmerged = frame
            return []
        else:
            merged = [frame]
        frames = _split(frame) if merged == [frame] and chance() < scenario.split else merged
        steps: list[Step] = []
        for piece in frames:
            if chance() < scenario.drop:
                continue
            if chance() < scenario.delay:
                steps.append(Pause(scenario.delay_s))
            if chance() < scenario.reorder:
                self._held.append(piece)
                continue
            steps.append(piece)
            if chance() < scenario.repeat:
                steps.append(piece)
            steps += self._held
            self._held = []
        return steps

    def _is_cut_due(self) -> bool:
        every = self._scenario().disconnect_every
        if not every:
            return False
        if self._until_cut is None:
            self._until_cut = self._rng.randint(1, 2 * every)
        self._until_cut -= 1
        return self._until_cut <= 0 and self._may_cut()


def _split(frame: bytes) -> list[bytes]:
    """Two notifications for one; trades are told apart by parsing."""
    head, _, _ = frame.partition(_DATA)
    data = msgspec.json.decode(frame[len(head) + len(_DATA) - 1 : -2], type=list[msgspec.Raw])
    middle = len(data) // 2
    if not middle:
        return [frame]
    parts = (data[:middle], data[middle:])
    return [head + _DATA + b",".join(bytes(item) for item in part) + _END for part in parts]


def _merge(first: bytes, second: bytes) -> list[bytes]:
    """One notification for two of one channel; others stay as they are."""
    head, _, rest = second.partition(_DATA)
    if not first.startswith(head + _DATA):
        return [first, second]
    return [first[: -len(_END)] + b"," + rest]
