#!/usr/bin/env bash
# Train on a SLURM cluster. sbatch's own options come before the script, those of dist_mnist after.
#
#     sbatch --nodes=2 --gpus-per-node=8 launch/slurm.sh model=resnet trainer.epochs=50
#     NPROC_PER_NODE=4 sbatch --nodes=2 --cpus-per-task=32 launch/slurm.sh    # without GPUs
#
# When its time is nearly over, and when a node, a launcher or the network between them is lost, the
# job goes back to the queue and continues its run. When another job takes its nodes, SLURM sends
# it back itself, and it continues too. `scancel` ends it.
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

# sbatch runs a copy of this script, from elsewhere.
script=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=\([^ ]*\).*/\1/p')
multi_node=$(dirname "$script")/multi_node.sh

export NNODES=$SLURM_NNODES
export LAUNCH_ID=$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0} # processes of an earlier start stay out
export NPROC_PER_NODE=${NPROC_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}
export PORT=$((10000 + SLURM_JOB_ID % 20000))

# One of these on each node. It outlives torchrun, to say what became of it: 75 where it was killed,
# or told to stop for now, but not where srun has ended it because of another node.
run_node='
    trap : TERM
    trap stopped=75 USR1
    HEAD=$SLURM_LAUNCH_NODE_IPADDR:$PORT "$0" "$@"
    status=$?
    exit "${stopped:-$((status == 143 ? 1 : status > 128 ? 75 : status))}"'

srun --label --kill-on-bad-exit=1 --cpu-bind=none bash -c "$run_node" "$multi_node" "$@" &
step=$!

is_running() { kill -0 "$step" 2>/dev/null; }

while is_running && [[ ! $time_is_over ]]; do
    wait "$step"
done
# srun itself would end its processes at once: they are told directly, as soon as they are there.
while is_running && ! scancel --signal=TERM "$SLURM_JOB_ID.0" 2>/dev/null; do
    sleep 1
done
while is_running; do
    wait "$step"
done
wait "$step"
status=$?

was_stopped() { [[ $time_is_over ]] || ((status == 75)); }
was_lost() { ((status > 128)) || ! timeout 60 srun --ntasks-per-node=1 true; }

if ((status != 0)) && [[ ! $told_to_end ]]; then
    # What is lost again and again may be the fault of the training.
    if was_stopped || { ((${SLURM_RESTART_COUNT:-0} < 100)) && was_lost; }; then
        scontrol requeue "$SLURM_JOB_ID"
    fi
fi
exit "$status"
