"""Kafka for programs: clusters, topics, writers, readers, groups, transactions.

    from kstream_agg.kafka import KafkaCluster, Record, TopicConfiguration

    cluster = KafkaCluster("127.0.0.1:9092", "my-program")
    cluster.create_topics([TopicConfiguration("greetings", partitions=3)])
    with cluster.writer("greetings") as writer:
        writer.produce(Record(b"hello", key="world"))

What is here is for programs of all kinds; the services' own parts of this layer (columns, dead
letters, the registry, exactly-once commits) are in its modules.
"""

from confluent_kafka import TopicPartition

from kstream_agg.kafka.cluster import KafkaCluster
from kstream_agg.kafka.codecs import AvroCodec, Codec, JsonCodec, MessagePackCodec, TextCodec
from kstream_agg.kafka.groups import ConsumerGroups, GroupDescription, GroupMember, PartitionLag
from kstream_agg.kafka.receiving import Reader, Rebalance, Start
from kstream_agg.kafka.record import ReceivedRecord, Record
from kstream_agg.kafka.sending import Delivered, Delivery, Writer
from kstream_agg.kafka.topics import (
    BrokerDescription,
    ClusterDescription,
    PartitionDescription,
    TopicConfiguration,
    TopicDescription,
)
from kstream_agg.kafka.transacting import Transactions

__all__ = [
    "AvroCodec",
    "BrokerDescription",
    "ClusterDescription",
    "Codec",
    "ConsumerGroups",
    "Delivered",
    "Delivery",
    "GroupDescription",
    "GroupMember",
    "JsonCodec",
    "KafkaCluster",
    "MessagePackCodec",
    "PartitionDescription",
    "PartitionLag",
    "Reader",
    "Rebalance",
    "ReceivedRecord",
    "Record",
    "Start",
    "TextCodec",
    "TopicConfiguration",
    "TopicDescription",
    "TopicPartition",
    "Transactions",
    "Writer",
]
