"""The test kit: pipelines without Kafka, on an in-memory broker and a clock that a test moves."""

from kstream_agg.pipeline.testing.bench import BenchWorker, PipelineBench, memory_clients
from kstream_agg.pipeline.testing.broker import MemoryBroker, StoredRecord
from kstream_agg.pipeline.testing.consumer import MemoryConsumer
from kstream_agg.pipeline.testing.producer import MemoryProducer

__all__ = [
    "BenchWorker",
    "MemoryBroker",
    "MemoryConsumer",
    "MemoryProducer",
    "PipelineBench",
    "StoredRecord",
    "memory_clients",
]
