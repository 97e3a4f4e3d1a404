#!/usr/bin/env bash
# Train on this machine with one process per GPU, or with NPROC_PER_NODE processes.
#
#     launch/local.sh model=resnet trainer.epochs=10
#     NPROC_PER_NODE=4 launch/local.sh
set -euo pipefail

PYTHON=${PYTHON:-python}
# torch counts only those that CUDA_VISIBLE_DEVICES shows.
COUNT_GPUS='import torch; print(max(1, torch.accelerator.device_count()))'
NPROC_PER_NODE=${NPROC_PER_NODE:-$("$PYTHON" -c "$COUNT_GPUS")}

# dist_mnist divides the cores itself; without a value, torchrun sets 1 and warns about it.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

exec "$PYTHON" -m torch.distributed.run \
    --standalone \
    --nproc_per_node="$NPROC_PER_NODE" \
    -m dist_mnist "$@"
