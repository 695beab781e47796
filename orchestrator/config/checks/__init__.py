"""What may not stand together in a job file, or is dangerous."""
