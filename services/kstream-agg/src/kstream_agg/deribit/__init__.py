"""The exchange: session protocol, client, raw-producer, recordings and simulator."""
