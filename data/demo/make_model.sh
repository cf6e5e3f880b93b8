#!/bin/sh
# Makes data/demo/model again, the same bytes on the same kind of machine: text from the generator, a vocabulary
# trained on it, and 4,000 steps of span corruption and answer spans from scratch. Some minutes on two cores.
set -e
make promot build/world
rm -rf out/model && mkdir -p out/model
build/world out/model/world --seed 0 --documents 100000 --paper-templates 50
./promot pretrain --config data/demo/config.json --train-vocab 860 --text out/model/world/pretrain.txt \
    --out out/model/run --steps 4000 --batch 72 --lr 0.02 --schedule linear --dropout 0.1 --save-every 1000
cp out/model/run/model/* data/demo/model
