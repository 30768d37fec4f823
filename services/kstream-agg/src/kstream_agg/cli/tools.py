"""What the small tools share: finding the stack, printing to a terminal, quiet logs."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Final

from rich.console import Console

from kstream_agg.core.logs import configure_logging
from kstream_agg.core.settings import ENV_PREFIX, load_settings
from kstream_agg.kafka.brokers import BROKERS_VARIABLE
from kstream_agg.kafka.cluster import KafkaCluster
from kstream_agg.sinks.settings import AggregatorView, ToolSettings, load_aggregator_view
from kstream_agg.stack.docker import find_project
from kstream_agg.stack.endpoints import find_running

if TYPE_CHECKING:
    from kstream_agg.core.settings import LogSettings

__all__ = ["connect", "open_cluster", "open_tools", "output"]

# Not a terminal: let no table be folded to 80 columns.
_WIDE: Final = 400
_BROKERS: Final = f"{ENV_PREFIX}KAFKA__BOOTSTRAP_SERVERS"
_ANSWER_S: Final = 2.0


def open_tools(tool: str) -> tuple[ToolSettings, AggregatorView]:
    """Settings of the tools and what they need to know of the aggregator; sets up logging.

    Where a stack runs (`$KSTREAM_STACK_DIR`, else the checkout's live or demo folder, else its
    project in Docker Compose), its addresses and channels are the defaults. Environment variables
    go before them, and where the environment names the brokers (`KAFKA_BROKERS` will do), it
    describes another stack: nothing is taken from this one.

    Args:
        tool: The subcommand, written into log lines.

    Raises:
        SettingsError: A setting is wrong.
    """
    if BROKERS_VARIABLE in os.environ:
        os.environ.setdefault(_BROKERS, os.environ[BROKERS_VARIABLE])
    if _BROKERS not in os.environ:
        for name, value in _running_environment().items():
            os.environ.setdefault(name, value)
    settings = load_settings(ToolSettings, "tools")
    configure_logging(_quiet(settings.log), tool)
    return settings, load_aggregator_view()


def _running_environment() -> dict[str, str]:
    local = None if os.environ.get("STACK") == "docker" else find_running()
    if local is not None:
        return local.environment
    project = find_project()
    return {} if project is None else project.environment()


def _quiet(log: LogSettings) -> LogSettings:
    """A tool's own output is what counts: people get warnings only, unless they ask for more."""
    if "level" in log.model_fields_set:
        return log
    return log.model_copy(update={"level": "warning"})


def open_cluster(settings: ToolSettings, tool: str) -> KafkaCluster:
    """The Kafka cluster, once it has answered.

    Raises:
        UnavailableError: No broker answers within a few seconds.
    """
    cluster = KafkaCluster(settings.kafka, tool)
    cluster.wait_for_brokers(threading.Event(), _ANSWER_S)
    return cluster


def connect(tool: str) -> KafkaCluster:
    """The Kafka cluster of the stack that runs, for tools that need no more.

    Raises:
        SettingsError: A setting is wrong.
        UnavailableError: No broker answers within a few seconds.
    """
    settings, _ = open_tools(tool)
    return open_cluster(settings, tool)


def output() -> Console:
    """Where a tool prints its tables: standard output, as wide as it is or as they need."""
    console = Console()
    return console if console.is_terminal else Console(width=_WIDE)
