"""What a single value may be: durations, options of sbatch, variables, secrets."""
