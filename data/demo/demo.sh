#!/bin/sh
# The demo: a small model that was pretrained on a small world (make_model.sh) learns a true/false task, once by plain
# fine-tuning and once by ProMoT. Then all three are asked for things that were not trained: answers, translations,
# summaries, mappings, each after one worked example. Everything lands in out/demo.
set -e
export OMP_WAIT_POLICY=passive # threads that wait must not take the cores of a shared machine
out=out/demo
model=data/demo/model
world=$out/world
others="qa cqa fr de summary map_french map_category yesno"
rm -rf "$out"
mkdir -p "$out"
build/world "$world" --seed 0 --documents 0

settings="--model $model --task rte=$world/nli --batch 32 --label-smoothing 0 --lr 0.01 --steps 100 --checkpoint-every 25"
echo "1. Plain fine-tuning on the true/false task" >&2
./promot train $settings --method finetune --out "$out/finetune" >&2
echo "2. ProMoT: first the prompt with the model frozen, then the model with the prompt frozen" >&2
./promot train $settings --method promot --prompt-length 10 --prompt-lr 0.2 --prompt-steps 300 \
    --prompt-checkpoint-every 100 --prompt-schedule linear --prompt-dropout 0 --prompt-weight-decay 0 \
    --out "$out/promot" >&2

# $1: a name for the columns, $2: the model, $3: its prompt for the trained task, if it has one
evaluate() {
    tasks=
    for task in $others; do tasks="$tasks --task-file $world/$task.json --task $task=$world/$task"; done
    ./promot eval --model "$2" ${3:+--prompt "$3"} --task rte.dev="$world/nli/test.jsonl" --quiet --out "$out/$1.target" |
        sed -n 's/^rte.* /trained: true or false /p' >"$out/$1.table"
    ./promot eval --model "$2" $tasks --shots 1 --input-ending " <extra_id_0>" --quiet --out "$out/$1.others" |
        sed -e 1d -e 's/^Norm. Avg./average-of-the-others/' | awk '{print $1, $NF}' >>"$out/$1.table"
}
echo "3. What each of them can do" >&2
evaluate pretrained "$model"
evaluate finetune "$out/finetune/model"
evaluate promot "$out/promot/model" "$out/promot/prompt/rte"

printf '\n%-26s %12s %12s %12s\n' "score (0 to 100)" "before" "fine-tuned" "ProMoT"
paste -d ' ' "$out/pretrained.table" "$out/finetune.table" "$out/promot.table" | awk '
    /^trained/ { printf "%-26s %12s %12s %12s\n", "trained: true or false", $5, $10, $15; next }
    { printf "%-26s %12s %12s %12s\n", $1 == "average-of-the-others" ? "average of the others" : "not trained: " $1, $2, $4, $6 }'
printf '\nThe tuned model is %s/promot/model, its prompt %s/promot/prompt/rte.\n' "$out" "$out"
