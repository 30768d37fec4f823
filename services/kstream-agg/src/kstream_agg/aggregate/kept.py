"""What the changelog of a partition's state holds, by key. Pure.

| key | value (MessagePack) |
|---|---|
| `{instrument}|{window_start}|{family}`, e.g. `BTC-X|1700000000000|5min` | the window's fields |
| `{instrument}|ewma` | the running average: a number, or three of the time-decayed form |
| `position` | a `Note`: where the state stands |
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from kstream_agg.aggregate.state import PartitionState
from kstream_agg.core.errors import ContractError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kstream_agg.aggregate.rules import WindowRules

__all__ = ["POSITION_KEY", "Note", "changes_of", "note_in", "restore"]

POSITION_KEY: Final = b"position"
_VERSION: Final = 1
_AVERAGE: Final = "ewma"

_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder().decode


class Note(msgspec.Struct, array_like=True, frozen=True):
    """Where a state stands.

    Args:
        position: The next input offset.
        watermark: The watermark there, ms.
        horizon: How far back windows are kept, ms.
        fingerprint: `WindowRules.fingerprint` of the rules it was made with.
        owner: The transactional id of the member that works on it; None once it has signed off.
        version: Of this form.
    """

    position: int
    watermark: int
    horizon: int
    fingerprint: str
    owner: str | None = None
    version: int = _VERSION

    def packed(self) -> bytes:
        """As it is kept."""
        return _encode(self)


_decode_note: Final = msgspec.msgpack.Decoder(Note).decode


def note_in(kept: Mapping[bytes, bytes]) -> Note | None:
    """Where the kept state stands; None when nothing was kept.

    Raises:
        ContractError: The note is none of ours.
    """
    packed = kept.get(POSITION_KEY)
    if packed is None:
        return None
    try:
        note = _decode_note(packed)
    except msgspec.MsgspecError as error:
        raise ContractError("the changelog's position cannot be read") from error
    if note.version != _VERSION:
        raise ContractError(
            f"the changelog was written in form {note.version}, this program reads {_VERSION}",
            remedy="run the version of kstream-agg that wrote it, or choose another group_id",
        )
    return note


def changes_of(
    state: PartitionState, rules: WindowRules, name_of: Callable[[int], str]
) -> tuple[list[tuple[bytes, bytes]], list[bytes]]:
    """What has changed since the last call: keys and values, and keys of what is gone."""
    by_family, averages = state.take_changes()
    values: list[tuple[bytes, bytes]] = []
    gone: list[bytes] = []
    for family, changes in zip(rules.families, by_family, strict=True):
        suffix = f"|{family.name}"
        for number, instrument, packed in changes:
            key = f"{name_of(instrument)}|{number * family.advance_ms}{suffix}".encode()
            if packed is None:
                gone.append(key)
            else:
                values.append((key, packed))
    for instrument, kept in averages:
        key = f"{name_of(instrument)}|{_AVERAGE}".encode()
        if kept is None:
            gone.append(key)
        else:
            values.append((key, _encode(kept)))
    return values, gone


def restore(
    note: Note,
    kept: Mapping[bytes, bytes],
    rules: WindowRules,
    instruments: Mapping[bytes, int],
    name_of: Callable[[int], str],
) -> PartitionState:
    """The state that was kept.

    Args:
        note: Where it stands.
        kept: The changelog, newest value by key.
        rules: Those it was made with.
        instruments: Numbers the instruments.
        name_of: The name of a number.

    Raises:
        ContractError: Something in it cannot be read.
    """
    state = PartitionState(
        rules, name_of, position=note.position, watermark=note.watermark, horizon=note.horizon
    )
    families = {family.name: index for index, family in enumerate(rules.families)}
    for key, value in kept.items():
        if key == POSITION_KEY:
            continue
        try:
            instrument, _, rest = key.rpartition(b"|")
            if rest == _AVERAGE.encode():
                state.restore_average(instruments[instrument], _decode(value))
                continue
            instrument, _, start = instrument.rpartition(b"|")
            family = families[rest.decode()]
            number = int(start) // rules.families[family].advance_ms
            state.restore_window(family, number, instruments[instrument], value)
        except (msgspec.MsgspecError, ValueError, TypeError, KeyError) as error:
            shown = key.decode("utf-8", "replace")
            raise ContractError(f"the changelog's '{shown}' cannot be read: {error}") from error
    return state
