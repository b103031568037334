# Sourced: fsdp2 MODULE OPTIONS... starts a module under `accelerate launch` with fsdp2.yaml.
# NPROC  GPUs per machine (8)
# NNODES machines (1); with several, run the same command on each, with NODE_RANK 0 on HOST, 1, 2, ... on the others
# HOST, PORT of the first machine (this one, 29500)
fsdp2() {
    exec "$PYTHON" -m accelerate.commands.launch --config_file "$ROOT/experiments/paper/launch/fsdp2.yaml" \
        --num_processes "$((${NPROC:-8} * ${NNODES:-1}))" --num_machines "${NNODES:-1}" \
        --machine_rank "${NODE_RANK:-0}" --main_process_ip "${HOST:-127.0.0.1}" --main_process_port "${PORT:-29500}" \
        --module "$@"
}
