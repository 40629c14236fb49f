#!/bin/bash
#SBATCH --job-name=promof-evaluate-pore
#SBATCH --partition=gpu
#SBATCH --account=my-project
#SBATCH --constraint=a100
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --mem=450560M
#SBATCH --gres=gpu:a100:4
#SBATCH --time=1440
#SBATCH --signal=USR2@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output='/data/my runs (ü) 100% '"'"'a'"'"'/pore/logs/%j_0_log.out'
#SBATCH --error='/data/my runs (ü) 100% '"'"'a'"'"'/pore/logs/%j_0_log.err'

module purge
module load gcc openmpi python/3.11
source "$HOME/promof/bin/activate"
export OMP_NUM_THREADS=1
export NCCL_SOCKET_IFNAME=ib0
export GLOO_SOCKET_IFNAME=ib0
export SUBMITIT_PREEMPT_SIGNAL=USR2

# MPI ranks, one GPU each; the death of one ends them all, and the next start does what is missing.
srun --unbuffered --cpus-per-task=16 --kill-on-bad-exit=1 --mpi=pmix --gpus-per-task=1 \
    --output='/data/my runs (ü) 100% '"'"'a'"'"'/pore/logs/%j_%t_log.out' --error='/data/my runs (ü) 100% '"'"'a'"'"'/pore/logs/%j_%t_log.err' \
    env --block-signal=USR2 --block-signal=TERM python -u -m hpc.cluster.jobs evaluate '/data/my runs (ü) 100% '"'"'a'"'"'/pore'
