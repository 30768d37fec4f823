"""The two JDBC sinks: what they need, made; their configuration, applied; their state, told.

`apply` can be run at any time and any number of times:

1. wait for Kafka, Connect and Postgres, saying for which;
2. create the tables (`sinks.tables`) and the topics, each only where it is missing;
3. put each connector's configuration where it differs from what Connect has;
4. restart what has failed, and wait until every task runs.

One connector serves all topics of its kind, so Connect gives it one dead-letter topic, named
after it: `raw-consumer-jdbc-sink-dlq`. An average's later revision is never overwritten by an
older one: both stand under one key, so in one partition and in order, and of the rows of one
batch with one key the reduction buffer writes the last.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from kstream_agg.core.errors import ContractError, SettingsError, UnavailableError
from kstream_agg.core.logs import get_logger
from kstream_agg.core.names import dead_letter_topic
from kstream_agg.core.settings import config_dir, read_secret
from kstream_agg.kafka.cluster import KafkaCluster, TopicConfiguration, topic_configuration
from kstream_agg.sinks.definition import Definition, read_definition, render
from kstream_agg.sinks.narrowing import is_narrowed, widened
from kstream_agg.sinks.postgres import connect, jdbc_url
from kstream_agg.sinks.settings import AGG_SINK, RAW_SINK, native_registry_url
from kstream_agg.sinks.tables import Table, average_table, ensure, raw_table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from kstream_agg.core.settings import TopicSettings
    from kstream_agg.sinks.connect_api import ConnectClient, ConnectorStatus
    from kstream_agg.sinks.patience import Patience
    from kstream_agg.sinks.settings import AggregatorView, ToolSettings

__all__ = ["Sink", "apply", "load_sinks", "placeholders", "wait_until_running"]

_log = get_logger(__name__)
# A task that fails again right after its restart will go on failing.
_RESTARTS: Final = 2
_FILES: Final = ((RAW_SINK, "raw-pg.json"), (AGG_SINK, "agg-pg.json"))


@dataclass(frozen=True, slots=True)
class Sink:
    """A connector with the topics it reads and the tables it writes."""

    definition: Definition
    topics: tuple[str, ...]
    tables: tuple[Table, ...]
    compact: bool

    @property
    def name(self) -> str:
        """The connector's name."""
        return self.definition.name

    @property
    def dead_letter_topic(self) -> str:
        """Where records go that its converter cannot read."""
        return dead_letter_topic(self.name)

    def topic_configurations(self, settings: TopicSettings) -> list[TopicConfiguration]:
        """Its topics as they should be created."""
        read = [topic_configuration(name, settings, compact=self.compact) for name in self.topics]
        return [*read, topic_configuration(self.dead_letter_topic, settings, partitions=1)]


def load_sinks(aggregator: AggregatorView, folder: Path | None = None) -> tuple[Sink, Sink]:
    """Both sinks, from their files and the channels of the settings.

    Args:
        aggregator: Names the raw topics and the topics of averages.
        folder: The configuration folder; default `config_dir()`.

    Raises:
        SettingsError: A file is missing or wrong.
    """
    folder = folder or config_dir()
    raw, agg = (read_definition(folder / token / file) for token, file in _FILES)
    raw_topics, average_topics = aggregator.raw_topics, aggregator.average_topics
    return (
        Sink(raw, raw_topics, tuple(map(raw_table, raw_topics)), compact=False),
        Sink(agg, average_topics, tuple(map(average_table, average_topics)), compact=True),
    )


def placeholders(sink: Sink, settings: ToolSettings) -> dict[str, str]:
    """What stands for each placeholder of a sink's file; holds a secret, never log it."""
    postgres = settings.postgres
    password = read_secret(postgres.password, postgres.password_file)
    if password is None:
        raise SettingsError(
            "the sinks need Postgres' password",
            remedy="set KSTREAM__POSTGRES__PASSWORD or KSTREAM__POSTGRES__PASSWORD_FILE",
        )
    return {
        "topics": ",".join(sink.topics),
        "dead_letter_topic": sink.dead_letter_topic,
        "replication_factor": str(settings.topic.replication_factor),
        "registry_url": settings.connect.registry_url or native_registry_url(settings.registry),
        "postgres_url": settings.connect.postgres_url or jdbc_url(postgres),
        "postgres_user": postgres.user,
        "postgres_password": password,
    }


def apply(
    sinks: Sequence[Sink], settings: ToolSettings, client: ConnectClient, patience: Patience
) -> list[ConnectorStatus]:
    """Apply the sinks' configuration; see the module's docstring.

    Args:
        sinks: The sinks.
        settings: Where everything is.
        client: Kafka Connect.
        patience: How long to wait for all of it.

    Returns:
        The connectors' states: all of them run.

    Raises:
        UnavailableError: Something does not answer in time, or a task does not get to run.
        ContractError: Connect or Postgres refuse; a task fails for good.
        SettingsError: A connector's file is wrong.
    """
    configs = [render(s.definition, placeholders(s, settings), s.topics) for s in sinks]
    # 1. and 2.
    cluster = KafkaCluster(settings.kafka, "connectors")
    patience.until_available("Kafka", cluster.topics)
    postgres = patience.until_available("Postgres", lambda: connect(settings.postgres))
    with postgres:
        for change in ensure(postgres, [table for sink in sinks for table in sink.tables]):
            _log.info("table changed", change=change)
    cluster.create_topics([t for s in sinks for t in s.topic_configurations(settings.topic)])
    patience.until_available("Kafka Connect", client.names)
    # 3.
    for sink, config in zip(sinks, configs, strict=True):
        # Connect answers 409 while its workers rebalance, which takes a moment.
        current = patience.until_available("Kafka Connect", partial(client.config, sink.name))
        if current is not None and widened(current) == config:
            # It may be going row by row just now: `connectors watch` brings it back.
            _log.info("connector unchanged", connector=sink.name)
        else:
            put = partial(client.put_config, sink.name, config)
            patience.until_available("Kafka Connect", put)
            _log.info("connector configured", connector=sink.name, topics=list(sink.topics))
    # 4.
    return [wait_until_running(client, sink.name, patience) for sink in sinks]


def wait_until_running(client: ConnectClient, name: str, patience: Patience) -> ConnectorStatus:
    """Wait until the connector and its tasks run, restarting what has failed a few times.

    Raises:
        ContractError: A task keeps failing; the message says why.
        UnavailableError: It does not get to run in time.
    """
    restarts = 0
    while True:
        status = patience.until_available("Kafka Connect", partial(client.status, name))
        if status.is_running:
            return status
        config = patience.until_available("Kafka Connect", partial(client.config, name)) or {}
        if status.has_failed and not is_narrowed(config):
            if restarts == _RESTARTS:
                raise ContractError(
                    f"connector {name} fails: {status.failure}",
                    remedy="correct the cause and run `kstream-agg connectors apply` again",
                )
            restarts += 1
            patience.until_available("Kafka Connect", partial(client.restart_failed, name))
        if patience.is_over:
            raise UnavailableError(
                f"connector {name} is {status.state} and does not get to run in time",
                remedy="`kstream-agg connectors watch` has begun to mend it, and must run to end it"
                if is_narrowed(config)
                else "look into Kafka Connect's log",
            )
        patience.pause()
