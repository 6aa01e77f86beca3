# run_on DEVICES SCRIPT ARGS...: start one process per device. Sourced by dist_train.sh and dist_test.sh.
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
