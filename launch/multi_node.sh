#!/usr/bin/env bash
# Train on several machines: run this on each of them, with the same HEAD and the same arguments.
#
#     NNODES=2 HEAD=10.0.0.1:29500 LAUNCH_ID=monday-1 launch/multi_node.sh
#
# NNODES          how many machines
# HEAD            address:port of the machine where they meet
# LAUNCH_ID       a word of your choice, new for every launch: the same one continues its run
# NPROC_PER_NODE  processes on each machine; without it, as many as it has GPUs, or 1
#
# Where a machine's own name leads to 127.0.0.1 or 127.0.1.1, as on Debian, nobody would take the
# head's part; then set on each machine also
# NODE_ADDRESS        its own address
# IS_HEAD             1 on the head, 0 elsewhere
# GLOO_SOCKET_IFNAME  the network interface of that address
#
# run_dir must be on storage that the machine of rank 0 keeps; the others need not see it.
set -euo pipefail

: "${NNODES:?says how many machines take part}"
: "${HEAD:?says where they meet, as address:port}"
: "${LAUNCH_ID:?names this launch, alike on every machine}"
PYTHON=${PYTHON:-python}
GPUS=$(nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU' || true)
NPROC_PER_NODE=${NPROC_PER_NODE:-$((GPUS > 0 ? GPUS : 1))}

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

exec "$PYTHON" -m torch.distributed.run \
    --nnodes="$NNODES" \
    --nproc_per_node="$NPROC_PER_NODE" \
    --rdzv-backend=c10d \
    --rdzv-id="$LAUNCH_ID" \
    --rdzv-endpoint="$HEAD" \
    ${IS_HEAD:+--rdzv-conf="is_host=$IS_HEAD"} \
    ${NODE_ADDRESS:+--local-addr="$NODE_ADDRESS"} \
    -m dist_mnist "$@"
