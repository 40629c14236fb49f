#!/bin/bash

# Parameters
#SBATCH --account=my-project
#SBATCH --constraint=a100
#SBATCH --cpus-per-task=16
#SBATCH --error='/data/my runs (ü) 100% '"'"'a'"'"'/pore/logs/%j_0_log.err'
#SBATCH --gres=gpu:a100:4
#SBATCH --job-name=promof-train-pore
#SBATCH --mem=450560M
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --open-mode=append
#SBATCH --output='/data/my runs (ü) 100% '"'"'a'"'"'/pore/logs/%j_0_log.out'
#SBATCH --partition=gpu
#SBATCH --requeue
#SBATCH --signal=USR2@300
#SBATCH --time=1440

# setup
module purge
module load gcc openmpi python/3.11
source "$HOME/promof/bin/activate"
export OMP_NUM_THREADS=1
export NCCL_SOCKET_IFNAME=ib0
export GLOO_SOCKET_IFNAME=ib0
export SUBMITIT_PREEMPT_SIGNAL=USR2

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output '/data/my runs (ü) 100% '"'"'a'"'"'/pore/logs/%j_%t_log.out' --error '/data/my runs (ü) 100% '"'"'a'"'"'/pore/logs/%j_%t_log.err' --cpus-per-task=16 --kill-on-bad-exit=1 env --block-signal=USR2 --block-signal=TERM python -u -m submitit.core._submit '/data/my runs (ü) 100% '"'"'a'"'"'/pore/logs'
