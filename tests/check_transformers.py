#!/usr/bin/env python3
"""Checks by hand that a finished run is what the Python world expects. RUN is what `promot train --out RUN` made:

  - transformers loads RUN/model, and its logits are those of `promot dump`;
  - peft loads every RUN/prompt/NAME on top of it, and the prompted logits are promot's;
  - transformers loads the tokenizer of RUN/model, and it encodes as `promot tokenize` does.

    python tests/check_transformers.py RUN [--promot ./promot] [--text FILE]
                                                needs torch, transformers, peft, safetensors, sentencepiece
Prints one line a check; exits 1 when one of them failed."""
import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

PAD, EOS = 0, 1
LIMIT = 2e-5  # two single-precision computations, each within 1e-5 of the exact logits

TEXT = """The two sides signed an agreement on Tuesday. question: They met. Is it true or false? answer:
Q: Which river flows through Paris? A: the Seine
Translate English to French: I would like two tickets, please.
numbers 3.14 and 1,000; a-b_c; "quotes" (brackets)
  leading, trailing and    repeated blanks
Is it <extra_id_0> or <extra_id_1>
café naïve über"""


class Checks:
    def __init__(self):
        self.failed = 0

    def __call__(self, passed, what):
        self.failed += not passed
        print(("ok      " if passed else "FAILED  ") + what)


def random_batch(vocabulary, seed):
    """Ragged rows, among them a row of one token."""
    rng = np.random.default_rng(seed)
    batch = {}
    for name, lengths in (("input_ids", (17, 1, 40)), ("labels", (3, 8, 1))):
        ids = np.zeros((len(lengths), max(lengths)), np.int64)
        for row, length in enumerate(lengths):
            ids[row, :length] = [*rng.integers(2, vocabulary, length - 1), EOS]
        batch[name] = ids
    return batch


def promot_logits(promot, model, batch):
    with tempfile.TemporaryDirectory() as directory:
        given, out = Path(directory) / "in.safetensors", Path(directory) / "out.safetensors"
        save_file(batch, given)
        subprocess.run([promot, "dump", "--model", model, "--batch", given, "--out", out], check=True)
        return load_file(out)["logits"]


@torch.no_grad()
def their_logits(model, batch):
    ids, labels = torch.tensor(batch["input_ids"]), torch.tensor(batch["labels"])
    shifted = torch.cat([torch.zeros_like(labels[:, :1]), labels[:, :-1]], 1)
    out = model(input_ids=ids, attention_mask=(ids != PAD).long(), decoder_input_ids=shifted)
    return (out.logits * (labels != PAD)[..., None]).numpy()


def compare(check, what, ours, theirs):
    error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
    check(error <= LIMIT, f"{what}: logits differ by {error:.1e} (limit {LIMIT:.0e})")


def check_model(check, promot, run):
    model = AutoModelForSeq2SeqLM.from_pretrained(run / "model", dtype=torch.float32).eval()
    batch = random_batch(model.config.vocab_size, 1)
    compare(check, "AutoModelForSeq2SeqLM", promot_logits(promot, run / "model", batch), their_logits(model, batch))
    for adapter in sorted((run / "prompt").glob("*")):
        rows = json.loads((adapter / "adapter_config.json").read_text())["num_virtual_tokens"]
        prompt = load_file(adapter / "adapter_model.safetensors")["prompt_embeddings"][:rows]
        prompted = PeftModel.from_pretrained(model, adapter).eval()
        ours = promot_logits(promot, run / "model", {**batch, "prompt": prompt.astype(np.float32)})
        compare(check, f"PeftModel, prompt {adapter.name}", ours, their_logits(prompted, batch))
        model = prompted.unload() if hasattr(prompted, "unload") else prompted.get_base_model()


def check_tokenizer(check, promot, run, lines):
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    command, text = [promot, "tokenize", "--eos", "--model", run / "model"], "".join(line + "\n" for line in lines)
    out = subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout.splitlines()
    check(len(out) == len(lines), f"promot tokenize: {len(out)} lines for {len(lines)}")
    for line, ids in zip(lines, out):
        theirs = tokenizer(line).input_ids
        check(theirs == [int(i) for i in ids.split()], f"AutoTokenizer: {line[:60]!r}: {ids} and {theirs}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--promot", default="./promot")
    parser.add_argument("--text", type=Path, help="lines to tokenize instead of the few built in")
    arguments = parser.parse_args()
    check = Checks()
    check_model(check, arguments.promot, arguments.run)
    text = arguments.text.read_text(encoding="utf-8") if arguments.text else TEXT
    check_tokenizer(check, arguments.promot, arguments.run, text.split("\n"))
    sys.exit(check.failed != 0)


if __name__ == "__main__":
    main()
