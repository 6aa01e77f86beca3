#!/usr/bin/env bash
# Train on a Slurm cluster: tools/slurm_train.sh PARTITION JOB_NAME RECIPE [options of tools/train.py]
# GPUS (8), GPUS_PER_NODE (min(GPUS, 8)), CPUS_PER_TASK (5) and SRUN_ARGS change the request.
set -euo pipefail
[ $# -ge 3 ] || { sed -n '2,3s/^# //p' "$0" >&2; exit 2; }
partition=$1 job=$2 config=$3
shift 3
source "$(dirname "$0")/launch.sh"
srun_on "$partition" "$job" "$(dirname "$0")/train.py" "$config" "$@"
