"""Windows and averages, and the agg-producer built on them."""
