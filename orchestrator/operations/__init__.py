"""What a person can ask for: submit, status, cancel, resume, repair, remove, check."""
