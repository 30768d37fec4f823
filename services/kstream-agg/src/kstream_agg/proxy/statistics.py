"""librdkafka's statistics, and the reference's 27 metrics that are made of them.

https://github.com/confluentinc/librdkafka/blob/master/STATISTICS.md
"""

from __future__ import annotations

from typing import Final

import msgspec

__all__ = ["BROKER_METRICS", "PRODUCER_METRICS", "TOPIC_METRICS", "Statistics"]

# Metric name → (librdkafka's field, help).
PRODUCER_METRICS: Final = {
    "kafka_producer_reply_queue_size": ("replyq", "Operations waiting in queue"),
    "kafka_producer_current_messages_in_queue": ("msg_cnt", "Messages in producer queues"),
    "kafka_producer_current_messages_in_queue_bytes": (
        "msg_size",
        "Size of messages in producer queues",
    ),
    "kafka_producer_total_requests_count": ("tx", "Requests sent to brokers"),
    "kafka_producer_total_bytes_sent": ("tx_bytes", "Bytes transmitted to brokers"),
    "kafka_producer_total_responses_received": ("rx", "Responses received from brokers"),
    "kafka_producer_total_bytes_received": ("rx_bytes", "Bytes received from brokers"),
    "kafka_producer_total_messages_sent": ("txmsgs", "Messages transmitted to brokers"),
    "kafka_producer_total_messages_bytes_sent": (
        "txmsg_bytes",
        "Message bytes transmitted to brokers",
    ),
    "kafka_producer_metadata_cache_topics_count": (
        "metadata_cache_cnt",
        "Topics in the metadata cache",
    ),
}
BROKER_METRICS: Final = {
    "kafka_producer_broker_state": (
        "state",
        "0 INIT, 1 DOWN, 2 CONNECT, 3 AUTH, 4 APIVERSION_QUERY, 5 AUTH_HANDSHAKE, 6 UP, 7 UPDATE",
    ),
    "kafka_producer_broker_state_age": (
        "stateage",
        "Time since the last broker state change, in microseconds",
    ),
    "kafka_producer_broker_outbuf_count": ("outbuf_cnt", "Requests awaiting transmission"),
    "kafka_producer_broker_outbuf_msg_count": ("outbuf_msg_cnt", "Messages awaiting transmission"),
    "kafka_producer_broker_waitresp_count": ("waitresp_cnt", "Requests awaiting a response"),
    "kafka_producer_broker_waitresp_msg_count": (
        "waitresp_msg_cnt",
        "Messages awaiting a response",
    ),
    "kafka_producer_broker_requests_sent": ("tx", "Requests sent to the broker"),
    "kafka_producer_broker_requests_sent_bytes": ("txbytes", "Bytes sent to the broker"),
    "kafka_producer_broker_transmission_errors": ("txerrs", "Transmission errors"),
    "kafka_producer_broker_request_retries": ("txretries", "Request retries"),
    "kafka_producer_request_timeouts": ("req_timeouts", "Requests that timed out"),
    "kafka_producer_broker_responses_count": ("rx", "Responses received from the broker"),
    "kafka_producer_broker_bytes_received": ("rxbytes", "Bytes received from the broker"),
    "kafka_producer_broker_errors_count": ("rxerrs", "Errors received"),
}
TOPIC_METRICS: Final = {
    "kafka_producer_topic_metadata_age": ("metadata_age", "Age of the topic's metadata, in ms"),
    "kafka_producer_topic_batchsize_avg": ("batchsize", "Average batch size, in bytes"),
    "kafka_producer_topic_batchcount_avg": ("batchcnt", "Average messages in a batch"),
}
_STATES: Final = {
    "INIT": 0,
    "DOWN": 1,
    "CONNECT": 2,
    "TRY_CONNECT": 2,
    "AUTH": 3,
    "AUTH_LEGACY": 3,
    "APIVERSION_QUERY": 4,
    "AUTH_HANDSHAKE": 5,
    "UP": 6,
    "UPDATE": 7,
}
_CONNECTED: Final = frozenset({"UP", "UPDATE"})


class _Window(msgspec.Struct, frozen=True):
    avg: float = 0.0


class _Broker(msgspec.Struct):
    name: str = ""
    source: str = ""
    state: str = "INIT"
    stateage: float = 0
    outbuf_cnt: float = 0
    outbuf_msg_cnt: float = 0
    waitresp_cnt: float = 0
    waitresp_msg_cnt: float = 0
    tx: float = 0
    txbytes: float = 0
    txerrs: float = 0
    txretries: float = 0
    req_timeouts: float = 0
    rx: float = 0
    rxbytes: float = 0
    rxerrs: float = 0


class _Topic(msgspec.Struct):
    metadata_age: float = 0
    batchsize: _Window = _Window()
    batchcnt: _Window = _Window()


class _Root(msgspec.Struct):
    replyq: float = 0
    msg_cnt: float = 0
    msg_size: float = 0
    tx: float = 0
    tx_bytes: float = 0
    rx: float = 0
    rx_bytes: float = 0
    txmsgs: float = 0
    txmsg_bytes: float = 0
    metadata_cache_cnt: float = 0
    brokers: dict[str, _Broker] = {}
    topics: dict[str, _Topic] = {}


_decode: Final = msgspec.json.Decoder(_Root).decode


class Statistics:
    """The newest statistics, as values of the reference's metrics."""

    def __init__(self) -> None:
        self.producer: dict[str, float] = dict.fromkeys(PRODUCER_METRICS, 0.0)
        self.brokers: dict[str, dict[str, float]] = {}
        self.topics: dict[str, dict[str, float]] = {}

    def read(self, text: str) -> bool:
        """Take over a report.

        Returns:
            Whether a broker is connected.

        Raises:
            msgspec.DecodeError: It is not what librdkafka writes.
        """
        root = _decode(text)
        self.producer = {
            name: float(getattr(root, attribute))
            for name, (attribute, _help) in PRODUCER_METRICS.items()
        }
        # Bootstrap connections are other names for brokers that are listed, or for none yet.
        brokers = [broker for broker in root.brokers.values() if broker.source != "internal"]
        self.brokers = {
            name: {broker.name: _broker_value(broker, attribute) for broker in brokers}
            for name, (attribute, _help) in BROKER_METRICS.items()
        }
        self.topics = {
            name: {topic: _topic_value(found, attribute) for topic, found in root.topics.items()}
            for name, (attribute, _help) in TOPIC_METRICS.items()
        }
        return any(broker.state in _CONNECTED for broker in brokers)


def _broker_value(broker: _Broker, attribute: str) -> float:
    if attribute == "state":
        return float(_STATES.get(broker.state, 0))
    return float(getattr(broker, attribute))


def _topic_value(topic: _Topic, attribute: str) -> float:
    found = getattr(topic, attribute)
    return found.avg if isinstance(found, _Window) else float(found)
