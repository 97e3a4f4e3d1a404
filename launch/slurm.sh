#!/usr/bin/env bash
# Train on a SLURM cluster. sbatch's own options come before the script, those of dist_mnist after.
#
#     sbatch --nodes=2 --gpus-per-node=8 launch/slurm.sh model=resnet trainer.epochs=50
#     NPROC_PER_NODE=4 sbatch --nodes=2 --cpus-per-task=32 launch/slurm.sh    # without GPUs
#
# When its time is nearly over, and when a node, a launcher or the network between them is lost, the
# job goes back to the queue and continues its run. When another job takes its nodes, SLURM sends
# it back itself, and it continues too. `scancel` ends it; so does the hundredth time.
#
# Submit it with the virtual environment active, in a folder that all nodes see. The nodes need no
# internet.
#SBATCH --job-name=dist_mnist
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
set -uo pipefail

time_is_over=
told_to_end=
trap 'time_is_over=yes' USR1
trap 'told_to_end=yes' TERM # with which SLURM also tells the processes, so they save by themselves

job=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}

# sbatch runs a copy of this script, from elsewhere.
folder=$(scontrol show job "$job" | sed -n 's|^ *Command=\(.*\)/slurm\.sh.*|\1|p')
if [[ ! -x $folder/multi_node.sh ]]; then
    echo "error: multi_node.sh is not beside slurm.sh, where SLURM says it is ('$folder')" >&2
    exit 1
fi

export NNODES=$SLURM_NNODES
export LAUNCH_ID=$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0} # processes of an earlier start stay out
export NPROC_PER_NODE=${NPROC_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}
export PORT=$((10000 + SLURM_JOB_ID % 20000))

# One of these on each node. It outlives torchrun, to say what became of it: 75 where it was told to
# stop for now, and nothing special (143) where srun has ended it because of another node.
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
# srun itself would end its processes at once: they are told directly, as soon as they are there.
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
may_go_on() { [[ $time_is_over || ! $told_to_end ]] && ((${SLURM_RESTART_COUNT:-0} < 100)); }

if ((status != 0)) && may_go_on && { was_stopped || was_lost; } && may_go_on; then
    scontrol requeue "$job"
fi
exit "$status"
