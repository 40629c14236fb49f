#!/bin/bash

# Parameters
#SBATCH --cpus-per-task=1
#SBATCH --error='/data/my runs (ü) 100% '"'"'a'"'"'/pore/logs/%j_0_log.err'
#SBATCH --job-name=promof-evaluate-pore
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output='/data/my runs (ü) 100% '"'"'a'"'"'/pore/logs/%j_0_log.out'
#SBATCH --requeue
#SBATCH --signal=USR2@300
#SBATCH --time=1440

# setup
export MPIR_CVAR_CH4_NETMOD=ofi
export SUBMITIT_PREEMPT_SIGNAL=USR2
export MPIR_CVAR_NOLOCAL=1

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output '/data/my runs (ü) 100% '"'"'a'"'"'/pore/logs/%j_%t_log.out' --error '/data/my runs (ü) 100% '"'"'a'"'"'/pore/logs/%j_%t_log.err' --cpus-per-task=1 --kill-on-bad-exit=1 --mpi=pmi2 env --block-signal=USR2 --block-signal=TERM /opt/promof/bin/python -u -m submitit.core._submit '/data/my runs (ü) 100% '"'"'a'"'"'/pore/logs'
