#!/bin/bash
#SBATCH --job-name=promof-serial-pore
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=4
#SBATCH --mem=16384M
#SBATCH --time=240
#SBATCH --signal=USR2@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output='/data/my runs (ü) 100% '"'"'a'"'"'/pore/logs/%j_0_log.out'
#SBATCH --error='/data/my runs (ü) 100% '"'"'a'"'"'/pore/logs/%j_0_log.err'

export SUBMITIT_PREEMPT_SIGNAL=USR2

srun --unbuffered --cpus-per-task=4 \
    --output='/data/my runs (ü) 100% '"'"'a'"'"'/pore/logs/%j_%t_log.out' --error='/data/my runs (ü) 100% '"'"'a'"'"'/pore/logs/%j_%t_log.err' \
    env --block-signal=USR2 --block-signal=TERM /opt/promof/bin/python -u -m hpc.cluster.jobs serial '/data/my runs (ü) 100% '"'"'a'"'"'/pore'
