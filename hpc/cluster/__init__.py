"""Slurm: profiles of sites, texts of batch scripts, what the scheduler says of jobs."""
