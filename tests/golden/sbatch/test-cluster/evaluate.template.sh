#!/bin/bash
#SBATCH --job-name=promof-evaluate-pore
#SBATCH --partition=low
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=2
#SBATCH --cpus-per-task=1
#SBATCH --mem=2048M
#SBATCH --gres=gpu:2
#SBATCH --time=60
#SBATCH --signal=USR2@20
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output='/data/my runs (ü) 100% '"'"'a'"'"'/pore/logs/%j_0_log.out'
#SBATCH --error='/data/my runs (ü) 100% '"'"'a'"'"'/pore/logs/%j_0_log.err'

export MPIR_CVAR_CH4_NETMOD=ofi
export OMP_NUM_THREADS=1
export MASTER_ADDR=127.0.0.1
export GLOO_SOCKET_IFNAME=lo
export SUBMITIT_PREEMPT_SIGNAL=USR2
export MPIR_CVAR_NOLOCAL=1

# MPI ranks, one GPU each; the death of one ends them all, and the next start does what is missing.
srun --unbuffered --cpus-per-task=1 --kill-on-bad-exit=1 --mpi=pmi2 --gpus-per-task=1 \
    --output='/data/my runs (ü) 100% '"'"'a'"'"'/pore/logs/%j_%t_log.out' --error='/data/my runs (ü) 100% '"'"'a'"'"'/pore/logs/%j_%t_log.err' \
    env --block-signal=USR2 --block-signal=TERM /opt/promof/bin/python -u -m hpc.cluster.jobs evaluate '/data/my runs (ü) 100% '"'"'a'"'"'/pore'
