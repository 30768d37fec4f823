"""What a simulated exchange does to its clients: a scenario, from a file, by code or at run time.

Every number is a probability unless its name says otherwise; all are 0 by default. The same seed
does the same to the same frames.
"""

from __future__ import annotations

import tomllib
from pathlib import Path  # noqa: TC003 - pydantic needs it when the class is made
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kstream_agg.core.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["CloseKind", "Scenario", "change_scenario", "read_scenario"]

Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]
CloseKind: TypeAlias = Literal["clean", "abrupt", "silent"]
"""With a closing frame; cut without one; left open, and nothing comes any more."""


class Scenario(BaseModel):
    """What goes wrong, and how often."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    seed: int = 0

    # Notifications of trades, each for itself.
    drop: Share = 0.0
    repeat: Share = 0.0
    reorder: Share = 0.0
    """It comes behind the next one."""
    delay: Share = 0.0
    delay_s: float = Field(default=0.05, ge=0, le=60)
    split: Share = 0.0
    """Its trades come in two."""
    merge: Share = 0.0
    """Its trades come with the next one's."""

    # Connections.
    disconnect_every: int = Field(default=0, ge=0)
    """A connection ends after so many notifications on average; 0: never."""
    disconnects: int = Field(default=1_000_000, ge=0)
    """So many of them in all."""
    disconnect_kinds: tuple[CloseKind, ...] = ("clean", "abrupt")
    missed_trades: int = Field(default=0, ge=0)
    """So many trades happen while nobody is subscribed, then the playback waits; 0: it never
    waits."""
    refuse_handshakes: Share = 0.0
    """Answered with HTTP 429 or 503."""
    hold_heartbeats: bool = False
    too_many_requests: Share = 0.0
    """A websocket call is answered with 10028, and the session ends."""
    token_s: int = Field(default=900, ge=1)
    """So long a login lasts without being renewed; then the session ends."""
    maintenance_after: int = Field(default=0, ge=0)
    """After so many notifications the exchange goes into maintenance once; 0: never."""
    maintenance_s: float = Field(default=1.0, gt=0)

    # How trades are written.
    exponents: Share = 0.0
    unknown_fields: Share = 0.0
    unknown_values: Share = 0.0
    late_liquidations: Share = 0.0
    """The history gives a flag that the stream did not."""

    # Which trades there are besides the recorded ones.
    combos: Share = 0.0
    block_trades: Share = 0.0
    decimal_strikes: Share = 0.0

    # The history calls over REST.
    rest_slow: Share = 0.0
    rest_slow_s: float = Field(default=0.5, ge=0, le=120)
    rest_empty: Share = 0.0
    rest_fail: Share = 0.0
    """HTTP 500, a page that is no JSON, or a connection that is cut."""
    rest_limit: Share = 0.0
    """HTTP 429 or error 10028."""
    rest_leak: Share = 0.0
    """Answers begin behind the asked numbers and end beyond them."""

    clock_skew_ms: int = 0
    """How far the exchange's clock is ahead of the machine's."""

    @property
    def is_calm(self) -> bool:
        """Whether nothing goes wrong with frames and connections."""
        return not any(
            (
                self.drop,
                self.repeat,
                self.reorder,
                self.delay,
                self.split,
                self.merge,
                self.disconnect_every,
            )
        )


def read_scenario(path: Path) -> Scenario:
    """A scenario from a TOML file with its fields.

    Raises:
        SettingsError: The file cannot be read, or a field is unknown or wrong.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"the scenario '{path}' cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"the scenario '{path}' is not TOML: {error}") from error
    return change_scenario(Scenario(), values)


def change_scenario(scenario: Scenario, changes: Mapping[str, Any]) -> Scenario:
    """The scenario with some fields replaced; texts are read as TOML would write them.

    Raises:
        SettingsError: A field is unknown or wrong.
    """
    try:
        return Scenario.model_validate({**scenario.model_dump(), **changes})
    except ValidationError as error:
        wrong = "; ".join(
            f"{item['loc'][0]}: {item['msg']}" for item in error.errors(include_input=False)
        )
        raise SettingsError(f"wrong scenario: {wrong}") from error
