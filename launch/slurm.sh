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

srun --label --kill-on-bad-exit=1 --cpu-bind=none \
    bash -c 'HEAD=$SLURM_LAUNCH_NODE_IPADDR:$PORT exec "$0" "$@"' "$multi_node" "$@" &
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

nodes_answer() { timeout 60 srun --ntasks-per-node=1 true; }

if ((status == 0)) || [[ $told_to_end ]]; then
    exit "$status"
elif [[ $time_is_over ]] || ((status > 128)) || ! nodes_answer; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
