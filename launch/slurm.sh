#!/usr/bin/env bash
# Train on a SLURM cluster. Options of sbatch come before the script, those of dist_mnist after it.
#
#     sbatch --nodes=2 --gpus-per-node=8 launch/slurm.sh model=resnet trainer.epochs=50
#     NPROC_PER_NODE=4 sbatch --nodes=2 --cpus-per-task=32 launch/slurm.sh    # without GPUs
#
# When its time is nearly up, or when a node, a launcher or the network is lost, the job requeues
# itself and continues its run. When it is preempted, SLURM requeues it, and it continues too.
# `scancel` ends it. It also ends after 100 requeues, or after three starts in a row that brought no
# new checkpoint.
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

# After `sbatch --export=...`, srun would not pass on this script's PATH.
unset SLURM_EXPORT_ENV

# sbatch runs a copy of this script in another folder; scontrol shows its path, then its arguments.
command=${shown#*$'\n'   Command=}
command=${command%%$'\n'   WorkDir=*}
command=${command%"${command##*[! ]}"} # without trailing spaces
script=${command%"${*:+ $*}"}
folder=${script%/*}
if [[ ! -x $folder/multi_node.sh ]]; then
    echo "error: multi_node.sh is not in the folder of this script ('$script', according to SLURM)" >&2
    exit 1
fi

# Holds how many starts in a row brought no checkpoint; its modification time is this start's.
fruitless=.slurm-$SLURM_JOB_ID
if ((SLURM_RESTART_COUNT == 0)) || [[ ! -f $fruitless ]]; then
    echo 0 >"$fruitless"
fi
touch "$fruitless"
run_dir=outputs
for argument in "$@"; do
    [[ $argument == run_dir=?* ]] && run_dir=${argument#run_dir=}
done

export NNODES=$SLURM_NNODES
export LAUNCH_ID=$SLURM_JOB_ID.$SLURM_RESTART_COUNT # keeps processes of an earlier start out
export NPROC_PER_NODE=${NPROC_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}
export PORT=$((10000 + SLURM_JOB_ID % 20000))

# Runs on each node, and outlives torchrun to report its end: 75 if it was told to stop for now, and
# 1 instead of 143 if srun ended it because of another node.
run_node='
    trap : TERM
    trap stopped=75 USR1
    HEAD=$SLURM_LAUNCH_NODE_IPADDR:$PORT "$0" "$@"
    status=$?
    exit "${stopped:-$((status == 143 ? 1 : status))}"'

srun --label --kill-on-bad-exit=1 --cpu-bind=none bash -c "$run_node" "$folder/multi_node.sh" "$@" &
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

was_stopped() { [[ $time_is_over ]] || ((status == 75)); }
was_lost() { ((status > 128)) || ! timeout 60 srun --ntasks-per-node=1 true; }
may_go_on() { [[ $time_is_over || ! $was_terminated ]] && ((SLURM_RESTART_COUNT < 100)); }

has_progress() {
    local starts=$(($(<"$fruitless") + 1))
    if [[ $(find "$run_dir" -name '*.safetensors' -newer "$fruitless" 2>/dev/null) ]]; then
        starts=0
    fi
    echo "$starts" >"$fruitless"
    ((starts < 3)) && return
    echo "error: job $job has been started $starts times in a row without a new checkpoint: give it" \
        "more time (sbatch --time), or set trainer.checkpoint_every_steps" >&2
    return 1
}

if ((status != 0)) && may_go_on && { was_stopped || was_lost; } && may_go_on && has_progress; then
    scontrol requeue "$job"
else
    rm -f "$fruitless"
fi
exit "$status"
