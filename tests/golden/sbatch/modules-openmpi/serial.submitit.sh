#!/bin/bash

# Parameters
#SBATCH --account=my-project
#SBATCH --constraint=a100
#SBATCH --cpus-per-task=16
#SBATCH --error='/data/my runs (ü) 100% '"'"'a'"'"'/pore/logs/%j_0_log.err'
#SBATCH --job-name=promof-serial-pore
#SBATCH --mem=65536M
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output='/data/my runs (ü) 100% '"'"'a'"'"'/pore/logs/%j_0_log.out'
#SBATCH --partition=cpu
#SBATCH --requeue
#SBATCH --signal=USR2@300
#SBATCH --time=720

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
srun --unbuffered --output '/data/my runs (ü) 100% '"'"'a'"'"'/pore/logs/%j_%t_log.out' --error '/data/my runs (ü) 100% '"'"'a'"'"'/pore/logs/%j_%t_log.err' --cpus-per-task=16 env --block-signal=USR2 --block-signal=TERM python -u -m submitit.core._submit '/data/my runs (ü) 100% '"'"'a'"'"'/pore/logs'
