#!/usr/bin/env python3
"""Times one PyTorch training step, for comparison with the "seconds" of a promot log on the same machine and model.

    python tests/bench_pytorch.py MODEL [--method finetune|prompt|promot] [--batch 8] [--input 512] [--target 64]
                                        [--prompt 100] [--threads 2] [--steps 3] [--dtype float32|bfloat16]

The model is transformers', the optimizer its Adafactor (promot's defaults: parameter scaling for the model, none for a
prompt). Every row has the full length, so nothing is padding. Prints the seconds of each step and the peak memory.
Needs torch and transformers."""
import argparse
import resource
import time

import torch
from transformers import AutoModelForSeq2SeqLM
from transformers.optimization import Adafactor

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model")
parser.add_argument("--method", default="finetune", choices=["finetune", "prompt", "promot"])
parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
for name, value in (("batch", 8), ("input", 512), ("target", 64), ("prompt", 100), ("threads", 2), ("steps", 3)):
    parser.add_argument("--" + name, type=int, default=value)
args = parser.parse_args()

torch.set_num_threads(args.threads)
torch.manual_seed(0)
model = AutoModelForSeq2SeqLM.from_pretrained(args.model, dtype=getattr(torch, args.dtype), attn_implementation="eager")
model.train()
vocabulary, width = model.get_input_embeddings().weight.shape
inputs = torch.randint(3, 32000, (args.batch, args.input))
labels = torch.randint(3, 32000, (args.batch, args.target))
prompt = torch.nn.Parameter(model.get_input_embeddings().weight[:args.prompt].detach().clone())
for parameter in model.parameters():
    parameter.requires_grad_(args.method != "prompt")
prompt.requires_grad_(args.method == "prompt")
trained = [prompt] if args.method == "prompt" else list(model.parameters())
optimizer = Adafactor(trained, lr=0.2 if args.method == "prompt" else 1e-3, relative_step=False, warmup_init=False,
                      scale_parameter=args.method != "prompt")

for step in range(args.steps):
    begun = time.time()
    optimizer.zero_grad(set_to_none=True)
    if args.method == "finetune":
        loss = model(input_ids=inputs, labels=labels).loss
    else:
        embedded = model.get_input_embeddings()(inputs)
        attached = torch.cat([prompt[None].expand(args.batch, -1, -1).to(embedded.dtype), embedded], 1)
        loss = model(inputs_embeds=attached, labels=labels).loss
    forward = time.time()
    loss.backward()
    backward = time.time()
    optimizer.step()
    now = time.time()
    print(f"step {step + 1}: {now - begun:.3f} s (forward {forward - begun:.3f}, backward {backward - forward:.3f}, "
          f"optimizer {now - backward:.3f})  loss {loss.item():.4f}", flush=True)
print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9:.2f} GB")
