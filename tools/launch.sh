# Sourced by the scripts dist_*.sh and slurm_*.sh.

# run_on DEVICES SCRIPT ARGS...: start one process per device.
run_on() {
    local devices=$1
    shift
    export PYTHONPATH="$(dirname "${BASH_SOURCE[0]}")/..:${PYTHONPATH:-}"
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
    local rendezvous=(--standalone)
    if [ "${NNODES:-1}" -gt 1 ]; then
        rendezvous=(--nnodes "$NNODES" --node_rank "$NODE_RANK" --master_addr "$MASTER_ADDR" --master_port "${MASTER_PORT:-29500}")
    fi
    "${PYTHON:-python}" -m torch.distributed.run "${rendezvous[@]}" --nproc_per_node "$devices" "$@"
}

# srun_on PARTITION JOB_NAME SCRIPT ARGS...: one task per GPU.
srun_on() {
    local partition=$1 job=$2 gpus=${GPUS:-8}
    shift 2
    local per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
    export PYTHONPATH="$(dirname "${BASH_SOURCE[0]}")/..:${PYTHONPATH:-}"
    # shellcheck disable=SC2086 # SRUN_ARGS holds several words on purpose
    srun -p "$partition" --job-name "$job" --gres "gpu:$per_node" --ntasks "$gpus" --ntasks-per-node "$per_node" \
        --cpus-per-task "${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} "${PYTHON:-python}" -u "$@"
}
