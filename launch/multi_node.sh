#!/usr/bin/env bash
# Train on several machines: run this on each of them, with the same HEAD and the same arguments.
#
#     NNODES=2 HEAD=10.0.0.1:29500 LAUNCH_ID=monday-1 launch/multi_node.sh model=resnet
#
# NNODES          how many machines; 1:4 for one to four, which may come and go while it trains
# HEAD            address:port of the machine where they meet, an address that all of them reach
# LAUNCH_ID       a word of your choice, new for every launch: the same one continues its run
# NPROC_PER_NODE  processes on each machine; without it, as many as it has GPUs, or 1
# MAX_RESTARTS    how often processes that failed are started again; without it, 3 times
#
# Where two launchers share one machine, set IS_HEAD=1 for one of them and IS_HEAD=0 for the other.
#
# run_dir must be on storage that every machine sees which may come to have rank 0: with a fixed
# number of machines that is any of them.
set -euo pipefail

: "${NNODES:?says how many machines take part}"
: "${HEAD:?says where they meet, as address:port}"
: "${LAUNCH_ID:?names this launch, alike on every machine}"
PYTHON=${PYTHON:-python}
# torch counts only those that CUDA_VISIBLE_DEVICES shows.
COUNT_GPUS='import torch; print(max(1, torch.accelerator.device_count()))'
NPROC_PER_NODE=${NPROC_PER_NODE:-$("$PYTHON" -c "$COUNT_GPUS")}

# torchrun goes by the machine's own name, which on Debian leads to 127.0.1.1: then nobody would
# take the head's part, and nobody could be reached.
ADDRESSES=$("$PYTHON" -c "
import socket, sys
from dist_mnist.distributed.network import own_address
print(own_address(sys.argv[1]), socket.gethostbyname(sys.argv[1]))" "${HEAD%:*}")
read -r OWN_ADDRESS HEAD_ADDRESS <<<"$ADDRESSES"
if [[ $HEAD_ADDRESS == 127.* && $HEAD != 127.* ]]; then
    echo "error: HEAD=$HEAD leads to $HEAD_ADDRESS here: give an address that all machines reach" >&2
    exit 1
fi
IS_HEAD=${IS_HEAD:-$([[ $OWN_ADDRESS == "$HEAD_ADDRESS" ]] && echo 1 || echo 0)}

# Restarts: a machine that has been silent for 6 s is lost, and one that comes is waited for no
# longer than 3 s. (torchrun's own 15 s and 30 s are spent at every start with a varying number.)
RENDEZVOUS="is_host=$IS_HEAD,last_call_timeout=3,keep_alive_interval=2,keep_alive_max_attempt=3"

# torchrun would keep its first store for the processes of every start, and a machine that comes
# later would wait for an address that nobody writes there again (pytorch#167288).
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

# torchrun would die of SIGUSR1, and leave its processes 30 s to save; older ones ignore these.
export PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1
export PET_SHUTDOWN_TIMEOUT=60

# dist_mnist shares the cores out by itself; without a value torchrun sets 1 and warns of it.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

exec "$PYTHON" -m torch.distributed.run \
    --nnodes="$NNODES" \
    --nproc_per_node="$NPROC_PER_NODE" \
    --max-restarts="${MAX_RESTARTS:-3}" \
    --rdzv-backend=c10d \
    --rdzv-id="$LAUNCH_ID" \
    --rdzv-endpoint="$HEAD" \
    --rdzv-conf="$RENDEZVOUS" \
    --local-addr="$OWN_ADDRESS" \
    -m dist_mnist "$@"
