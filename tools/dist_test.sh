#!/usr/bin/env bash
# Evaluate on several devices of this machine: tools/dist_test.sh RECIPE CHECKPOINT DEVICES [options of tools/test.py]
set -euo pipefail
[ $# -ge 3 ] || { sed -n '2s/^# //p' "$0" >&2; exit 2; }
config=$1 checkpoint=$2 devices=$3
shift 3
source "$(dirname "$0")/launch.sh"
run_on "$devices" "$(dirname "$0")/test.py" "$config" "$checkpoint" "$@"
