#!/bin/bash
#SBATCH --job-name=promof-train-pore
#SBATCH --partition=low
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=1
#SBATCH --mem=1024M
#SBATCH --gres=gpu:1
#SBATCH --time=60
#SBATCH --signal=USR2@20
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output='/data/my runs (ü) 100% '"'"'a'"'"'/pore/logs/%j_0_log.out'
#SBATCH --error='/data/my runs (ü) 100% '"'"'a'"'"'/pore/logs/%j_0_log.err'

export OMP_NUM_THREADS=1
export MASTER_ADDR=127.0.0.1
export GLOO_SOCKET_IFNAME=lo
export SUBMITIT_PREEMPT_SIGNAL=USR2

# Each process sees all GPUs of its node.
srun --unbuffered --cpus-per-task=1 --kill-on-bad-exit=1 \
    --output='/data/my runs (ü) 100% '"'"'a'"'"'/pore/logs/%j_%t_log.out' --error='/data/my runs (ü) 100% '"'"'a'"'"'/pore/logs/%j_%t_log.err' \
    env --block-signal=USR2 --block-signal=TERM /opt/promof/bin/python -u -m hpc.cluster.jobs train '/data/my runs (ü) 100% '"'"'a'"'"'/pore'
