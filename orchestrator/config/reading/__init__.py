"""From bytes to checked models: documents with the place of each value, and their faults."""
