#!/usr/bin/env python3
"""Checks by hand that peft loads the LoRA adapters that promot writes, and computes the same logits. The adapters and
promot's logits are what tests/test_lora.c leaves in build/test/lora.

    make build/test_lora && build/test_lora && python tests/check_peft_lora.py
                                                needs torch, transformers, peft, safetensors
Prints one line for each adapter; exits 1 when one of them failed."""
import sys
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.numpy import load_file
from transformers import AutoModelForSeq2SeqLM

PAD = 0
LIMIT = 2e-5  # two single-precision computations, each within 1e-5 of the exact logits
BATCH = "tests/golden/model/t5_tied.ragged.batch.safetensors"


@torch.no_grad()
def logits_of(model, batch):
    ids, labels = (torch.tensor(batch[k].astype(np.int64)) for k in ("input_ids", "labels"))
    shifted = torch.cat([torch.zeros_like(labels[:, :1]), labels[:, :-1]], 1)
    out = model(input_ids=ids, attention_mask=(ids != PAD).long(), decoder_input_ids=shifted)
    return (out.logits * (labels != PAD)[..., None]).numpy()


def distance(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def check(adapter, batch):
    model = AutoModelForSeq2SeqLM.from_pretrained("tests/golden/model/mt5_odd", dtype=torch.float32).eval()
    plain = logits_of(model, batch)
    model = PeftModel.from_pretrained(model, adapter).eval()
    ours = load_file(str(adapter).replace(".adapter", ".logits.safetensors"))["logits"]
    theirs, state = logits_of(model, batch), get_peft_model_state_dict(model)
    stored = load_file(adapter / "adapter_model.safetensors")
    same = set(stored) == set(state) and all(np.array_equal(stored[k], state[k].numpy()) for k in stored)
    error = distance(ours, theirs)
    passed = same and error <= LIMIT and distance(plain, theirs) > 0.01
    print(f"{'ok      ' if passed else 'FAILED  '}{adapter.name}: {len(stored)} tensors, logits differ by {error:.1e} "
          f"(limit {LIMIT:.0e}; the adapter moves them by {distance(plain, theirs):.2f})")
    return passed


if __name__ == "__main__":
    adapters, batch = sorted(Path("build/test/lora").glob("*.adapter")), load_file(BATCH)
    sys.exit(not adapters or not all([check(adapter, batch) for adapter in adapters]))
