#!/bin/sh
# Makes data/demo/model again, the same bytes on the same kind of machine whatever the number of threads: text from the
# generator, a vocabulary trained on it, and 4,000 steps of span corruption and answer spans from scratch. A quarter of
# an hour on two cores. With a seed and a directory it makes another model there, for a study of more than one:
#     sh data/demo/make_model.sh 1 out/model-1
set -e
export OMP_WAIT_POLICY=passive # threads that wait must not take the cores of a shared machine
seed=${1:-0}
to=${2:-data/demo/model}
work=out/pretrain-$seed
make promot build/world
rm -rf "$work" && mkdir -p "$work" "$to"
build/world "$work/world" --documents 100000
./promot pretrain --config data/demo/config.json --train-vocab 860 --text "$work/world/pretrain.txt" --seed "$seed" \
    --out "$work/run" --steps 4000 --batch 72 --lr 0.02 --schedule linear --dropout 0.1 --save-every 1000
cp "$work"/run/model/* "$to"
