"""Which brokers are meant: those that are named, or those of the environment."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from kstream_agg.core.settings import KafkaSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["BROKERS_VARIABLE", "broker_settings"]

BROKERS_VARIABLE: Final = "KAFKA_BROKERS"
"""Names the brokers where a program does not: `host:port`, several with commas."""


def broker_settings(brokers: KafkaSettings | str | Sequence[str] | None = None) -> KafkaSettings:
    """How to reach a cluster.

    Args:
        brokers: `host:port`, several with commas or as a sequence; settings, where more than
            addresses is needed; None for those of `KAFKA_BROKERS`, else 127.0.0.1:9092.
    """
    if isinstance(brokers, KafkaSettings):
        return brokers
    if brokers is None:
        brokers = os.environ.get(BROKERS_VARIABLE) or KafkaSettings().bootstrap_servers
    servers = brokers if isinstance(brokers, str) else ",".join(brokers)
    return KafkaSettings(bootstrap_servers=servers)
