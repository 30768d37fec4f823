"""Sets of sequence numbers that stay small where the numbers run without holes."""

from __future__ import annotations

from bisect import bisect_right

__all__ = ["SeqSet"]


class SeqSet:
    """A set of integers kept as runs `[first, last]`."""

    __slots__ = ("_firsts", "_lasts")

    def __init__(self) -> None:
        self._firsts: list[int] = []
        self._lasts: list[int] = []

    def add(self, number: int) -> bool:
        """Add a number; False when it is there already."""
        firsts, lasts = self._firsts, self._lasts
        place = bisect_right(firsts, number) - 1  # the run that begins at or before it
        if place >= 0 and number <= lasts[place]:
            return False
        joins_left = place >= 0 and lasts[place] == number - 1
        joins_right = place + 1 < len(firsts) and firsts[place + 1] == number + 1
        if joins_left and joins_right:
            lasts[place] = lasts.pop(place + 1)
            del firsts[place + 1]
        elif joins_left:
            lasts[place] = number
        elif joins_right:
            firsts[place + 1] = number
        else:
            firsts.insert(place + 1, number)
            lasts.insert(place + 1, number)
        return True

    def __contains__(self, number: int) -> bool:
        place = bisect_right(self._firsts, number) - 1
        return place >= 0 and number <= self._lasts[place]

    def __len__(self) -> int:
        return sum(last - first + 1 for first, last in zip(self._firsts, self._lasts, strict=True))

    @property
    def lowest(self) -> int:
        """The lowest number.

        Raises:
            IndexError: The set is empty.
        """
        return self._firsts[0]

    def count(self, first: int, last: int) -> int:
        """How many of the numbers from `first` to `last` are in the set."""
        place = max(0, bisect_right(self._firsts, first) - 1)
        found = 0
        while place < len(self._firsts) and self._firsts[place] <= last:
            found += max(0, min(last, self._lasts[place]) - max(first, self._firsts[place]) + 1)
            place += 1
        return found

    def holes(self) -> list[tuple[int, int]]:
        """The runs of numbers that are missing between the lowest and the highest."""
        ends = zip(self._lasts, self._firsts[1:], strict=False)
        return [(last + 1, first - 1) for last, first in ends]
