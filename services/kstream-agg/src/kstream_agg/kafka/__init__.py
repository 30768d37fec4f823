"""Kafka and the schema registry: cluster, writer, reader, wire format."""
