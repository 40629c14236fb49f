#!/bin/bash

# Parameters
#SBATCH --cpus-per-task=1
#SBATCH --error='/data/my runs (ü) 100% '"'"'a'"'"'/pore/logs/%j_0_log.err'
#SBATCH --gres=gpu:1
#SBATCH --job-name=promof-train-pore
#SBATCH --mem=1024M
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output='/data/my runs (ü) 100% '"'"'a'"'"'/pore/logs/%j_0_log.out'
#SBATCH --partition=low
#SBATCH --requeue
#SBATCH --signal=USR2@20
#SBATCH --time=60

# setup
export OMP_NUM_THREADS=1
export MASTER_ADDR=127.0.0.1
export GLOO_SOCKET_IFNAME=lo
export SUBMITIT_PREEMPT_SIGNAL=USR2

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output '/data/my runs (ü) 100% '"'"'a'"'"'/pore/logs/%j_%t_log.out' --error '/data/my runs (ü) 100% '"'"'a'"'"'/pore/logs/%j_%t_log.err' --cpus-per-task=1 --kill-on-bad-exit=1 env --block-signal=USR2 --block-signal=TERM /opt/promof/bin/python -u -m submitit.core._submit '/data/my runs (ü) 100% '"'"'a'"'"'/pore/logs'
