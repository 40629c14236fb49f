#!/bin/bash

# Parameters
#SBATCH --account=my-project
#SBATCH --cpus-per-task=12
#SBATCH --error='/data/my runs (ü) 100% '"'"'a'"'"'/pore/logs/%j_0_log.err'
#SBATCH --exclusive
#SBATCH --gpus-per-node=8
#SBATCH --job-name=promof-evaluate-pore
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --open-mode=append
#SBATCH --output='/data/my runs (ü) 100% '"'"'a'"'"'/pore/logs/%j_0_log.out'
#SBATCH --partition=batch
#SBATCH --qos=normal
#SBATCH --requeue
#SBATCH --signal=USR2@300
#SBATCH --time=720

# setup
export APPTAINER_BIND="$SCRATCH"
export PROMOF_IMAGE="$SCRATCH/promof.sif"
export MPIR_CVAR_CH4_NETMOD=ofi
export OMP_NUM_THREADS=1
export NCCL_SOCKET_IFNAME=hsn0
export GLOO_SOCKET_IFNAME=hsn0
export APPTAINERENV_HF_HUB_OFFLINE=1
export SUBMITIT_PREEMPT_SIGNAL=USR2
export MPIR_CVAR_NOLOCAL=1

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output '/data/my runs (ü) 100% '"'"'a'"'"'/pore/logs/%j_%t_log.out' --error '/data/my runs (ü) 100% '"'"'a'"'"'/pore/logs/%j_%t_log.err' --cpus-per-task=12 --kill-on-bad-exit=1 --mpi=pmi2 --gpus-per-task=1 env --block-signal=USR2 --block-signal=TERM apptainer exec --nv "$PROMOF_IMAGE" env --block-signal=USR2 --block-signal=TERM python -u -m submitit.core._submit '/data/my runs (ü) 100% '"'"'a'"'"'/pore/logs'
