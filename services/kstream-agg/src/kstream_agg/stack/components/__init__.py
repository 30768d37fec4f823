"""The components of the stack, one module each: how it is prepared, started and asked."""
