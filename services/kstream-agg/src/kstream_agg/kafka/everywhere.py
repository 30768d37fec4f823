"""Waiting until each broker of a cluster has heard of a change.

The controller answers before the brokers have heard of what it did, and a client asks whichever
broker it likes: a record for a new partition is refused by a client whose broker has not heard of
it yet.

librdkafka lets nobody choose the broker that is asked for metadata (a client that knows one address
learns the others and asks them too), but an answer says whose it is: new clients ask until each
broker has answered.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from kstream_agg.core.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from confluent_kafka.admin import BrokerMetadata, ClusterMetadata

__all__ = ["each_knows", "known_everywhere"]

_log = get_logger(__name__)

# Brokers hear of a change within milliseconds; a loaded one takes seconds.
_PATIENCE_S: Final = 15.0
_REQUEST_TIMEOUT_S: Final = 5.0
_PAUSE_S: Final = 0.02
# A client's first connection has no broker's number yet.
_THE_ADDRESS_ASKED: Final = -1


def known_everywhere(
    admin: AdminClient,
    config: Mapping[str, str | int | float],
    holds: Callable[[ClusterMetadata], bool],
    *,
    timeout_s: float = _PATIENCE_S,
) -> bool:
    """Wait until something holds in what each broker says of the cluster.

    A broker that cannot be reached is left out: no client is told anything wrong by it.

    Args:
        admin: A client of the cluster.
        config: Its properties, with which others are made.
        holds: Looks at a broker's answer.
        timeout_s: The longest wait in seconds, for all brokers.

    Returns:
        Whether it came to hold everywhere within the time.

    Raises:
        KafkaException: No broker answers.
    """
    deadline = time.monotonic() + timeout_s
    waited_for = dict(admin.list_topics(timeout=_REQUEST_TIMEOUT_S).brokers)
    heard_of_it = False
    while waited_for:
        if time.monotonic() >= deadline:
            return False
        asked = next(iter(waited_for.values()))
        try:
            with AdminClient({**config, "bootstrap.servers": _address(asked)}) as client:
                found = client.list_topics(timeout=_REQUEST_TIMEOUT_S)
        except KafkaException as error:
            _left_out(asked.id, error)
            del waited_for[asked.id]
            continue
        if not holds(found):
            time.sleep(_PAUSE_S)
            continue
        heard_of_it = True
        answered = found.orig_broker_id
        waited_for.pop(asked.id if answered == _THE_ADDRESS_ASKED else answered, None)
    return heard_of_it


def each_knows(
    brokers: Iterable[int], knows: Callable[[int], bool], *, timeout_s: float = _PATIENCE_S
) -> bool:
    """Wait until something holds at each broker, for what can be asked of a chosen one.

    A broker that cannot be reached is left out.

    Args:
        brokers: Their numbers.
        knows: Asks the broker of this number. A `KafkaException` it raises means that the broker
            has not heard of the topic, or is not there.
        timeout_s: The longest wait in seconds, for all brokers.

    Returns:
        Whether it came to hold everywhere within the time.
    """
    deadline = time.monotonic() + timeout_s
    for broker in brokers:
        while not _holds_at(broker, knows):
            if time.monotonic() >= deadline:
                return False
            time.sleep(_PAUSE_S)
    return True


def _holds_at(broker: int, knows: Callable[[int], bool]) -> bool:
    try:
        return knows(broker)
    except KafkaException as error:
        if error.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
            return False
        _left_out(broker, error)
        return True


def _left_out(broker: int, error: KafkaException) -> None:
    _log.info("a broker is not waited for", broker=broker, error=str(error))


def _address(broker: BrokerMetadata) -> str:
    host = str(broker.host)
    return f"[{host}]:{broker.port}" if ":" in host else f"{host}:{broker.port}"
