#!/usr/bin/env bash
# Evaluate on a Slurm cluster: tools/slurm_test.sh PARTITION JOB_NAME RECIPE CHECKPOINT [options of tools/test.py]
# GPUS (8), GPUS_PER_NODE (min(GPUS, 8)), CPUS_PER_TASK (5) and SRUN_ARGS change the request.
set -euo pipefail
[ $# -ge 4 ] || { sed -n '2,3s/^# //p' "$0" >&2; exit 2; }
partition=$1 job=$2 config=$3 checkpoint=$4
shift 4
source "$(dirname "$0")/launch.sh"
srun_on "$partition" "$job" "$(dirname "$0")/test.py" "$config" "$checkpoint" "$@"
