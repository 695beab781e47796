"""The records of a run directory, on any storage: attempts, log, checkpoints, streams."""
