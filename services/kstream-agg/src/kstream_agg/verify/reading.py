"""Bounded reads, under the name that the parts of `verify` and its users know."""

from kstream_agg.kafka.topic_reader import Position, Record, Span, TopicPart, TopicReader

__all__ = ["Position", "Record", "Span", "TopicPart", "TopicReader"]
