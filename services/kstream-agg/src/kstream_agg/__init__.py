"""Kafka stream aggregation: trades in, exact averages out."""
