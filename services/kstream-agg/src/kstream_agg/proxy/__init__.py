"""HTTP in, Kafka out: the push proxy. `service` runs it, `handler` holds the contract."""
