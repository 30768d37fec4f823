"""A simulated exchange: its world, its protocol and its playback, pure; one module moves bytes."""
