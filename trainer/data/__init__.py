"""Which samples a step takes, in which order, and micro-batches of them."""
