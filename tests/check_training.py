#!/usr/bin/env python3
"""Checks by hand that whole training runs are what other software computes: `promot train` with each method, some steps
on a tiny task without dropout, against transformers and peft with T5X's Adafactor in numpy (tests/reference.py), in
double precision, from the same start on the same ids (`--show`). A batch is the whole training set, so that the order
of the examples does not matter. The loss of every step in log.jsonl must agree to 1e-4 of itself, and the weights,
prompts or adapters at the end to 1e-3 of how far they moved.

    python tests/check_training.py [MODEL] [--method M …] [--steps N] [--promot ./promot]
                                                needs numpy, torch, transformers, peft, safetensors
MODEL is a Hugging Face directory, by default data/demo/model. Prints one line a check; exits 1 when one failed."""
import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from check_align import loss_of, open_model, plain_name
from reference import adafactor_step, loss_settings, optimizer, write_prompt
from safetensors.numpy import load_file, save_file

LOSS_LIMIT, MOVEMENT_LIMIT = 1e-4, 1e-3
PROMPT_ROWS = 7

TASK = dict(name="toy", template="{text} What is it about? answer:", target="{answer}", metric="trivia-em")
ROWS = (("jane insisted that max washed a sled in luxor .", "a sled"), ("It rained for three days.", "the weather"),
        ("xena lost a duck", "a duck that was lost in the park"), ("2 + 2 = 4", "numbers"), ("Ah!", "nothing"),
        ("many people were happy on sunday . zoe drew a yellow dog in bergen .", "a dog"),
        ("le chien jaune est à Bergen", "un chien"), ("The train to Oslo leaves at nine, it is said.", "a train"),
        ("kurt teased max", "kurt"), ("Who knows? Nobody does, and that is that, they say, again and again.", "x"))

# What a method's stages train, with Adafactor's settings for the model and for the prompt or LoRA, and label smoothing.
MODEL = optimizer(1e-3, True)
PROMPT_STAGE = ("prompt", None, optimizer(0.2, False, 1e-5), 0.0)
MODEL_STAGE = ("model", MODEL, None, 0.1)
LORA_STAGE = ("lora", None, optimizer(1e-3, False), 0.1)
METHODS = {
    "finetune": (MODEL_STAGE,),
    "prompt": (PROMPT_STAGE,),
    "promot": (PROMPT_STAGE, MODEL_STAGE),
    "random-prompt": (MODEL_STAGE,),
    "joint": (("joint", MODEL, optimizer(1e-3, False, 1e-5), 0.1),),
    "lora": (LORA_STAGE,),
    "promot-lora": (LORA_STAGE, MODEL_STAGE),
}


