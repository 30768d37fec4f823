"""What is committed with a partition's offset, so that a replay knows where it ends.

`{"p": position, "w": watermark, "period": seconds}`: everything before the position has been
judged; `w` is the watermark there in ms, null before the first trade. The period guards against
a restart with other windows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from kstream_agg.aggregate.rules import NO_WATERMARK
from kstream_agg.core.logs import get_logger
from kstream_agg.pipeline.processor import CommitPoint

if TYPE_CHECKING:
    from kstream_agg.aggregate.state import PartitionState
    from kstream_agg.pipeline.processor import Partition

__all__ = ["Resume", "commit_point", "resume_from"]

_log = get_logger(__name__)


class _Note(msgspec.Struct):
    p: int
    w: int | None
    period: int


class Resume(msgspec.Struct, frozen=True):
    """Where a partition's state begins.

    Args:
        offset: The first offset to read; None for the partition's beginning.
        position: What is before it is a replay.
        watermark: The watermark at `position`, ms.
    """

    offset: int | None = None
    position: int = 0
    watermark: int = NO_WATERMARK


def commit_point(state: PartitionState, period_ms: int) -> CommitPoint:
    """What to commit for a partition's state."""
    watermark = None if state.watermark == NO_WATERMARK else state.watermark
    note = _Note(state.position, watermark, period_ms // 1000)
    return CommitPoint(state.resume_offset(), msgspec.json.encode(note).decode())


def resume_from(
    partition: Partition, committed: CommitPoint | None, end: int, period_ms: int
) -> Resume:
    """Where to begin.

    Args:
        partition: For the log.
        committed: What was committed last, if anything was.
        end: The partition's end offset: a position beyond it is another topic's, of the same name.
        period_ms: The period now; a commit under another one says nothing about its windows.
    """
    if committed is None:
        return Resume()
    if not committed.metadata:
        # Set by hand, as Kafka's own tools do: a beginning without a past.
        return Resume(committed.offset, committed.offset)
    try:
        note = msgspec.json.decode(committed.metadata, type=_Note)
    except msgspec.MsgspecError:
        reason = "the commit's metadata are not ours"
    else:
        if note.p > end:
            reason = "the topic ends before the committed position: it was made anew"
        elif note.period * 1000 != period_ms:
            reason = "the windows' period has changed"
        else:
            watermark = NO_WATERMARK if note.w is None else note.w
            return Resume(committed.offset, note.p, watermark)
    _log.warning("beginning anew", reason=reason, topic=partition.topic, partition=partition.number)
    return Resume()
