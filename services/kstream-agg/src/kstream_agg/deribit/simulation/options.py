"""How a recording is played: the options, checked, and what they do to a recording."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from kstream_agg.core.errors import SettingsError
from kstream_agg.deribit.simulation.playback import Pace

if TYPE_CHECKING:
    from kstream_agg.deribit.recording import Recording

__all__ = ["SimulatorOptions", "change_options", "choose_trades"]


def _parse_speed(value: object) -> object:
    if value == "max":
        return value
    try:
        speed = float(str(value))
    except ValueError:
        speed = 0.0
    if not 0 < speed < math.inf:
        raise ValueError(f"'{value}' is neither a number above 0 nor max")
    return speed


Speed: TypeAlias = Annotated[float | Literal["max"], BeforeValidator(_parse_speed)]


class SimulatorOptions(BaseModel):
    """How a recording is played and where; the defaults are a test's."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    host: str = "127.0.0.1"
    port: int = Field(default=0, ge=0, lt=65536)
    """0 takes a free one."""
    speed: Speed = "max"
    """1 is the speed it was recorded at, N is N times that, `max` as fast as it is read."""
    shift_to_now: bool = False
    """Move the timestamps so that the recording ends when the simulator starts."""
    past_at_once: bool = False
    """Trades of the past happen at once, as fast as they are read; later ones at `speed`."""
    loop: float = Field(default=0, ge=0, le=100_000)
    """Trades per second, repeated with the present time after the recording's end; 0: none."""
    instruments: str | None = None
    """Play only instruments whose whole name matches this regular expression."""
    frame_trades: int = Field(default=100, ge=1, le=10_000)
    """Trades in a notification at most."""
    history: int = Field(default=200_000, ge=1)
    """Trades per currency that the history calls can still give; the oldest go first."""
    compression: bool = False
    """Offer permessage-deflate, as the exchange does; over loopback it only costs CPU."""
    seed: int = 0
    """For what is left to chance."""
    state: Path | None = None
    """A file that lets a later start go on where this one ends; see `simulation.state`."""

    @property
    def pace(self) -> Pace:
        """The part of these options that is about time."""
        speed = None if self.speed == "max" else self.speed
        return Pace(speed, self.past_at_once, self.loop)


OptionsT = TypeVar("OptionsT", bound=SimulatorOptions)


def change_options(options: OptionsT, changes: dict[str, Any]) -> OptionsT:
    """The options with some replaced.

    Raises:
        SettingsError: One is unknown or has a wrong value.
    """
    try:
        return type(options).model_validate({**options.model_dump(), **changes})
    except ValidationError as error:
        wrong = "; ".join(
            f"{item['loc'][0]}: {item['msg'].removeprefix('Value error, ')}"
            for item in error.errors(include_input=False)
        )
        raise SettingsError(f"wrong options of the simulator: {wrong}") from error


def choose_trades(recording: Recording, options: SimulatorOptions) -> Recording:
    """The part of a recording that the options name.

    Raises:
        SettingsError: The expression is wrong, or no trade is left.
    """
    if options.instruments is not None:
        try:
            wanted = re.compile(options.instruments)
        except re.error as error:
            raise SettingsError(
                f"instruments '{options.instruments}' is not a regular expression: {error}"
            ) from error
        recording = recording.only(name for name in recording.instruments if wanted.fullmatch(name))
    if not recording.trades:
        raise SettingsError(
            f"the recording '{recording.name}' has no trade to play",
            remedy="choose another recording, or other instruments",
        )
    return recording
