#!/usr/bin/env bash
# Train on several devices of this machine: tools/dist_train.sh RECIPE DEVICES [options of tools/train.py]
# torchrun picks a free port. More machines: set NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,3s/^# //p' "$0" >&2; exit 2; }
config=$1 devices=$2
shift 2
source "$(dirname "$0")/launch.sh"
run_on "$devices" "$(dirname "$0")/train.py" "$config" "$@"
