"""What a simulated exchange remembers over a restart, so that it goes on like a real one.

Without it a second start would hand out the first one's `trade_seq` again, as other trades. With
a state file the recording keeps the times it was first played at, and the loop goes on with the
next number:

- after a clean stop, at once: the exchange was closed in between, and nothing happened there;
- after a crash, as if it had run on: what the loop would have played until now has happened, and
  the history calls know it. A trade is never numbered twice and no number is left out.

What a loop played before a clean stop is not in the history of later starts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from kstream_agg.core.errors import SettingsError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["SimulatorState", "StateFile"]


class SimulatorState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far a recording was played. The recording itself is played to its end.

    Args:
        recording: Its name.
        trades: How many trades of it are played.
        last_ms: Time of its last trade as it was played, in milliseconds since the epoch.
        looped: Trades the loop had played when this was written.
        written_ms: When that was.
        loop: The loop's trades per second from then on; 0 when it was stopped cleanly.
    """

    recording: str
    trades: int
    last_ms: int
    looped: int
    written_ms: int
    loop: float

    def looped_since(self, now_ms: int) -> int:
        """Trades the loop would have played from then until now, were it still running."""
        return max(0, int((now_ms - self.written_ms) * self.loop / 1000))


class StateFile:
    """The file of a simulator's state.

    Args:
        path: Where it is; its folder exists.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self, recording: str, trades: int) -> SimulatorState | None:
        """The state, or None at the first start.

        Args:
            recording: Name of the recording that is to be played.
            trades: How many trades of it.

        Raises:
            SettingsError: The file cannot be read, or tells of another recording.
        """
        try:
            state = msgspec.json.decode(self._path.read_bytes(), type=SimulatorState)
        except FileNotFoundError as error:
            if not self._path.parent.is_dir():
                raise _cannot_write(self._path, "its folder does not exist") from error
            return None
        except (OSError, msgspec.DecodeError) as error:
            raise SettingsError(
                f"the simulator's state '{self._path}' cannot be read: {error}",
                remedy="remove the file together with the trades that were played into the stack",
            ) from error
        if (state.recording, state.trades) != (recording, trades):
            raise SettingsError(
                f"'{self._path}' tells of {state.trades} trades of '{state.recording}', not of "
                f"{trades} of '{recording}': their numbers would mix",
                remedy="play another recording into a data folder of its own "
                "(KSTREAM__DATA_DIR=FOLDER), or empty this one (make reset)",
            )
        return state

    def save(self, state: SimulatorState) -> None:
        """Replace the state, all at once.

        Raises:
            SettingsError: The file cannot be written.
        """
        fresh = self._path.with_name(self._path.name + ".new")
        try:
            fresh.write_bytes(msgspec.json.encode(state))
            fresh.replace(self._path)
        except OSError as error:
            raise _cannot_write(self._path, str(error.strerror)) from error


def _cannot_write(path: Path, why: str) -> SettingsError:
    return SettingsError(
        f"the simulator's state '{path}' cannot be written: {why}",
        remedy="name a file in an existing folder",
    )
