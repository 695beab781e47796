"""A rank without torch, and tiny random models of each family."""
