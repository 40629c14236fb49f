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
    # MPI ranks, one GPU each; the death of one ends them all. The allocation is the trainer's: they stay while it works,
    # and leave it to requeue the job.
    PROMOF_BESIDE=train srun --overlap --nodes=2 --ntasks=4 --ntasks-per-node=2 \
        --unbuffered --cpus-per-task=1 --kill-on-bad-exit=1 --mpi=pmi2 --gpus-per-task=1 \
        --output='/data/my runs (ü) 100% '"'"'a'"'"'/pore/logs/%j_evaluate_%t_log.out' --error='/data/my runs (ü) 100% '"'"'a'"'"'/pore/logs/%j_evaluate_%t_log.err' \
        env --block-signal=USR2 --block-signal=TERM /opt/promof/bin/python -u -m hpc.cluster.jobs evaluate '/data/my runs (ü) 100% '"'"'a'"'"'/pore'
}

alive() { kill -0 "$1" 2>/dev/null; }

train &
trainer=$!
evaluate &
evaluator=$!
starts=1
left=
# Evaluators that end badly before training does are started again, ten times at most. Those that leave have a reason,
# which holds for others, too: a warning of Slurm, a STOP file, an end.
while alive "$trainer"; do
    if [ -z "$left" ] && ! alive "$evaluator"; then
        if wait "$evaluator" || [ -e '/data/my runs (ü) 100% '"'"'a'"'"'/pore/STOP' ]; then
            left=yes
        elif [ "$starts" -eq 10 ]; then
            echo "the evaluators ended badly 10 times before training did; see their logs" >&2
            exit 1
        else
            evaluate &
            evaluator=$!
            starts=$((starts + 1))
        fi
    fi
    sleep 2
done

# When the campaign has ended they leave by themselves, and may have a second potential to ask first. A minute is theirs
# where training failed.
wait "$trainer"
code=$?
for ((k = 0; k < 60 || code == 0; k++)); do
    alive "$evaluator" || break
    sleep 1
done
exit "$code"
