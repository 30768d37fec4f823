"""The local stack: real Kafka, registry, Connect, Postgres and Zipkin as supervised processes."""
