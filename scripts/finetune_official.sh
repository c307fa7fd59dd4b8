#!/usr/bin/env bash
# Fine-tune with the fourteen arguments of the original flow; docs/finetuning.md explains each.
#
#   bash scripts/finetune_official.sh NUM_GPUS_PER_WORKER MP_SIZE SAT_HOME MODEL_TYPE VERSION MAX_LENGTH LORA_RANK \
#       TRAIN_DATA TRAIN_ITERS SAVE_INTERVAL EVAL_INTERVAL SAVE_PATH BATCH_SIZE TRAINABLE [more flags of finetune.py]
#
# VERSION and MAX_LENGTH are - for the model's own, and for painters, which have neither.
# On a machine without GPUs the processes run on its CPU. What the fourteen lack:
#   VALID_DATA   validation data (default: valid/ beside the training data, else a share of it)
#   CONFIG       settings file(s) for scripts/finetune.py, which the arguments beat
#   DEEPSPEED    a name of configs/deepspeed, or a JSON file
#   NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT   several machines: run this on each with its NODE_RANK
#   HOSTFILE     several machines through DeepSpeed's launcher instead (needs pdsh or ssh)
#   PYTHON       the interpreter (default: python)
set -euo pipefail

if [ "$#" -lt 14 ]; then
    sed -n '2,6s/^# \{0,1\}//p' "$0" >&2
    echo "error: 14 arguments are needed, got $#" >&2
    exit 2
fi

scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-python}
processes=$1

arguments=(
    --mp "$2" --sat_home "$3" --from_pretrained "$4" --lora_rank "$7"
    --train_data "$8" --train_iters "$9" --save_interval "${10}" --eval_interval "${11}" --save_path "${12}"
    --batch_size "${13}" --trainable "${14}"
)
[ "$5" = - ] || arguments+=(--version "$5")
[ "$6" = - ] || arguments+=(--max_length "$6")
[ -z "${VALID_DATA:-}" ] || arguments+=(--valid_data "$VALID_DATA")
[ -z "${DEEPSPEED:-}" ] || arguments+=(--deepspeed "$DEEPSPEED")
# shellcheck disable=SC2206  # several files, separated by spaces
[ -z "${CONFIG:-}" ] || arguments+=(--config $CONFIG)
arguments+=("${@:15}")

if [ -n "${HOSTFILE:-}" ]; then
    exec "$python" -m deepspeed.launcher.runner --no_local_rank --hostfile "$HOSTFILE" --num_gpus "$processes" \
        "$scripts/finetune.py" "${arguments[@]}"
fi
if [ "${NNODES:-1}" = 1 ]; then
    launch=(--standalone --nnodes=1)
else
    launch=(--nnodes="$NNODES" --node-rank="${NODE_RANK:?set NODE_RANK on each of the $NNODES machines}"
        --master-addr="${MASTER_ADDR:?set MASTER_ADDR to the address of machine 0}"
        --master-port="${MASTER_PORT:-29500}")
fi
exec "$python" -m torch.distributed.run "${launch[@]}" --nproc-per-node="$processes" "$scripts/finetune.py" \
    "${arguments[@]}"
