"""Helper programs of the command line: merge, generate, data check."""
