"""What a rank carries from step to step beside its tensors, and tensors as files."""
