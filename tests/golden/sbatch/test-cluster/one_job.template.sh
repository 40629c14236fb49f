#!/bin/bash
#SBATCH --job-name=promof-train-pore
#SBATCH --partition=low
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=2
#SBATCH --cpus-per-task=1
#SBATCH --mem=3072M
#SBATCH --gres=gpu:2
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
export MPIR_CVAR_CH4_NETMOD=ofi
export MPIR_CVAR_NOLOCAL=1

# Slurm's signals are for the two steps. The shell outlives them: if it ended, Slurm would take the job for finished,
# and requeue nothing.
trap : TERM USR2

train() {
    # Each process sees all GPUs of its node.
    srun --overlap --nodes=2 --ntasks=2 --ntasks-per-node=1 \
        --unbuffered --cpus-per-task=1 --kill-on-bad-exit=1 \
        --output='/data/my runs (ü) 100% '"'"'a'"'"'/pore/logs/%j_train_%t_log.out' --error='/data/my runs (ü) 100% '"'"'a'"'"'/pore/logs/%j_train_%t_log.err' \
        env --block-signal=USR2 --block-signal=TERM /opt/promof/bin/python -u -m hpc.cluster.jobs train '/data/my runs (ü) 100% '"'"'a'"'"'/pore'
}

evaluate() {
    # MPI ranks, one GPU each; the death of one ends them all.
    srun --overlap --nodes=2 --ntasks=4 --ntasks-per-node=2 \
        --unbuffered --cpus-per-task=1 --kill-on-bad-exit=1 --mpi=pmi2 --gpus-per-task=1 \
        --output='/data/my runs (ü) 100% '"'"'a'"'"'/pore/logs/%j_evaluate_%t_log.out' --error='/data/my runs (ü) 100% '"'"'a'"'"'/pore/logs/%j_evaluate_%t_log.err' \
        env --block-signal=USR2 --block-signal=TERM /opt/promof/bin/python -u -m hpc.cluster.jobs evaluate '/data/my runs (ü) 100% '"'"'a'"'"'/pore'
}

alive() { kill -0 "$1" 2>/dev/null; }

train &
trainer=$!
evaluator=
starts=0
# Evaluators that end before training does are started again, ten times at most.
while alive "$trainer"; do
    if [ -z "$evaluator" ] || ! alive "$evaluator"; then
        if [ "$starts" -eq 10 ]; then
            echo "the evaluators ended 10 times before training did; see their logs" >&2
            exit 1
        fi
        evaluate &
        evaluator=$!
        starts=$((starts + 1))
    fi
    sleep 2
done

# They leave by themselves when the campaign has ended; after a minute the end of the job ends them.
for _ in {1..60}; do
    alive "$evaluator" || break
    sleep 1
done
wait "$trainer"
