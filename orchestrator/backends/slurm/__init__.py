"""Slurm, through its own commands: sbatch, squeue, sacct, scontrol, scancel."""
