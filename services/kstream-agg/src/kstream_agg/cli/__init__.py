"""The `kstream-agg` command."""
