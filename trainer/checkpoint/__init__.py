"""Everything between a tensor and a commit record, and back."""
