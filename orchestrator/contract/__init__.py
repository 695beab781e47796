"""What the orchestrator and the trainer must agree upon. Standard library only."""
