"""A Slurm of scripts: the stories of a cluster in seconds, without a daemon or a package."""
