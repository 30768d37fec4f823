"""Passes of the agg-producer over a filled topic."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Final

from confluent_kafka import ConsumerGroupState
from confluent_kafka.admin import AdminClient

from kstream_agg.core.errors import UnavailableError
from kstream_agg.core.metrics import COMMITS, RECORDS_CONSUMED
from kstream_agg.core.names import channel_topic
from processes import POLL_S, Service, watch
from workload import copy_topic, make_topic

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import psutil

    from kstream_agg.stack.endpoints import StackEndpoints
    from processes import Pass

__all__ = ["aggregate"]

# Asking a supervisor for its workers' metrics costs some milliseconds of a core each time.
_LOOK_AT_WORKERS_S: Final = 0.25
_JOIN_WITHIN_S: Final = 60.0
# While they are held, members say nothing to their group.
_PATIENT: Final = {"KAFKA__PROPERTIES": '{"session.timeout.ms": 180000}'}


def aggregate(  # noqa: PLR0913, PLR0917 - a pass's facts
    endpoints: StackEndpoints,
    folder: Path,
    channel: str,
    total: int,
    group: str,
    workers: int = 1,
    **changes: str,
) -> Pass:
    """One pass over a topic that is filled.

    Several workers all have their partitions before there is a record: one that joins while another
    reads gets its own some seconds later, when most of a topic of seconds is read. So they are
    held (SIGSTOP) while a new topic is filled with the channel's records. Time begins when each has
    counted something.

    Args:
        endpoints: The stack.
        folder: Where it runs.
        channel: The topic's.
        total: The topic's records.
        group: A consumer group that nobody had; of several workers it names their topic, too.
        workers: How many processes.
        changes: Further settings.
    """
    topic = channel_topic(channel)
    if workers == 1:
        with _service(endpoints, folder, channel, group, changes) as service:
            return _watched(service, topic, total, workers)
    own = f"trades.option.{''.join(filter(str.isalnum, group)).upper()}.100ms"
    copy = channel_topic(own)
    make_topic(endpoints, copy)
    changes = _PATIENT | changes | {"WORKERS": str(workers)}
    with _service(endpoints, folder, own, group, changes) as service:
        _wait_for_members(endpoints, group, service, workers)
        with _held(service.process):
            copy_topic(endpoints, topic, copy, total)
        return _watched(service, copy, total, workers)


def _service(
    endpoints: StackEndpoints, folder: Path, channel: str, group: str, changes: dict[str, str]
) -> Service:
    own = {"CHANNELS": channel, "GROUP_ID": group, "TELEMETRY__EXPORTER": "none"} | changes
    return Service(("agg-producer",), endpoints.environment, folder, own)


def _watched(service: Service, topic: str, total: int, workers: int) -> Pass:
    return watch(
        lambda: service.counter(RECORDS_CONSUMED.name, topic, workers),
        total,
        service.process,
        poll_s=_LOOK_AT_WORKERS_S if workers > 1 else POLL_S,
    )


def _wait_for_members(endpoints: StackEndpoints, group: str, service: Service, count: int) -> None:
    """Each has partitions, and has signed on for them: that is its first commit."""
    admin = AdminClient({"bootstrap.servers": endpoints.bootstrap_servers})
    deadline = time.monotonic() + _JOIN_WITHIN_S
    while True:
        found = admin.describe_consumer_groups([group])[group].result()
        having = sum(bool(member.assignment.topic_partitions) for member in found.members)
        commits = service.counters(COMMITS.name, 'outcome="committed"')
        is_stable = found.state == ConsumerGroupState.STABLE
        if is_stable and having == count and sum(map(bool, commits)) == count:
            return
        if time.monotonic() > deadline:
            raise UnavailableError(f"{group} has not got {count} members in {_JOIN_WITHIN_S:.0f} s")
        time.sleep(_LOOK_AT_WORKERS_S)


@contextlib.contextmanager
def _held(supervisor: psutil.Process) -> Iterator[None]:
    """Its workers stand still in the block."""
    workers = supervisor.children()
    for worker in workers:
        worker.suspend()
    try:
        yield
    finally:
        for worker in workers:
            worker.resume()
