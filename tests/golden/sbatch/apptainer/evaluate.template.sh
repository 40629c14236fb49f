#!/bin/bash
#SBATCH --job-name=promof-evaluate-pore
#SBATCH --partition=batch
#SBATCH --account=my-project
#SBATCH --qos=normal
#SBATCH --exclusive
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --gpus-per-node=8
#SBATCH --time=720
#SBATCH --signal=USR2@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output='/data/my runs (ü) 100% '"'"'a'"'"'/pore/logs/%j_0_log.out'
#SBATCH --error='/data/my runs (ü) 100% '"'"'a'"'"'/pore/logs/%j_0_log.err'

export APPTAINER_BIND="$SCRATCH"
export PROMOF_IMAGE="$SCRATCH/promof.sif"
export MPIR_CVAR_CH4_NETMOD=ofi
export OMP_NUM_THREADS=1
export NCCL_SOCKET_IFNAME=hsn0
export GLOO_SOCKET_IFNAME=hsn0
export APPTAINERENV_HF_HUB_OFFLINE=1
export SUBMITIT_PREEMPT_SIGNAL=USR2
export MPIR_CVAR_NOLOCAL=1

# MPI ranks, one GPU each; the death of one ends them all, and the next start does what is missing.
srun --unbuffered --cpus-per-task=12 --kill-on-bad-exit=1 --mpi=pmi2 --gpus-per-task=1 \
    --output='/data/my runs (ü) 100% '"'"'a'"'"'/pore/logs/%j_%t_log.out' --error='/data/my runs (ü) 100% '"'"'a'"'"'/pore/logs/%j_%t_log.err' \
    env --block-signal=USR2 --block-signal=TERM apptainer exec --nv "$PROMOF_IMAGE" env --block-signal=USR2 --block-signal=TERM python -u -m hpc.cluster.jobs evaluate '/data/my runs (ü) 100% '"'"'a'"'"'/pore'
