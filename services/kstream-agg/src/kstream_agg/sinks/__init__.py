"""Postgres through Kafka Connect: tables and connectors."""
