"""What is recorded of each step, and who is told."""
