#!/usr/bin/env bash
# All that is measured on a GPU, in one go: latency and memory of VGG-16, ResNet-50 and MobileNet-v2 before and after a cut.
#
#     benchmarks/gpu.sh FOLDER [PROVIDER]
#
# PROVIDER is cuda (default) or tensorrt. Everything lies in the folder: models are made where they are missing, and rows that
# are there are not measured again. Needs a machine with an NVIDIA GPU and `pip install ".[cuda]"`.
set -euo pipefail
folder=${1:?usage: benchmarks/gpu.sh FOLDER [PROVIDER]}
provider=${2:-cuda}
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$folder"
failed=0
python=$(command -v "${PYTHON:-python}")
program=$(dirname "$python")/onnxprune

# One model that is quickly made shows whether the provider can be had at all.
small="$folder/cifar_resnet20.onnx"
[ -s "$small" ] || "$program" models export cifar_resnet20 -o "$small"
"$program" profile "$small" --provider "$provider" --seconds 1 --quiet

for name in vgg16 resnet50 mobilenet_v2; do
    single="$folder/$name.onnx"
    [ -s "$single" ] || "$program" models export "$name" -o "$single"
    half="$folder/$name.fp16.onnx"
    [ -s "$half" ] || "$python" "$here/half.py" "$single" "$half"
    for file in "$single" "$half"; do
        for target in 0.5 0.2; do
            rows="$file.$provider.$target.md"
            [ -s "$rows" ] && continue
            if "$python" "$here/speed.py" "$file" --flops "$target" --batches 1,64 --threads 1 --provider "$provider" --bind \
                >"$rows.new"; then
                mv "$rows.new" "$rows"
            else # measured anew the next time
                cat "$rows.new" >&2
                failed=1
            fi
        done
    done
done
cat "$folder"/*.md
exit "$failed"