class Promot:
    """Runs of `promot train` on the toy task, in a directory of their own."""
    def __init__(self, program, model, directory, steps):
        self.program, self.model, self.directory, self.steps = program, model, directory, steps
        (directory / "toy.json").write_text(json.dumps(TASK))
        rows = "".join(json.dumps(dict(text=text, answer=answer)) + "\n" for text, answer in ROWS)
        (directory / "toy.jsonl").write_text(rows, encoding="utf-8")

    def train(self, out, method, *options):
        command = [self.program, "train", "--quiet", "--model", self.model, "--method", method, "--out", out,
                   "--task-file", self.directory / "toy.json", "--task", f"toy={self.directory / 'toy.jsonl'}",
                   "--batch", str(len(ROWS)), "--dropout", "0", "--prompt-dropout", "0", "--prompt-length",
                   str(PROMPT_ROWS), "--beams", "1", *options]
        for stage in ("", "prompt-", "lora-"):
            if f"--{stage}steps" not in options:
                command += [f"--{stage}steps", str(self.steps), f"--{stage}checkpoint-every", str(self.steps)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def examples(self):
        shown = self.train(self.directory / "none", "finetune", "--show", str(len(ROWS)))
        return [json.loads(line) for line in shown.splitlines()]

    def start(self, method, seed):
        """Where the method begins, as a peft adapter (None: the model alone), and the options that say so."""
        path = self.directory / f"{method}.start"
        if method in ("prompt", "promot", "joint"):
            width = json.loads((self.model / "config.json").read_text())["d_model"]
            prompt = np.random.default_rng(seed).standard_normal((PROMPT_ROWS, width)).astype(np.float32)
            write_prompt(path, prompt, "peft")
            return path, ["--prompt-init", f"file:{path}"]
        if "lora" in method:  # the random A of a run whose only step has no length to speak of; B begins as zeros
            self.train(path, "lora", "--lora-lr", "0", "--lora-steps", "1", "--lora-checkpoint-every", "1")
            weights = path / "lora/adapter_model.safetensors"
            tensors = {k: v * ("lora_A" in k) for k, v in load_file(weights).items()}
            save_file(tensors, weights, metadata={"format": "pt"})
            return path / "lora", []
        return None, []


def parameters(model):
    """Every parameter as a view; of peft's prompt only the rows that go in front of the encoder's input."""
    for name, p in model.named_parameters():
        name = plain_name(name)
        yield name, p, slice(0, PROMPT_ROWS) if name == "prompt" else slice(None)


def is_adapter(name):
    return name == "prompt" or ".lora_" in name


def run_stage(model, examples, stage, steps):
    """Trains in place; the losses before each update."""
    _, of_model, of_adapter, smoothing = stage
    losses, states = [], {}
    for step in range(steps):
        model.zero_grad()
        loss = loss_of(model, examples, loss_settings(smoothing))
        loss.backward()
        losses.append(loss.item())
        for name, p, rows in parameters(model):
            settings = of_adapter if is_adapter(name) else of_model
            if settings:
                new = adafactor_step(p.detach()[rows].numpy(), p.grad[rows].numpy(), states.setdefault(name, {}),
                                     step, **settings)
                p.data[rows] = torch.tensor(new)
    return losses


def snapshot(model):
    return {name: p.detach()[rows].numpy().copy() for name, p, rows in parameters(model)}


def compare_losses(what, ours, theirs):
    assert len(ours) == len(theirs), (what, len(ours), len(theirs))
    worst = max(abs(a - b) / b for a, b in zip(ours, theirs))
    print(f"{'ok      ' if worst <= LOSS_LIMIT else 'FAILED  '}{what}: loss {theirs[0]:.4f} to {theirs[-1]:.4f}, "
          f"promot's differs by at most {worst:.1e} (limit {LOSS_LIMIT:.0e})", flush=True)
    return worst <= LOSS_LIMIT


def distance(a, b, names):
    return np.sqrt(sum(float(((a[k] - b[k]) ** 2).sum()) for k in names))


def compare_end(what, found, start, end):
    """How far apart the ends are, as a share of the way there, over all tensors that moved."""
    moved = [k for k in end if not np.array_equal(start[k], end[k])]
    share = distance(found, end, moved) / distance(end, start, moved)
    still = all(np.array_equal(found[k], start[k]) for k in end if k not in moved)
    passed = still and share <= MOVEMENT_LIMIT
    print(f"{'ok      ' if passed else 'FAILED  '}{what}: {len(moved)} of {len(end)} tensors moved, their ends differ "
          f"by {share:.1e} of that (limit {MOVEMENT_LIMIT:.0e}){'' if still else '; frozen ones moved'}", flush=True)
    return passed


def check_method(promot, method, examples):
    adapter, options = promot.start(method, seed=len(method))
    run = promot.directory / method
    promot.train(run, method, *options)
    if method == "random-prompt":  # it is never trained: how it began is how it ends
        adapter = run / "prompt/toy"
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    model, passed = open_model(promot.model, adapter), True
    start = snapshot(model)
    for stage in METHODS[method]:
        ours = [record["loss_sum"] for record in log if record["stage"] == stage[0] and "loss_sum" in record]
        passed &= compare_losses(f"{method}, stage {stage[0]}", ours, run_stage(model, examples, stage, promot.steps))
    kept = next((path for path in (run / "prompt/toy", run / "lora") if path.exists()), None)
    left = promot.model if method == "lora" else run / "model"  # RUN/model of "lora" has the adapter merged into it
    return passed & compare_end(method, snapshot(open_model(left, kept)), start, snapshot(model))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path, nargs="?", default=Path("data/demo/model"))
    parser.add_argument("--method", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--promot", default="./promot")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        promot = Promot(arguments.promot, arguments.model, Path(directory), arguments.steps)
        examples = promot.examples()
        assert len(examples) == len(ROWS)
        passed = [check_method(promot, method, examples) for method in arguments.method]
    sys.exit(not all(passed))


if __name__ == "__main__":
    main()
