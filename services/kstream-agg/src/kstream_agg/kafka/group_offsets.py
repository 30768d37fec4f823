"""What a group has committed, asked in a way that the client survives."""

from __future__ import annotations

from typing import TYPE_CHECKING

from confluent_kafka import ConsumerGroupTopicPartitions, KafkaError, KafkaException

if TYPE_CHECKING:
    from confluent_kafka import TopicPartition
    from confluent_kafka.admin import AdminClient

__all__ = ["group_offsets"]


def group_offsets(admin: AdminClient, group: str, timeout_s: float) -> list[TopicPartition]:
    """A group's committed offsets; none for a group that does not exist.

    A coordinator that is loading or has moved must be met by another request than the one for the
    offsets, which would end the process: librdkafka 2.16 then looks for the consumer of a client
    that has none (rd_kafka_cgrp_op in rd_kafka_handle_OffsetFetch).

    Args:
        admin: Whom to ask with.
        group: The group's name.
        timeout_s: Of each of the two requests, in seconds.

    Raises:
        KafkaException: The coordinator does not answer, or refuses.
    """
    try:
        admin.describe_consumer_groups([group], request_timeout=timeout_s)[group].result()
        request = [ConsumerGroupTopicPartitions(group)]
        answer = admin.list_consumer_group_offsets(request, request_timeout=timeout_s)
        return list(answer[group].result().topic_partitions)
    except KafkaException as error:
        if error.args[0].code() == KafkaError.GROUP_ID_NOT_FOUND:
            return []
        raise
