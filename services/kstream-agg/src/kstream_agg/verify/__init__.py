"""Independent recomputation: what stands in topics and tables against what should."""
