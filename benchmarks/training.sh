#!/usr/bin/env bash
# The long runs: networks of the zoo trained on CIFAR-10 by their recipes, cut, and trained again.
#
#     benchmarks/training.sh FOLDER TRAIN.npz TEST.npz [MINUTES] [EPOCHS]
#
# Stops after MINUTES, if given; the next start goes on from the last finished epoch, so a machine that is lent for half an
# hour at a time does. EPOCHS of both trainings; by default each recipe's own, and 200 after a cut. NAMES="cifar_resnet56 ..."
# picks networks. A GPU is used where there is one.
set -euo pipefail
usage="usage: benchmarks/training.sh FOLDER TRAIN.npz TEST.npz [MINUTES] [EPOCHS]"
folder=${1:?$usage} train=${2:?$usage} test=${3:?$usage} minutes=${4:-} epochs=${5:-}
names=${NAMES:-cifar_resnet56 cifar_resnet20 mobilenet_v2_cifar vgg16_bn_cifar shufflenet_v2_x1_0_cifar cifar_resnet110 cifar_resnet44
    cifar_resnet32 mobilenet_v1_cifar shufflenet_v1_g3_cifar}
here=$(cd "$(dirname "$0")" && pwd)
python=$(command -v "${PYTHON:-python}")
program=$(dirname "$python")/onnxprune
mkdir -p "$folder"

# Ends what runs like Ctrl-C once the time is over: all finished epochs stay.
within_time() {
    [ -n "$minutes" ] || { "$@"; return; }
    local left=$((60 * minutes - SECONDS))
    if [ "$left" -le 0 ] || ! timeout --foreground --signal=INT --preserve-status "$left" "$@"; then
        [ "$((60 * minutes - SECONDS))" -le 0 ] || exit 1
        echo "the time is over; the same command goes on" >&2
        exit 0
    fi
}

for name in $names; do
    base="$folder/$name.onnx"
    [ -s "$base" ] || within_time "$program" models train "$name" --data "$train" --preprocess cifar10 -o "$base" \
        --run "$folder/$name.run" --resume ${epochs:+--epochs "$epochs"}
    for target in 0.5 0.392; do
        for search in greedy uniform gnn_rl; do
            row="$folder/$name.$target.$search.txt"
            [ -s "$row" ] && continue
            within_time "$python" "$here/training.py" "$base" --flops "$target" --searches "$search" --teacher \
                --epochs "${epochs:-200}" --data "$train" --test "$test" --run "$folder" >"$row.new"
            mv "$row.new" "$row"
        done
    done
done
cat "$folder"/*.txt
