#!/usr/bin/env bash
# Train on several machines: run this on each of them, with the same HEAD and the same arguments.
#
#     NNODES=2 HEAD=10.0.0.1:29500 LAUNCH_ID=monday-1 launch/multi_node.sh model=resnet
#
# NNODES          how many machines; 1:4 means one to four, which may join and leave during training
# HEAD            address:port of the machine where they meet, reachable from all of them; an IPv6
#                 address in brackets, as in [fd00::1]:29500
# LAUNCH_ID       a word of your choice, new for every launch; the same word continues its run
# NPROC_PER_NODE  processes per machine; default: one for each GPU, or 1
# MAX_RESTARTS    how often failed processes are restarted; default: 3
#
# To run two launchers on one machine, set IS_HEAD=1 for one of them and IS_HEAD=0 for the other.
#
# run_dir must be on storage that is shared by every machine that may get rank 0. With a fixed number
# of machines, any of them may.
set -euo pipefail

: "${NNODES:?set it to the number of machines}"
: "${HEAD:?set it to the address:port where the machines meet}"
: "${LAUNCH_ID:?set it to a name for this launch, the same on every machine}"
PYTHON=${PYTHON:-python}
# torch counts only those that CUDA_VISIBLE_DEVICES shows.
COUNT_GPUS='import torch; print(max(1, torch.accelerator.device_count()))'
NPROC_PER_NODE=${NPROC_PER_NODE:-$("$PYTHON" -c "$COUNT_GPUS")}

# torchrun uses the machine's own name, which resolves to 127.0.1.1 on Debian: then no machine would
# be the head, and none could be reached.
HEAD_HOST=${HEAD%:*}
HEAD_HOST=${HEAD_HOST#[} # an IPv6 address is in brackets
HEAD_HOST=${HEAD_HOST%]}
ADDRESSES=$("$PYTHON" -c "
import socket, sys
from dist_mnist.distributed.network import own_address
print(own_address(sys.argv[1]), socket.getaddrinfo(sys.argv[1], None)[0][4][0])" "$HEAD_HOST")
read -r OWN_ADDRESS HEAD_ADDRESS <<<"$ADDRESSES"
if [[ $HEAD_ADDRESS == 127.* && $HEAD_HOST != 127.* ]]; then
    echo "error: HEAD=$HEAD resolves to $HEAD_ADDRESS here: use an address that all machines can reach" >&2
    exit 1
fi
IS_HEAD=${IS_HEAD:-$([[ $OWN_ADDRESS == "$HEAD_ADDRESS" ]] && echo 1 || echo 0)}

# A machine that has been silent for 6 s counts as lost, and a restart waits at most 3 s for others
# to join. (torchrun would wait 15 s and 30 s, at every start with a varying number of machines.) A
# network that is away for some minutes ends nothing.
RENDEZVOUS="is_host=$IS_HEAD,last_call_timeout=3,keep_alive_interval=2,keep_alive_max_attempt=3"
RENDEZVOUS+=",read_timeout=600"
export NNODES # dist_mnist refuses to train on fewer machines

# torchrun would keep its first store through all restarts, and a machine that joins later would wait
# for an address that is never written there again (pytorch#167288).
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

# By default SIGUSR1 kills torchrun, and its processes get 30 s to save. Older versions ignore these.
export PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1
export PET_SHUTDOWN_TIMEOUT=60

# dist_mnist divides the cores itself; without a value, torchrun sets 1 and warns about it.
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
