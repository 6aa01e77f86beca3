# srun_on PARTITION JOB_NAME SCRIPT ARGS...: one task per GPU. Sourced by slurm_train.sh and slurm_test.sh.
srun_on() {
    local partition=$1 job=$2 gpus=${GPUS:-8}
    shift 2
    local per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
    export PYTHONPATH="$(dirname "${BASH_SOURCE[0]}")/..:${PYTHONPATH:-}"
    # shellcheck disable=SC2086 # SRUN_ARGS holds several words on purpose
    srun -p "$partition" --job-name "$job" --gres "gpu:$per_node" --ntasks "$gpus" --ntasks-per-node "$per_node" \
        --cpus-per-task "${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} "${PYTHON:-python}" -u "$@"
}
