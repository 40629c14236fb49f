"""A private Slurm on this machine, and what must hold on it."""
