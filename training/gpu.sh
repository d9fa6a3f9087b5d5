#!/usr/bin/env bash
# Trains for some minutes on one large GPU that is lent, from a folder of training/pack.py and networks to start from,
# and leaves the result as few small files. The same command with BATCH=1 and 0 minutes is a dry run on a CPU.
#
#   training/gpu.sh components  PACK START OUT MINUTES    # mouth and eyes
#   training/gpu.sh whole       PACK START OUT MINUTES    # embedder, generator, discriminator: content terms
#   training/gpu.sh adversarial PACK START OUT MINUTES    # the same with the paper's adversarial terms
#
# START is a pipeline's folder, such as fsth_hub/checkpoints/small. Needs what meta_train.py needs. Put it together with
#   cat OUT/model.tar.* | tar x
set -euo pipefail
[ $# -eq 5 ] || { sed -n '2,11s/^# \?//p' "$0" >&2; exit 2; }
python=${PYTHON:-python} stage=$1 pack=$(realpath "$2") start=$(realpath "$3") out=$4 minutes=$5
mkdir -p "$out"
out=$(realpath "$out")
cd "$(dirname "$0")/.."
run=$(mktemp -d)
trap 'rm -rf "$run"' EXIT

case $stage in
components)
    batch=${BATCH:-192}
    resume=()
    [ -d "$start/facial_components" ] && resume=(--pretrained "$start")
    "$python" training/train_components.py "$pack/shards" --stills "$pack/stills" --vgg "$pack/vgg.safetensors" \
        --output_dir "$run" --mouth_batch_size "$batch" --eye_batch_size "$batch" --max_steps 1000000 \
        --adversarial_start "${ADVERSARIAL_START:-300}" --save_every "${SAVE_EVERY:-500}" --log_every 20 \
        --max_minutes "$minutes" "${resume[@]}"
    ;;
whole | adversarial)
    batch=${BATCH:-24}
    terms=(--adversarial_start 100000000)
    [ "$stage" = adversarial ] && terms=(--adversarial_start 0 --feature_matching_weight 10 --match_weight 0)
    "$python" training/meta_train.py "$pack/shards" --pretrained "$start" --vgg "$pack/vgg.safetensors" \
        --output_dir "$run" --batch_size "$batch" --vary_sources --num_sources 2 --far_sources --beta1 0.9 \
        --generator_lr 2e-4 --warmup_steps 50 --ema_decay 0.998 --vgg_weight 0.05 --lpips_weight 200 \
        --parts_weight 0.4 --num_workers "${WORKERS:-14}" --max_steps 1000000 --save_every "${SAVE_EVERY:-500}" \
        --sample_every 100000000 --log_every 20 --max_minutes "$minutes" "${terms[@]}"
    ;;
*)
    echo "The stage must be components, whole or adversarial, not $stage." >&2
    exit 2
    ;;
esac
tar c -C "$run" model | split -b 15000000 - "$out/model.tar."
if [ -f "$run/log.jsonl" ]; then cp "$run/log.jsonl" "$out/"; fi  # none where the minutes end before its first line
ls -l "$out"
