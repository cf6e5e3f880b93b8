#!/usr/bin/env python3
"""Checks by hand that `promot align` finds what PyTorch finds, on a real model and real text. MODEL is a Hugging Face
directory, or what `promot train --keep-checkpoints --out RUN` made: then every kept model is looked at, without and
with the run's prompt. promot says which examples it took (examples.jsonl); transformers and peft compute both gradients
on them in double precision, and every cosine must agree to 1e-4, every norm and dot product to 1e-4 of itself.

    python tests/check_align.py MODEL --task NAME=PATH [--task-file FILE] [--prompt PATH] [--against …] [--limit N]
                                      [--label-smoothing R] [--promot ./promot]
                                                needs numpy, torch, transformers, peft, safetensors
Prints one line for each model and prompt; exits 1 when one of them failed."""
import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from peft import PeftModel
from reference import PAD, alignment, load_model, t5x_loss

LIMIT = 1e-4
AT_ONCE = 16  # examples: gradients of sums add up


def open_model(directory, adapter=None):
    """In double precision, with all gradients wanted; adapter: one of peft's, a prompt or a LoRA."""
    model = load_model(directory)
    if adapter:
        model = PeftModel.from_pretrained(model, adapter).double().eval()
    for p in model.parameters():
        p.requires_grad_(True)
    return model


def padded(rows):
    return torch.tensor([row + [PAD] * (max(map(len, rows)) - len(row)) for row in rows])


def loss_of(model, examples, settings):
    """T5X's loss of examples with input_ids and target_ids, summed over all target tokens. Padding is told by lengths:
    there are vocabularies whose <unk> is 0 too."""
    ids, labels = (padded([e[k] for e in examples]) for k in ("input_ids", "target_ids"))
    mask = torch.arange(ids.shape[1]) < torch.tensor([[len(e["input_ids"])] for e in examples])
    assert not any(PAD in e["target_ids"] for e in examples)
    shifted = torch.cat([torch.zeros_like(labels[:, :1]), labels[:, :-1]], 1)
    out = model(input_ids=ids, attention_mask=mask.long(), decoder_input_ids=shifted)
    return t5x_loss(out.logits, labels, **settings)


def plain_name(name):
    """A parameter's name as transformers has it; peft wraps the model, and calls its own the prompt encoder's."""
    return "prompt" if name.startswith("prompt_encoder.") else name.removeprefix("base_model.")


def gradients_of(model, examples, settings):
    model.zero_grad()
    for first in range(0, len(examples), AT_ONCE):
        loss_of(model, examples[first:first + AT_ONCE], settings).backward()
    return {plain_name(k): p.grad.numpy().copy() for k, p in model.named_parameters()}


def compare(what, ours, theirs):
    """The modules are the same, and so are their numbers."""
    assert set(ours) == set(theirs), (sorted(ours), sorted(theirs))
    worst_cosine = max((abs(ours[k]["cosine"] - theirs[k]["cosine"]), k) for k in ours)
    worst_size = max((abs(ours[k][a] - theirs[k][b]) / abs(theirs[k][b]), f"{b} of {k}") for k in ours
                     for a, b in (("dot", "dot"), ("full_norm", "full"), ("format_norm", "format")))
    passed = worst_cosine[0] <= LIMIT and worst_size[0] <= LIMIT
    print(f"{'ok      ' if passed else 'FAILED  '}{what}: {len(ours)} modules, total {theirs['total']['cosine']:.6f}, "
          f"cosines differ by {worst_cosine[0]:.1e} ({worst_cosine[1]}), sizes by {worst_size[0]:.1e} "
          f"({worst_size[1]}; limit {LIMIT:.0e})", flush=True)
    return passed


def promot_align(arguments, out):
    """What promot found, and the examples of its two gradients."""
    run = (arguments.model / "run.json").exists()
    command = [arguments.promot, "align", "--quiet", "--json", "--out", out, "--run" if run else "--model",
               arguments.model, "--against", arguments.against, "--limit", str(arguments.limit),
               "--label-smoothing", str(arguments.label_smoothing)]
    for option, values in (("--task", arguments.task), ("--task-file", arguments.task_file)):
        command += [word for value in values for word in (option, value)]
    if arguments.prompt:
        command += ["--prompt", arguments.prompt]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    examples = [json.loads(line) for line in (out / "examples.jsonl").read_text(encoding="utf-8").splitlines()]
    lists = [[e for e in examples if e["gradient"] == which] for which in ("full", "format")]
    assert len(lists[0]) == len(lists[1]) == found["n"] and 2 * found["n"] == len(examples)
    return found, lists


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path, help="a model, or a run with kept checkpoints")
    parser.add_argument("--task", action="append", required=True)
    parser.add_argument("--task-file", action="append", default=[])
    parser.add_argument("--prompt", help="a PEFT prompt-tuning adapter (a run has its own)")
    parser.add_argument("--against", default="labels")
    parser.add_argument("--limit", type=int, default=64)
    parser.add_argument("--label-smoothing", type=float, default=0.0)
    parser.add_argument("--promot", default="./promot")
    arguments = parser.parse_args()
    settings = dict(label_smoothing=arguments.label_smoothing, z_loss=1e-4, normalizing_factor=None)
    passed = True
    with tempfile.TemporaryDirectory() as out:
        found, lists = promot_align(arguments, Path(out))
    for point in found["points"]:
        for key, prompt in (("without_prompt", None), ("with_prompt", point.get("prompt"))):
            if key not in point:
                continue
            model = open_model(point["model"], prompt)
            theirs = alignment(*(gradients_of(model, examples, settings) for examples in lists))
            passed &= compare(f"step {point['step']:.0f}, {key.replace('_', ' ')}", point[key], theirs)
    sys.exit(not passed)


if __name__ == "__main__":
    main()
