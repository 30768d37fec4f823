"""Records, errors, settings, clock and telemetry: what every layer stands on."""
