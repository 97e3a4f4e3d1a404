#!/usr/bin/env bash
# Train on a SLURM cluster. Options of sbatch come before the script, those of dist_mnist after it.
#
#     sbatch --nodes=2 --gpus-per-node=8 launch/slurm.sh model=resnet trainer.epochs=50
#     NPROC_PER_NODE=4 sbatch --nodes=2 --cpus-per-task=32 launch/slurm.sh    # without GPUs
#
# When its time is nearly up, or when a node, a launcher or the network is lost, the job requeues
# itself and continues its run. When it is preempted, SLURM requeues it, and it continues too.
# `scancel` ends it. It also ends after 100 requeues, or after three starts in a row that brought no
# new checkpoint. Where the cluster gives a GPU no CPUs of its own, add --cpus-per-gpu.
#
# Submit it with the virtual environment active, from a folder that all nodes share. The nodes need no
# internet access.
#SBATCH --job-name=dist_mnist
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
set -uo pipefail

fail() {
    echo "error: $*" >&2
    exit 1
}
if [[ ! ${SLURM_JOB_ID:-} || ${ENVIRONMENT:-} != BATCH ]]; then
    fail "submit this script with sbatch; inside of salloc, start \`srun --ntasks-per-node=1" \
        "launch/multi_node.sh\` with NNODES, HEAD and LAUNCH_ID"
elif ((${SLURM_HET_SIZE:-1} > 1)); then
    fail "this is a heterogeneous job, of which only the first part would train: use one kind of node"
fi

time_is_over=
was_terminated=
trap 'time_is_over=yes' USR1
trap 'was_terminated=yes' TERM # SLURM also sends it to the processes, so they save by themselves

# A task of an array must be addressed as <array id>_<task id>: its last task has the job id of the
# whole array. If sbatch was called inside a task of another array, the variables are of that one.
job=$SLURM_JOB_ID
task=${SLURM_ARRAY_JOB_ID:-}_${SLURM_ARRAY_TASK_ID:-}
if [[ $(scontrol show job "$task" 2>/dev/null) == "JobId=$job "* ]]; then
    job=$task
fi
shown=$(scontrol show job "$job")
SLURM_RESTART_COUNT=$(sed -n 's/.* Restarts=\([0-9]*\).*/\1/p' <<<"$shown")
export SLURM_RESTART_COUNT=${SLURM_RESTART_COUNT:-0}

# After `sbatch --export=...`, srun would not pass on this script's PATH. The others may be those of a
# job around this one, and contradict its own; without them a step gets all that the job has.
unset SLURM_EXPORT_ENV ${!SLURM_MEM_PER_*} ${!SLURM_GPUS_PER_*} SLURM_GPUS SLURM_CPUS_PER_GPU \
    SLURM_GPU_BIND SLURM_TRES_PER_TASK SLURM_NTASKS_PER_GPU

# sbatch runs a copy of this script in another folder; scontrol shows its path, then its arguments.
command=${shown#*$'\n'   Command=}
command=${command%%$'\n'   WorkDir=*}
command=${command%"${command##*[! ]}"} # without trailing spaces
script=${command%"${*:+ $*}"}
folder=${script%/*}
[[ -x $folder/multi_node.sh ]] ||
    fail "multi_node.sh is not in the folder of this script ('$script', according to SLURM)"

# Holds how many starts in a row brought no checkpoint; its modification time is this start's.
fruitless=.slurm-$SLURM_JOB_ID
export DIST_MNIST_SAVED=$PWD/$fruitless.saved # rank 0 writes it after every checkpoint
if ((SLURM_RESTART_COUNT == 0)) || [[ ! -f $fruitless ]]; then
    echo 0 >"$fruitless"
    rm -f "$DIST_MNIST_SAVED"
fi
touch "$fruitless"

export NNODES=$SLURM_NNODES
export LAUNCH_ID=$SLURM_JOB_ID.$SLURM_RESTART_COUNT # keeps processes of an earlier start out
export NPROC_PER_NODE=${NPROC_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}
# A port of the job's own, or the next one that no other program has.
FIND_PORT='
import socket, sys
for port in range(int(sys.argv[1]), 2**16):
    try:
        socket.create_server(("", port)).close()
    except OSError:
        continue
    print(port)
    break'
PORT=$("${PYTHON:-python}" -c "$FIND_PORT" $((10000 + SLURM_JOB_ID % 20000))) || fail "python cannot be started"
export PORT
if ((${SLURM_CPUS_ON_NODE:-NPROC_PER_NODE} < NPROC_PER_NODE)); then
    echo "warning: $NPROC_PER_NODE processes share $SLURM_CPUS_ON_NODE CPU(s) on a node: submit with" \
        "--cpus-per-gpu or --cpus-per-task" >&2
fi

# Runs on each node, and outlives torchrun to report its end: 75 if it was told to stop for now, and
# 1 instead of 143 if srun ended it because of another node.
run_node='
    trap : TERM
    trap stopped=75 USR1
    HEAD=$SLURM_LAUNCH_NODE_IPADDR:$PORT "$0" "$@"
    status=$?
    exit "${stopped:-$((status == 143 ? 1 : status))}"'

srun --label --kill-on-bad-exit=1 --cpu-bind=none --ntasks="$SLURM_NNODES" --ntasks-per-node=1 \
    bash -c "$run_node" "$folder/multi_node.sh" "$@" &
srun=$!

is_running() { kill -0 "$srun" 2>/dev/null; }

while is_running && [[ ! $time_is_over ]]; do
    wait "$srun"
done
# A signal to srun would end its processes at once, so they are told directly once they exist.
while is_running && ! scancel --signal=TERM "$job.0" 2>/dev/null; do
    sleep 1
done
while is_running; do
    wait "$srun"
done
wait "$srun"
status=$?

was_lost() {
    ((status > 128)) || ! timeout 60 srun --ntasks="$SLURM_NNODES" --ntasks-per-node=1 true
}
# The signal is the same as that of scancel, but SLURM notes when it preempts a job.
was_preempted() {
    shown=$(scontrol show job "$job")
    [[ $shown =~ PreemptTime=([0-9][^ ]*) ]] && local preempted=${BASH_REMATCH[1]} &&
        [[ $shown =~ [[:space:]]StartTime=([0-9][^ ]*) && ! $preempted < ${BASH_REMATCH[1]} ]]
}
was_stopped() { [[ $time_is_over ]] || ((status == 75)) || was_preempted; }
may_go_on() {
    ((SLURM_RESTART_COUNT < 100)) &&
        { [[ $time_is_over || ! $was_terminated ]] || was_preempted; }
}

has_progress() {
    local starts=$(($(<"$fruitless") + 1))
    [[ $DIST_MNIST_SAVED -nt $fruitless ]] && starts=0
    echo "$starts" >"$fruitless"
    ((starts < 3)) && return
    echo "error: job $job has been started $starts times in a row without a new checkpoint: give it" \
        "more time (sbatch --time), or set trainer.checkpoint_every_steps" >&2
    return 1
}

if ((status != 0)) && may_go_on && { was_stopped || was_lost; } && may_go_on && has_progress; then
    scontrol requeue "$job"
else
    rm -f "$fruitless" "$DIST_MNIST_SAVED"
fi
exit "$status"
