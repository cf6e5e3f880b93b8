#!/usr/bin/env python3
"""The independent oracle: writes tests/golden/model/, the numbers that tests/test_parity.c compares promot with.

Everything is computed in double precision by other software (PyTorch and transformers), and by this file from the
published definitions where there is no other software: T5X's loss (t5x/losses.py), Adafactor (t5x/adafactor.py) and
beam search (t5x/decoding.py). Each of these is checked here before it is believed:
  - transformers' T5 against a plain numpy T5 below (logits and encoder output, 1e-11), which also proves that no part
    of transformers' computation fell back to single precision;
  - the gradients against a central difference along a random direction;
  - Adafactor and the T5X beam search against published vectors, when the shared fixtures are there (--shared);
  - transformers' beam search against a plain one.
All models are random and tiny. Seeds are fixed; versions are written to VERSIONS.txt.

tests/golden/lora/ holds the same for LoRA: adapters written by peft, and peft's own forward and backward passes;
tests/golden/mixed/ the same for batches whose examples have different prompts.

    python tests/reference.py [--shared ../shared/data]      needs numpy, torch, transformers, peft, safetensors
"""
import argparse
import contextlib
import json
import math
import platform
import shutil
import zlib
from pathlib import Path

import numpy as np
import peft
import safetensors
import torch
import transformers
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForSeq2SeqLM
from transformers.models.mt5.modeling_mt5 import MT5LayerNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm

GOLDEN = Path("tests/golden/model")
LORA_GOLDEN = Path("tests/golden/lora")
MIXED_GOLDEN = Path("tests/golden/mixed")
PAD, EOS = 0, 1
KEPT = 176  # of a larger tensor, evenly spread elements are kept (see `thin`)


# ----------------------------------------------------------------------------------------------------------------------
# Models: real Hugging Face directories

BASE = dict(model_type="mt5", feed_forward_proj="gated-gelu", relative_attention_num_buckets=32,
            relative_attention_max_distance=128, layer_norm_epsilon=1e-6, tie_word_embeddings=False)

# Odd sizes throughout. head: "own" is a lm_head.weight, "none" leaves it out (tied), "alias" repeats shared.weight.
# branches: how loud attention and MLP are beside the embedding (a tied model repeats its last word otherwise).
MODELS = {
    "mt5_odd": dict(vocab_size=97, d_model=14, d_kv=5, num_heads=3, d_ff=21, num_layers=2, num_decoder_layers=2),
    "t5_tied": dict(model_type="t5", feed_forward_proj="relu", vocab_size=83, d_model=12, d_kv=5, num_heads=3, d_ff=19,
                    num_layers=2, num_decoder_layers=2, tie_word_embeddings=True, head="none", branches=3.0),
    "t5_alias": dict(model_type="t5", feed_forward_proj="relu", vocab_size=29, d_model=9, d_kv=4, num_heads=2, d_ff=11,
                     num_layers=1, num_decoder_layers=1, tie_word_embeddings=None, head="alias"),
    "deep_decoder": dict(model_type="t5", vocab_size=131, d_model=10, d_kv=7, num_heads=2, d_ff=9, num_layers=1,
                         num_decoder_layers=3),
    "deep_encoder": dict(vocab_size=61, d_model=18, d_kv=3, num_heads=5, d_ff=13, num_layers=3, num_decoder_layers=2,
                         relative_attention_num_buckets=8, relative_attention_max_distance=20,
                         layer_norm_epsilon=1e-3),
    "one_head": dict(model_type="t5", feed_forward_proj="relu", vocab_size=37, d_model=7, d_kv=1, num_heads=1, d_ff=3,
                     num_layers=1, num_decoder_layers=1),
    "far": dict(vocab_size=41, d_model=6, d_kv=3, num_heads=3, d_ff=7, num_layers=1, num_decoder_layers=None),
    # Both sides of shared, lm_head, wi_0, wi_1 and wo are at least 128, so Adafactor factors them.
    "factored": dict(vocab_size=150, d_model=130, d_kv=3, num_heads=2, d_ff=129, num_layers=1, num_decoder_layers=1,
                     feed_forward_proj="relu", model_type="t5"),
}


def config_of(name):
    config = {**BASE, **MODELS[name]}
    return {k: v for k, v in config.items()
            if k not in ("head", "branches") and not (k == "tie_word_embeddings" and v is None)}


def random_weights(name, rng):
    """Weights whose attention is neither flat nor one-hot, and whose logits have a spread of about 2."""
    c, head = config_of(name), MODELS[name].get("head", "own")
    d, inner, d_ff = c["d_model"], c["d_kv"] * c["num_heads"], c["d_ff"]
    weights, branches = {}, MODELS[name].get("branches", 1.0)

    def put(key, *shape, std):
        weights[key] = (std * rng.standard_normal(shape)).astype(np.float32)

    def put_norm(key):
        weights[key] = (1 + 0.3 * rng.standard_normal(d)).astype(np.float32)

    def put_attention(key):
        put(key + ".q.weight", inner, d, std=1.5 * (d * c["d_kv"]) ** -0.5)
        for side in "kv":
            put(f"{key}.{side}.weight", inner, d, std=d ** -0.5)
        put(key + ".o.weight", d, inner, std=branches * inner ** -0.5)

    put("shared.weight", c["vocab_size"], d, std=1)
    for stack, layers in (("encoder", c["num_layers"]), ("decoder", c["num_decoder_layers"] or c["num_layers"])):
        mlp = 1 if stack == "encoder" else 2
        put(f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
            c["relative_attention_num_buckets"], c["num_heads"], std=0.8)
        for i in range(layers):
            block = f"{stack}.block.{i}.layer"
            put_attention(f"{block}.0.SelfAttention")
            if stack == "decoder":
                put_attention(f"{block}.1.EncDecAttention")
            for wi in ("wi",) if c["feed_forward_proj"] == "relu" else ("wi_0", "wi_1"):
                put(f"{block}.{mlp}.DenseReluDense.{wi}.weight", d_ff, d, std=d ** -0.5)
            put(f"{block}.{mlp}.DenseReluDense.wo.weight", d, d_ff, std=branches * d_ff ** -0.5)
            for part in range(mlp + 1):
                put_norm(f"{block}.{part}.layer_norm.weight")
        put_norm(f"{stack}.final_layer_norm.weight")
    if head == "own":
        put("lm_head.weight", c["vocab_size"], d, std=2 * d ** -0.5)
    # A head that speaks up for EOS now and then, so that decoding ends at many lengths.
    weights["lm_head.weight" if head == "own" else "shared.weight"][EOS] *= 1.6
    if head == "alias":
        weights["lm_head.weight"] = weights["shared.weight"].copy()
    return weights


def write_model(name, seed):
    directory = GOLDEN / name
    directory.mkdir()
    kind = {"mt5": "MT5", "t5": "T5"}[config_of(name)["model_type"]]
    config = dict(architectures=[kind + "ForConditionalGeneration"], **config_of(name), dropout_rate=0.1,
                  is_encoder_decoder=True, pad_token_id=PAD, eos_token_id=EOS, decoder_start_token_id=0)
    (directory / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    save_file(random_weights(name, np.random.default_rng(seed)), directory / "model.safetensors",
              metadata={"format": "pt"})


def rmsnorm_in_its_own_precision(self, x):
    """transformers takes the mean square in float32 whatever x is; here it stays in x's precision."""
    return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))


T5LayerNorm.forward = MT5LayerNorm.forward = rmsnorm_in_its_own_precision


def load_model(directory):
    model = AutoModelForSeq2SeqLM.from_pretrained(directory, dtype=torch.float64, attn_implementation="eager").double()
    return model.eval()


def check_loaded(model, weights):
    """transformers may tie a head that is not tied: the loaded tensors must be the file's, bit by bit."""
    state = model.state_dict()
    for key, value in weights.items():
        assert torch.equal(state[key], torch.tensor(value, dtype=torch.float64)), key
    tied = model.lm_head.weight is model.shared.weight
    same = np.array_equal(weights.get("lm_head.weight", weights["shared.weight"]), weights["shared.weight"])
    assert tied == same, "tied head"


# ----------------------------------------------------------------------------------------------------------------------
# A plain T5, one sequence at a time, without masks, padding or batches

def plain_bucket(distance, bidirectional, buckets, max_distance):
    """distance = key place - query place. 1.19e-7 as in T5X; it decides nothing but exact powers."""
    base = 0
    if bidirectional:
        buckets //= 2
        base = buckets if distance > 0 else 0
        n = abs(distance)
    else:
        n = max(-distance, 0)
    exact = buckets // 2
    if n < exact:
        return base + n
    far = math.log(n / exact + 1.19e-7) / math.log(max_distance / exact) * (buckets - exact)
    return base + min(buckets - 1, exact + int(far))


class PlainT5:
    def __init__(self, weights, config, tied_and_scaled):
        self.w = {k: v.astype(np.float64) for k, v in weights.items()}
        self.c, self.tied_and_scaled = config, tied_and_scaled

    def norm(self, x, key):
        return self.w[key] * x / np.sqrt((x * x).mean(-1, keepdims=True) + self.c["layer_norm_epsilon"])

    def attention(self, x, memory, key, bias, causal):
        heads, n, m = self.c["num_heads"], len(x), len(memory)
        q, k, v = ((side @ self.w[f"{key}.{s}.weight"].T).reshape(len(side), heads, -1)
                   for s, side in (("q", x), ("k", memory), ("v", memory)))
        scores = np.einsum("ihk,jhk->hij", q, k)
        if bias is not None:
            scores = scores + bias
        if causal:
            scores = np.where(np.arange(m)[None, :] <= np.arange(n)[:, None], scores, -np.inf)
        p = np.exp(scores - scores.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        return np.einsum("hij,jhk->ihk", p, v).reshape(n, -1) @ self.w[f"{key}.o.weight"].T

    def mlp(self, x, key):
        if self.c["feed_forward_proj"] == "relu":
            h = np.maximum(x @ self.w[f"{key}.wi.weight"].T, 0)
        else:
            a = x @ self.w[f"{key}.wi_0.weight"].T
            h = 0.5 * a * (1 + np.tanh(math.sqrt(2 / math.pi) * (a + 0.044715 * a ** 3)))
            h = h * (x @ self.w[f"{key}.wi_1.weight"].T)
        return h @ self.w[f"{key}.wo.weight"].T

    def stack(self, name, x, memory=None):
        layers = self.c["num_layers"] if memory is None else self.c.get("num_decoder_layers") or self.c["num_layers"]
        table = self.w[f"{name}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
        bucket = [[plain_bucket(j - i, memory is None, self.c["relative_attention_num_buckets"],
                                self.c["relative_attention_max_distance"]) for j in range(len(x))]
                  for i in range(len(x))]
        bias = table[np.array(bucket)].transpose(2, 0, 1)
        for i in range(layers):
            block = f"{name}.block.{i}.layer"
            h = self.norm(x, f"{block}.0.layer_norm.weight")
            x = x + self.attention(h, h, f"{block}.0.SelfAttention", bias, memory is not None)
            if memory is not None:
                h = self.norm(x, f"{block}.1.layer_norm.weight")
                x = x + self.attention(h, memory, f"{block}.1.EncDecAttention", None, False)
            mlp = 1 if memory is None else 2
            x = x + self.mlp(self.norm(x, f"{block}.{mlp}.layer_norm.weight"), f"{block}.{mlp}.DenseReluDense")
        return self.norm(x, f"{name}.final_layer_norm.weight")

    def encode(self, ids, prompt):
        x = self.w["shared.weight"][ids]
        return self.stack("encoder", x if prompt is None else np.concatenate([prompt, x]))

    def logits(self, encoded, decoder_ids):
        y = self.stack("decoder", self.w["shared.weight"][decoder_ids], encoded)
        if self.tied_and_scaled:
            return y * self.c["d_model"] ** -0.5 @ self.w["shared.weight"].T
        return y @ self.w["lm_head.weight"].T


# ----------------------------------------------------------------------------------------------------------------------
# Forward, loss and gradients

def make_batch(rng, vocabulary, input_lengths, label_lengths, prompt_shape=None, prompt_rms=1.0, dtype=np.int32):
    """Random ids; labels end in EOS, every second input does."""
    batch = {}
    for key, lengths in (("input_ids", input_lengths), ("labels", label_lengths)):
        ids = np.zeros((len(lengths), max(lengths)), dtype)
        for row, length in enumerate(lengths):
            ids[row, :length] = rng.integers(2, vocabulary, length)
            if key == "labels" or row % 2 == 0:
                ids[row, length - 1] = EOS
        batch[key] = ids
    if prompt_shape:
        batch["prompt"] = (prompt_rms * rng.standard_normal(prompt_shape)).astype(np.float32)
    return batch


def t5x_loss(logits, labels, label_smoothing, z_loss, normalizing_factor):
    """t5x/losses.py, compute_weighted_cross_entropy: summed over the tokens that are not padding."""
    vocabulary = logits.shape[-1]
    confidence, low = 1 - label_smoothing, label_smoothing / (vocabulary - 1)
    constant = -(confidence * math.log(confidence) + (vocabulary - 1) * low * math.log(low + 1e-20))
    target = torch.full_like(logits, low).scatter(-1, labels[..., None], confidence)
    log_z = torch.logsumexp(logits, -1)
    loss = -(target * (logits - log_z[..., None])).sum(-1) - constant + z_loss * log_z ** 2
    return (loss * (labels != PAD)).sum() / (normalizing_factor or 1)


def prompts_of(batch):
    """"prompt", which every example has, or "prompt.0", "prompt.1", … of a mixed batch."""
    return {k: v for k, v in batch.items() if k.startswith("prompt")}


def prompt_of(batch, row):
    """The prompt of one example, or None. "which" [B]: its number in a mixed batch, -1 for none."""
    return batch.get(f"prompt.{int(batch['which'][row])}" if "which" in batch else "prompt")


def torch_batch(batch, precision=torch.float64):
    out = {k: torch.tensor(batch[k].astype(np.int64)) for k in ("input_ids", "labels", "which") if k in batch}
    return out | {k: torch.tensor(v, dtype=precision).requires_grad_() for k, v in prompts_of(batch).items()}


def mixed_encoder_input(x, mask, batch):
    """Each example's own prompt in front; those without one are padded at their end."""
    rows, masks, length = [], [], len(batch["prompt.0"])
    for row in range(len(x)):
        prompt, none = prompt_of(batch, row), x.new_zeros(length, x.shape[-1])
        rows.append(torch.cat([x[row], none] if prompt is None else [prompt, x[row]]))
        there = torch.full((length,), prompt is not None)
        masks.append(torch.cat([mask[row], there] if prompt is None else [there, mask[row]]))
    return torch.stack(rows), torch.stack(masks)


def forward(model, batch):
    """Logits [B,T,V] and encoder output [B,P+S,D], zero at padding."""
    ids, labels, prompt = batch["input_ids"], batch["labels"], batch.get("prompt")
    x, mask = model.shared(ids), ids != PAD
    if prompt is not None:
        x = torch.cat([prompt.expand(len(ids), *prompt.shape), x], 1)
        mask = torch.cat([torch.ones(len(ids), len(prompt), dtype=torch.bool), mask], 1)
    if "which" in batch:
        x, mask = mixed_encoder_input(x, mask, batch)
    shifted = torch.cat([torch.zeros_like(labels[:, :1]), labels[:, :-1]], 1)
    out = model(inputs_embeds=x, attention_mask=mask.long(), decoder_input_ids=shifted)
    return out.logits * (labels != PAD)[..., None], out.encoder_last_hidden_state * mask[..., None]


def loss_and_gradients(model, batch, settings):
    model.zero_grad()
    for prompt in prompts_of(batch).values():
        prompt.grad = None
    logits, encoded = forward(model, batch)
    loss = t5x_loss(logits, batch["labels"], **settings)
    loss.backward()
    gradients = {k: p.grad.numpy().copy() for k, p in (dict(model.named_parameters()) | prompts_of(batch)).items()}
    return dict(loss=loss.item(), logits=logits.detach().numpy(), encoder_output=encoded.detach().numpy(),
                gradients=gradients)


def distance(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def plain_of(model, weights, config):
    scaled = getattr(model.config, "scale_decoder_outputs", False)
    weights = {k: v for k, v in weights.items() if k != "lm_head.weight" or not scaled}
    return PlainT5(weights, config, scaled)


def check_against_plain(plain, batch, result):
    for row, (ids, labels) in enumerate(zip(batch["input_ids"], batch["labels"])):
        ids, labels, prompt = ids[ids != PAD], labels[labels != PAD], prompt_of(batch, row)
        encoded = plain.encode(ids, None if prompt is None else prompt.astype(np.float64))
        logits = plain.logits(encoded, np.concatenate([[0], labels[:-1]]))
        assert distance(result["encoder_output"][row, :len(encoded)], encoded) < 1e-11
        assert distance(result["logits"][row, :len(labels)], logits) < 1e-11


def check_gradients(model, batch, settings, gradients, rng):
    """The slope along a random direction over all tensors, against (loss(+h) - loss(-h)) / 2h."""
    tensors = dict(model.named_parameters()) | prompts_of(batch)
    direction = {k: torch.tensor(rng.standard_normal(tuple(p.shape))) for k, p in tensors.items()}
    slope = sum(float((direction[k].numpy() * g).sum()) for k, g in gradients.items())
    losses, h = [], 3e-8
    with torch.no_grad():
        for step in (h, -2 * h, h):
            for k, p in tensors.items():
                p += step * direction[k]
            losses.append(t5x_loss(forward(model, batch)[0], batch["labels"], **settings).item())
    measured = (losses[0] - losses[1]) / (2 * h)
    # h is small because relu has kinks; what it costs is the loss's rounding, 1e-16 of it, divided by h.
    scale = math.sqrt(sum(float((g * g).sum()) for g in gradients.values()))
    assert abs(slope - measured) < 1e-6 * scale + 1e-14 * losses[2] / h, (slope, measured)


# ----------------------------------------------------------------------------------------------------------------------
# Adafactor, t5x/adafactor.py

def adafactor_step(p, g, state, step, lr, scale_by_parameter, weight_decay=0.0, decay_rate=0.8, clip=1.0,
                   smallest_factored=128):
    """One update of one tensor; `state` is changed in place. alpha = 1 - beta = (step + 1)^-decay_rate."""
    alpha = float(step + 1) ** -decay_rate
    squares = g * g + 1e-30
    if "v" not in state and "row" not in state:
        if p.ndim == 2 and min(p.shape) >= smallest_factored:
            state["row"], state["column"] = np.zeros(p.shape[0]), np.zeros(p.shape[1])
        else:
            state["v"] = np.zeros(p.shape)
    if "v" in state:
        state["v"] = (1 - alpha) * state["v"] + alpha * squares
        y = g / np.sqrt(state["v"])
    else:
        state["row"] = (1 - alpha) * state["row"] + alpha * squares.mean(1)
        state["column"] = (1 - alpha) * state["column"] + alpha * squares.mean(0)
        y = g / np.sqrt(state["row"] / state["row"].mean())[:, None] / np.sqrt(state["column"])[None, :]
    y = y / max(1.0, math.sqrt((y * y).mean()) / clip)
    scale = lr * (max(1e-3, math.sqrt((p * p).mean())) if scale_by_parameter else 1.0)
    return (1 - weight_decay) * p - scale * y


def check_adafactor(shared):
    """The worked numbers of the unfactored update, and T5X's own test vectors."""
    p0, gradients = np.array([0.5, -0.25, 1.0]), (np.array([0.1, -0.2, 0.4]), np.array([0.3, 0.1, -0.1]))
    for settings, first, expected in (
            (dict(lr=0.3, scale_by_parameter=False, weight_decay=1e-5), 0, (-0.1805033, -0.1488108, 0.8103789)),
            (dict(lr=0.3, scale_by_parameter=False, weight_decay=1e-5), 10 ** 6, (-0.2579316, -0.1658669, 0.8170544)),
            (dict(lr=0.001, scale_by_parameter=True), 0, (0.4985004, -0.2497765, 0.9995817))):
        p, state = p0, {}
        for i, g in enumerate(gradients):
            p = adafactor_step(p, g, state, first + i, **settings)
        assert np.abs(p - expected).max() < 6e-8, (p, expected)
    if shared is None:
        return
    cases = {c["name"]: c for c in json.loads((shared / "reference-vectors/adafactor.json").read_text())["cases"]}
    case = cases["factored"]
    # Theirs keeps v_row for the smaller dimension: a (3,2) tensor has v_row of 2 (our column) and v_col of 3 (our row).
    state = dict(row=np.array(case["state"]["v_col"]), column=np.array(case["state"]["v_row"]))
    p = adafactor_step(np.ones((3, 2)), np.ones((3, 2)), state, case["step"], case["lr"], True)
    assert np.allclose(p, 0.9, rtol=1e-6)
    assert np.allclose(state["row"], case["new_state"]["v_col"], rtol=1e-6)
    assert np.allclose(state["column"], case["new_state"]["v_row"], rtol=1e-6)
    case = cases["not factored, momentum beta1 = 0.0"]
    state = dict(v=np.full((3, 2), 0.5))
    p = adafactor_step(np.ones((3, 2)), np.ones((3, 2)), state, case["step"], case["lr"], True)
    assert np.allclose(p, 0.9, rtol=1e-6) and np.allclose(state["v"], 0.787174, rtol=1e-6)


@contextlib.contextmanager
def restored(model):
    """The model's parameters are put back at the end, in double precision."""
    saved = {k: v.clone() for k, v in model.state_dict().items()}
    try:
        yield
    finally:
        model.double().load_state_dict(saved)


def adafactor_run(model, batch, settings, train, first_step, steps, optimizer, precision=torch.float64):
    """Losses before each update, and every trained tensor after the last. precision float32: what rounding does."""
    with restored(model):
        model.to(precision)
        batch = torch_batch(batch, precision)
        trained = dict(model.named_parameters()) if train != "prompt" else {}
        if train != "model":
            trained |= prompts_of(batch)
        states, losses = {k: {} for k in trained}, []
        for i in range(steps):
            result = loss_and_gradients(model, batch, settings)
            losses.append(result["loss"])
            for k, p in trained.items():
                new = adafactor_step(p.detach().numpy().astype(np.float64), result["gradients"][k].astype(np.float64),
                                     states[k], first_step + i, **optimizer)
                p.data = torch.tensor(new, dtype=precision)
        return losses, {k: p.detach().numpy().astype(np.float64) for k, p in trained.items()}


# ----------------------------------------------------------------------------------------------------------------------
# Decoding. `step_logits(prefixes)` gives the logits of the next token of each prefix (a list that begins with 0).

NEG_INF = -1e7


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


class Margin:
    """The smallest difference that decided anything: a decoder whose scores are closer than that is token-exact."""
    def __init__(self):
        self.value = math.inf

    def ranking(self, scores, kept):
        best = np.sort(np.asarray([s for s in scores if s > NEG_INF / 2]))[::-1][:kept + 1]
        if len(best) > 1:
            self.value = min(self.value, float((best[:-1] - best[1:]).min()))

    def comparison(self, a, b):
        if min(a, b) > NEG_INF / 2:
            self.value = min(self.value, abs(a - b))


def t5x_beam_search(step_logits, beams, max_length, alpha, margin, eos=EOS, start=(0,)):
    """t5x/decoding.py, beam_search, for one input. Returns [(score, tokens)], best first. `start`: forced tokens.
    Inside, beams are kept worst first as T5X keeps them: it decides which of two equal candidates wins."""
    def penalty(length):
        return ((5 + length) / 6) ** alpha

    def best(pairs):
        return sorted(pairs, key=lambda pair: -pair[0])[:beams][::-1]

    live = [(0.0 if k == 0 else NEG_INF, list(start)) for k in range(beams)]
    finished = [(NEG_INF, None)] * beams
    for i in range(len(start) - 1, max_length):
        worst = finished[0][0]  # NEG_INF until every slot is filled
        bound = max(s for s, _ in live) / penalty(max_length + 1)
        margin.comparison(worst, bound)
        if worst > bound:
            break
        logp = log_softmax(step_logits([tokens for _, tokens in live])) + np.array([[s] for s, _ in live])
        order = np.argsort(-logp, axis=None, kind="stable")[:2 * beams]
        margin.ranking(logp.ravel(), 2 * beams)
        new = [(logp.flat[o], live[o // logp.shape[1]][1] + [int(o % logp.shape[1])]) for o in order]
        live = best([(s + (NEG_INF if t[-1] == eos else 0), t) for s, t in new])
        ended = [(s / penalty(i + 1), t) for s, t in new if t[-1] == eos]
        margin.ranking([s for s, _ in finished + ended], beams)
        finished = best(finished + ended)
    found = [(s, t) for s, t in finished if t is not None] or live
    return [(s, t[1:]) for s, t in found[::-1]]


def hf_beam_search(step_logits, beams, max_length, length_penalty, early_stopping, margin):
    """What transformers' generate does with num_beams, for one input. Returns [(score, tokens)], best first."""
    live = [(0.0 if k == 0 else -1e9, [0]) for k in range(beams)]
    finished = []
    for length in range(1, max_length + 1):
        logp = log_softmax(step_logits([tokens for _, tokens in live])) + np.array([[s] for s, _ in live])
        order = np.argsort(-logp, axis=None, kind="stable")[:2 * beams]
        margin.ranking(logp.ravel(), 2 * beams)
        new = [(logp.flat[o], live[o // logp.shape[1]][1] + [int(o % logp.shape[1])]) for o in order]
        ended = [(s / length ** length_penalty, t) for s, t in new[:beams] if t[-1] == EOS or length == max_length]
        margin.ranking([s for s, _ in finished + ended], beams)
        finished = sorted(finished + ended, key=lambda x: -x[0])[:beams]
        live = [(s, t) for s, t in new if t[-1] != EOS][:beams]
        if len(finished) == beams:
            worst, bound = finished[-1][0], live[0][0] / length ** length_penalty
            margin.comparison(worst, bound)
            if early_stopping or worst >= bound:
                break
    return [(s, t[1:]) for s, t in finished]


def greedy_search(step_logits, max_length, margin, eos=EOS, start=(0,)):
    """The most probable token at each step. The score is the plain sum of log-probabilities."""
    tokens, score = list(start), 0.0
    while len(tokens) <= max_length:
        logp = log_softmax(step_logits([tokens]))[0]
        margin.ranking(logp, 1)
        tokens.append(int(logp.argmax()))
        score += logp.max()
        if tokens[-1] == eos:
            break
    return [(score, tokens[1:])]


def check_decoding(shared):
    """T5X's own test vectors. Their beams are listed worst first; a stop mark is followed by zeros."""
    if shared is None:
        return
    cases = {c["name"]: c for c in json.loads((shared / "reference-vectors/decoding.json").read_text())["cases"]}

    def forced(row):
        return tuple(row[:1]) + tuple(t for t in row[1:] if t)

    for name in ("greedy (temperature 0)", "greedy with forced prefix"):
        case = cases[name]
        for i, logits in enumerate(case["logits"]):
            start = forced(case["inputs"][i]) if "inputs" in case else (0,)
            # The test's second token is an ordinary one there: no stop mark in these two cases.
            found = greedy_search(lambda p: np.array([logits] * len(p)), len(case["expected"][i]), Margin(), -1, start)
            assert found[0][1] == case["expected"][i], name
    for name in ("beam search with forced prefix", "beam search with forced prefix and finished beams"):
        case = cases[name]
        for i, logits in enumerate(case["logits"]):
            found = t5x_beam_search(lambda p: np.array([logits] * len(p)), case["beams"], len(case["expected"][i][0]),
                                    case["alpha"], Margin(), start=forced(case["inputs"][i]))
            for (score, tokens), s, t in zip(found[::-1], case["scores"][i], case["expected"][i]):
                assert tokens + [0] * (len(t) - len(tokens)) == t and abs(score - s) < 1e-5, name
    check_markov_chain(cases["beam search over a Markov chain"])


def check_markov_chain(case):
    a, b, start, end = 1, 2, 3, 4
    moves = [[[1, -1], [-1, 1]], [[-1, 1], [1, -1]]] * 2

    def step_logits(prefixes):
        out = np.full((len(prefixes), 5), NEG_INF)
        for row, prefix in zip(out, prefixes):
            if len(prefix) == 1:
                row[start] = 0
            elif prefix[-1] == start:
                row[[a, b]] = 0
            elif prefix[-1] in (a, b) and len(prefix) < 7:
                row[[a, b]] = moves[len(prefix) - 3][prefix[-1] - a]
            elif prefix[-1] in (a, b):
                row[end] = 0
        return out

    found = t5x_beam_search(step_logits, case["beams"], case["decode_length"], case["alpha"], Margin(), eos=end)
    names = {a: "A", b: "B", start: "START ", end: " END"}
    assert sorted("".join(names[t] for t in tokens) for _, tokens in found) == sorted(case["expected"])


def model_step_logits(model, ids, prompt):
    """The decoder of `model` on one input, without a cache."""
    x = model.shared(torch.tensor([ids]))
    if prompt is not None:
        x = torch.cat([torch.tensor(prompt, dtype=torch.float64)[None], x], 1)
    encoded = model.encoder(inputs_embeds=x).last_hidden_state

    def step_logits(prefixes):
        out = model(encoder_outputs=(encoded.expand(len(prefixes), -1, -1),), decoder_input_ids=torch.tensor(prefixes))
        return out.logits[:, -1].numpy()
    return step_logits


def transformers_generate(model, inputs, prompt, **options):
    """The same inputs as one padded batch through transformers' own generate. Without its cache, which transformers
    5.23 makes for as many layers as the encoder has."""
    longest = max(map(len, inputs))
    ids = torch.tensor([row + [PAD] * (longest - len(row)) for row in inputs])
    x, mask = model.shared(ids), (ids != PAD).long()
    if prompt is not None:
        prompt = torch.tensor(prompt, dtype=torch.float64)
        x = torch.cat([prompt.expand(len(ids), *prompt.shape), x], 1)
        mask = torch.cat([torch.ones(len(ids), len(prompt), dtype=torch.long), mask], 1)
    out = model.generate(inputs_embeds=x, attention_mask=mask, return_dict_in_generate=True, output_scores=True,
                         num_return_sequences=options["num_beams"], do_sample=False, use_cache=False,
                         **options)
    rows = [[int(t) for t in row[1:]] for row in out.sequences]
    rows = [row[:row.index(EOS) + 1] if EOS in row else row for row in rows]
    return list(zip(out.sequences_scores.tolist(), rows))


# ----------------------------------------------------------------------------------------------------------------------
# The cases, and writing them

def thin(array):
    """All elements of a small tensor; of a larger one every n-th, n a prime that does not divide its last dimension, so
    that every row and column is met. Returns n and the elements."""
    n = 1
    if array.size > KEPT:
        n = math.ceil(array.size / KEPT)
        while array.shape[-1] % n == 0 or any(n % k == 0 for k in range(2, n)):
            n += 1
    return n, array.reshape(-1)[::n].astype(np.float32)


def write_expected(name, tensors, golden=GOLDEN):
    """Tensor T is stored as "n/T": every n-th of its elements in row-major order."""
    out = {}
    for key, array in tensors.items():
        n, kept = thin(np.asarray(array))
        out[f"{n}/{key}"] = kept
    save_file(out, golden / f"{name}.expected.safetensors")


def options_of(settings):
    words = [f"--label-smoothing {settings['label_smoothing']}", f"--z-loss {settings['z_loss']}",
             f"--loss-normalizing-factor {settings['normalizing_factor'] or 'none'}"]
    return " ".join(words)


def loss_settings(smoothing=0.0, z=1e-4, factor=None):
    return dict(label_smoothing=smoothing, z_loss=z, normalizing_factor=factor)


# name: model, input lengths, label lengths, prompt rows, loss, and how large the prompt's numbers are
RAGGED = ((5, 1, 9, 2), (3, 4, 1, 7))
DUMPS = {
    "mt5_odd.ragged": ("mt5_odd", *RAGGED, 0, loss_settings()),
    "mt5_odd.prompt": ("mt5_odd", *RAGGED, 7, loss_settings(0.1, 1e-4, 13.5)),
    "mt5_odd.trained_prompt": ("mt5_odd", (3, 6), (4, 2), 5, loss_settings(0.1), 34.5),
    "t5_tied.ragged": ("t5_tied", *RAGGED, 0, loss_settings(0.1)),
    "t5_tied.prompt": ("t5_tied", (6, 3), (2, 5), 3, loss_settings()),
    "t5_alias.ragged": ("t5_alias", *RAGGED, 0, loss_settings(0.1, 0.0, 234496)),
    "deep_decoder.single": ("deep_decoder", (11,), (6,), 0, loss_settings(0.0, 0.0)),
    "deep_decoder.prompt": ("deep_decoder", (1,), (9,), 1, loss_settings(0.1, 0.0)),
    "deep_encoder.ragged": ("deep_encoder", (31, 1, 17), (3, 26, 1), 0, loss_settings(0.2, 1e-2)),
    "deep_encoder.prompt": ("deep_encoder", (4, 26, 1), (2, 5, 1), 7, loss_settings(0.1)),
    "one_head.ragged": ("one_head", *RAGGED, 0, loss_settings(0.1)),
    "one_head.one_token": ("one_head", (1, 1, 1), (1, 1, 1), 2, loss_settings()),
    "far.long": ("far", (150, 3), (140, 131), 0, loss_settings(0.1)),
    "far.prompt": ("far", (45, 1, 37), (3, 5, 2), 100, loss_settings()),
    "factored.prompt": ("factored", *RAGGED, 2, loss_settings(0.1)),
}


# name: directory in the shared fixtures, loss, input lengths, label lengths
SHARED_DUMPS = {
    "hf_tiny_safetensors": ("checkpoints/hf-tiny-t5-safetensors", loss_settings(0.1), *RAGGED),
    "hf_tiny_torchbin": ("checkpoints/hf-tiny-t5-torchbin", loss_settings(), *RAGGED),
}


def optimizer(lr, scale, decay=0.0, **more):
    return dict(lr=lr, scale_by_parameter=scale, weight_decay=decay, **more)


# name: model, input lengths, label lengths, prompt rows, what is trained, first step, Adafactor's settings
STEPS = {
    "mt5_odd.finetune": ("mt5_odd", *RAGGED, 0, "model", 0, optimizer(1e-3, True)),
    "mt5_odd.finetune_late": ("mt5_odd", *RAGGED, 7, "model", 10 ** 6, optimizer(1e-3, True)),
    "mt5_odd.tune_prompt": ("mt5_odd", *RAGGED, 7, "prompt", 0, optimizer(0.2, False)),
    "mt5_odd.tune_prompt_late": ("mt5_odd", *RAGGED, 7, "prompt", 10 ** 6, optimizer(0.3, False, 1e-5)),
    "t5_tied.finetune": ("t5_tied", *RAGGED, 0, "model", 0, optimizer(1e-3, False, 1e-3)),
    "deep_encoder.both": ("deep_encoder", (4, 26, 1), (2, 5, 1), 7, "both", 0, optimizer(1e-3, True, 1e-4)),
    "deep_decoder.both_late": ("deep_decoder", *RAGGED, 3, "both", 10 ** 6,
                               optimizer(2e-3, False, decay_rate=0.7, clip=0.5)),
    "factored.finetune": ("factored", *RAGGED, 0, "model", 0, optimizer(1e-3, True)),
    "factored.finetune_late": ("factored", *RAGGED, 2, "model", 10 ** 6, optimizer(1e-3, True, 1e-5)),
    "factored.tune_prompt": ("factored", *RAGGED, 131, "prompt", 0, optimizer(0.2, False, 1e-5)),
}


# Gradient alignment. name: model, input lengths, label lengths of the full task and of the format, prompt rows, loss
ALIGNMENTS = {
    "mt5_odd.align": ("mt5_odd", *RAGGED, (2, 5, 3, 6), 0, loss_settings(0.1)),
    "mt5_odd.align_prompt": ("mt5_odd", (3, 6, 1), (4, 2, 7), (4, 2, 7), 5, loss_settings()),
    "t5_tied.align": ("t5_tied", *RAGGED, (3, 4, 1, 7), 0, loss_settings()),
    "t5_tied.align_prompt": ("t5_tied", (6, 3), (2, 5), (1, 5), 3, loss_settings(0.1, 0.0)),
}


# Decoding. name: model, prompt rows and how they are stored, inputs, beams, longest output, rule and its numbers.
# Rule: "greedy", ("t5x", alpha) or ("hf", length penalty, early stopping).
DECODES = {
    "mt5_odd.greedy": ("mt5_odd", 0, "", 8, 1, 14, ("greedy",)),
    "deep_decoder.greedy_prompt": ("deep_decoder", 3, "peft", 5, 1, 14, ("greedy",)),
    "mt5_odd.t5x": ("mt5_odd", 0, "", 8, 4, 14, ("t5x", 0.6)),
    "mt5_odd.t5x_prompt": ("mt5_odd", 7, "peft", 6, 3, 9, ("t5x", 1.0)),
    "t5_tied.t5x": ("t5_tied", 0, "", 6, 4, 12, ("t5x", 0.6)),
    "deep_encoder.t5x_prompt": ("deep_encoder", 5, "npy", 6, 5, 24, ("t5x", 0.6)),
    "deep_decoder.t5x_one_token": ("deep_decoder", 0, "", 4, 4, 1, ("t5x", 0.6)),
    "deep_decoder.t5x_wide": ("deep_decoder", 0, "", 4, 8, 20, ("t5x", 0.3)),
    "mt5_odd.hf": ("mt5_odd", 0, "", 8, 4, 14, ("hf", 1.0, False)),
    "mt5_odd.hf_early": ("mt5_odd", 0, "", 8, 3, 14, ("hf", 0.6, True)),
    "t5_tied.hf": ("t5_tied", 0, "", 6, 2, 12, ("hf", 0.5, False)),
    "deep_encoder.hf_prompt": ("deep_encoder", 7, "npy", 6, 4, 20, ("hf", 0.0, False)),
    "deep_decoder.hf_prompt_early": ("deep_decoder", 3, "peft", 6, 5, 16, ("hf", 1.0, True)),
}
CLEAR = 3e-4  # inputs are chosen so that no decision hangs on less; single precision is 1e-6 to 1e-5 away


def decode(step_logits, beams, longest, rule, margin):
    if rule[0] == "greedy":
        return greedy_search(step_logits, longest, margin)
    if rule[0] == "t5x":
        return t5x_beam_search(step_logits, beams, longest, rule[1], margin)
    return hf_beam_search(step_logits, beams, longest, rule[1], rule[2], margin)


def choose_inputs(model, prompt, vocabulary, count, beams, longest, rule, rng):
    """Random inputs with clear decisions, and outputs as different in length as can be had."""
    candidates = []
    for _ in range(12 * count):
        ids = [int(t) for t in rng.integers(2, vocabulary, rng.integers(1, 13))]
        ids = ids + [EOS] if len(candidates) % 2 else ids
        margin = Margin()
        found = decode(model_step_logits(model, ids, prompt), beams, longest, rule, margin)
        if margin.value > CLEAR:
            candidates.append((tuple(len(t) for _, t in found), ids, found))
    chosen, seen = [], []
    while len(chosen) < count:
        best = min(candidates, key=lambda c: (seen.count(c[0]), seen.count(c[0][0]), -len(set(c[0]))))
        candidates.remove(best)
        chosen.append(best[1:])
        seen += [best[0], best[0][0]]
    return [ids for ids, _ in chosen], [found for _, found in chosen]


def write_prompt(path, prompt, form):
    """A PEFT adapter as peft writes it (twice the rows for an encoder-decoder; only the first half counts), or a numpy
    file without suffix."""
    if form == "npy":
        with open(path, "wb") as file:
            np.save(file, prompt)
        return
    path.mkdir()
    rows, width = prompt.shape
    save_file({"prompt_embeddings": np.concatenate([prompt, prompt + 1])}, path / "adapter_model.safetensors",
              metadata={"format": "pt"})
    config = dict(base_model_name_or_path="", inference_mode=True, num_attention_heads=1, num_layers=1,
                  num_transformer_submodules=2, num_virtual_tokens=rows, peft_type="PROMPT_TUNING",
                  prompt_tuning_init="RANDOM", prompt_tuning_init_text=None, task_type="SEQ_2_SEQ_LM", token_dim=width)
    (path / "adapter_config.json").write_text(json.dumps(config, indent=1) + "\n")


def module_of(name):
    """The part of the model that a parameter of transformers belongs to."""
    part, words = name.split(".")[0], name.split(".")
    if name == "prompt" or part in ("shared", "lm_head"):
        return part
    if words[-2] == "relative_attention_bias":
        return words[-2]
    if words[-2].endswith("layer_norm"):
        return part + ".norms"
    return f"{part}.{words[-3]}"  # stack.block.3.layer.0.SelfAttention.q.weight


def alignment(full, format):
    """For each module, and for the model in total (the prompt apart): <full, format>, the two norms and the cosine."""
    groups = {"total": [k for k in full if k != "prompt"]}
    for k in full:
        groups.setdefault(module_of(k), []).append(k)
    out = {}
    for module, names in groups.items():
        a, b = (np.concatenate([g[k].ravel() for k in names]) for g in (full, format))
        norms = float(np.linalg.norm(a)), float(np.linalg.norm(b))
        out[module] = dict(dot=float(a @ b), full=norms[0], format=norms[1], cosine=float(a @ b) / norms[0] / norms[1])
    return out


# ----------------------------------------------------------------------------------------------------------------------
# LoRA

# name: model, rank, alpha, more of peft's LoraConfig, how large B is (0: as it begins), prompt rows, the learning rate of
# the ten steps, and in which of them what is trained: A and B, or the model beside them.
LORAS = {
    "mt5_odd.q_v": ("mt5_odd", 3, 5, dict(target_modules=["q", "v"]), 0.5, 0, 0.02, "adapter"),
    "mt5_odd.fresh": ("mt5_odd", 4, 32, dict(target_modules=["q", "v"]), 0.0, 0, 0.01, "adapter"),
    "t5_tied.all": ("t5_tied", 5, 8, dict(target_modules="all-linear"), 0.3, 3, 0.01, "adapter"),
    "deep_decoder.cross_mlp": ("deep_decoder", 2, 3, dict(target_modules=r".*(EncDecAttention\.(k|o)|wi_1)",
                                                          use_rslora=True), 0.5, 0, 0.02, "adapter"),
    "factored.wide": ("factored", 131, 16, dict(target_modules=r"encoder.*wo"), 0.05, 0, 0.01, "adapter"),
    "mt5_odd.second_stage": ("mt5_odd", 3, 5, dict(target_modules=["q", "v", "wi_0"]), 0.5, 0, 1e-3, "model"),
    "factored.second_stage": ("factored", 2, 4, dict(target_modules=["q", "wi", "wo"]), 0.3, 2, 1e-3, "model"),
}


def plain_name(name):
    """Names without what peft puts into them: the wrapped layer's own, and the adapter's."""
    return name.replace(".base_layer", "").replace(".default", "")


def lora_weights(model, rank, alpha, options, b_size, rng):
    """Wraps the model's matrices, in place, with A and B that are single-precision numbers."""
    config = peft.LoraConfig(task_type="SEQ_2_SEQ_LM", r=rank, lora_alpha=alpha, **options)
    wrapped = peft.get_peft_model(model, config)
    for name, p in model.named_parameters():
        p.requires_grad_(True)
        if ".lora_" in name:
            size = p.shape[1] ** -0.5 if ".lora_A" in name else b_size * rank ** -0.5
            p.data = torch.tensor((size * rng.uniform(-1, 1, tuple(p.shape))).astype(np.float32), dtype=torch.float64)
    return wrapped


def merged_weights(model, weights, scale):
    """W0 + scale * B·A by this file."""
    state = {plain_name(k): v.numpy() for k, v in model.state_dict().items()}
    merged = {k: v.astype(np.float64) for k, v in weights.items()}
    for key in [k for k in state if ".lora_A" in k]:
        a, b = state[key], state[key.replace(".lora_A", ".lora_B")]
        merged[key.replace(".lora_A", "")] = merged[key.replace(".lora_A", "")] + scale * b @ a
    return merged


def lora_run(model, batch, loss, trained, steps, settings, precision=torch.float64):
    """adafactor_run, of A and B or of all others."""
    with restored(model):
        model.to(precision)
        batch = torch_batch(batch, precision)
        trained = {k: p for k, p in model.named_parameters() if (".lora_" in k) == (trained == "adapter")}
        states, losses = {k: {} for k in trained}, []
        for i in range(steps):
            result = loss_and_gradients(model, batch, loss)
            losses.append(result["loss"])
            for k, p in trained.items():
                new = adafactor_step(p.detach().numpy().astype(np.float64), result["gradients"][k].astype(np.float64),
                                     states[k], i, **settings)
                p.data = torch.tensor(new, dtype=precision)
        return losses, {plain_name(k): p.detach().numpy().astype(np.float64) for k, p in trained.items()}


def lora_case(name, model_name, rank, alpha, options, b_size, prompt_rows, lr, trained, say):
    """The first loss, logits and gradients of A and B, and ten steps. Returns its line of cases.txt."""
    rng = np.random.default_rng([zlib.crc32(name.encode()), 1])
    weights, loss = load_file(GOLDEN / model_name / "model.safetensors"), loss_settings(0.1)
    model, c = load_model(GOLDEN / model_name), config_of(model_name)
    wrapped = lora_weights(model, rank, alpha, options, b_size, rng)
    scale = alpha / (math.sqrt(rank) if options.get("use_rslora") else rank)
    settings = optimizer(lr, trained == "model", 1e-4 if trained == "model" else 0.0)
    doubt, seed = (1, ""), 0
    while doubt[0] > 1e-4:  # as in Writer.steps
        batch = make_batch(np.random.default_rng([zlib.crc32(name.encode()), 2, seed]), c["vocab_size"], *RAGGED,
                           prompt_rows and (prompt_rows, c["d_model"]))
        before = {plain_name(k): p.detach().numpy().copy() for k, p in model.named_parameters()}
        losses, after = lora_run(model, batch, loss, trained, 10, settings)
        rounded = lora_run(model, batch, loss, trained, 10, settings, torch.float32)[1]
        moved = {k: p - before[k] for k, p in after.items()}
        doubt = max((np.linalg.norm(rounded[k] - after[k]) / max(np.linalg.norm(moved[k]), 1e-30), k) for k in moved)
        seed += 1
    result = loss_and_gradients(model, torch_batch(batch), loss)
    plain = plain_of(model, merged_weights(model, weights, scale), c)
    check_against_plain(plain, batch, result)
    gradients = {plain_name(k): g for k, g in result["gradients"].items() if ".lora_" in k}
    with restored(model):
        check_gradients(model, torch_batch(batch), loss, result["gradients"], np.random.default_rng(1))
    save_file(batch, LORA_GOLDEN / f"{name}.batch.safetensors")
    write_expected(name, dict(loss=np.array([result["loss"]]), logits=result["logits"], losses=np.array(losses),
                              **{"grad/" + k: g for k, g in gradients.items()},
                              **{"moved/" + k: m for k, m in moved.items()}), LORA_GOLDEN)
    wrapped.float().save_pretrained(LORA_GOLDEN / f"{name}.adapter")
    (LORA_GOLDEN / f"{name}.adapter" / "README.md").unlink()
    file = LORA_GOLDEN / f"{name}.adapter" / "adapter_config.json"
    config = json.loads(file.read_text())
    if isinstance(config["target_modules"], list):  # peft keeps a set, whose order is another in every run
        config["target_modules"].sort()
    file.write_text(json.dumps(config, indent=2, sort_keys=True))
    say(f"lora {name}: loss {losses[0]:.3f} to {losses[-1]:.3f}, float32 is {doubt[0]:.1e} away in {doubt[1]}")
    return f"{trained} {name} {model_name} {lr} {settings['weight_decay']}"


def write_loras(say):
    shutil.rmtree(LORA_GOLDEN, ignore_errors=True)
    LORA_GOLDEN.mkdir()
    lines = [lora_case(name, *case, say) for name, case in LORAS.items()]
    (LORA_GOLDEN / "cases.txt").write_text("".join(line + "\n" for line in lines))
    (LORA_GOLDEN / "VERSIONS.txt").write_text(
        f"python {platform.python_version()}\ntorch {torch.__version__}\ntransformers {transformers.__version__}\n"
        f"peft {peft.__version__}\nnumpy {np.__version__}\nsafetensors {safetensors.__version__}\n")
    for file in LORA_GOLDEN.rglob("*"):
        file.chmod(0o755 if file.is_dir() else 0o644)


# ----------------------------------------------------------------------------------------------------------------------
# Batches of several tasks, each example with its own task's prompt or without one

# name: model, prompt rows, loss, what ten steps train and Adafactor's settings
MIXED = {
    "mt5_odd.prompts": ("mt5_odd", 4, loss_settings(0.1), "prompt", optimizer(0.2, False, 1e-5)),
    "mt5_odd.model": ("mt5_odd", 3, loss_settings(), "model", optimizer(1e-3, True)),
    "t5_tied.both": ("t5_tied", 5, loss_settings(0.1), "both", optimizer(2e-3, False)),
    "factored.model": ("factored", 2, loss_settings(0.1), "model", optimizer(1e-3, True)),
}
MIXED_PROMPTS, MIXED_WHICH = 3, (1, -1, 0, 2, 1, -1, 2, 1)
MIXED_LENGTHS = ((5, 1, 9, 2, 1, 7, 3, 4), (3, 4, 1, 7, 2, 6, 1, 5))


def mixed_batch(name, seed, c, rows):
    batch = make_batch(np.random.default_rng([zlib.crc32(name.encode()), 3, seed]), c["vocab_size"], *MIXED_LENGTHS)
    rng = np.random.default_rng([zlib.crc32(name.encode()), 4, seed])
    prompts = {f"prompt.{i}": rng.standard_normal((rows, c["d_model"])).astype(np.float32)
               for i in range(MIXED_PROMPTS)}
    return {**batch, "which": np.array(MIXED_WHICH, np.int32), **prompts}


def mixed_case(name, model_name, rows, loss, train, settings, say):
    """The first pass (its loss also example by example) and ten steps. Returns its line of cases.txt."""
    model, weights, c = load_model(GOLDEN / model_name), load_file(GOLDEN / model_name / "model.safetensors"), \
        config_of(model_name)
    doubt, seed = (1, ""), 0
    while doubt[0] > 1e-4:  # as in Writer.steps
        batch = mixed_batch(name, seed, c, rows)
        run = [model, batch, loss, train, 0, 10, settings]
        losses, after = adafactor_run(*run)
        moved = {k: p - {**weights, **batch}[k] for k, p in after.items()}
        rounded = adafactor_run(*run, precision=torch.float32)[1]
        doubt = max((np.linalg.norm(rounded[k] - after[k]) / np.linalg.norm(moved[k]), k) for k in moved)
        seed += 1
    result = loss_and_gradients(model, torch_batch(batch), loss)
    check_against_plain(plain_of(model, weights, c), batch, result)
    with restored(model):
        check_gradients(model, torch_batch(batch), loss, result["gradients"], np.random.default_rng(1))
    labels = torch_batch(batch)["labels"]
    apart = [t5x_loss(torch.tensor(result["logits"][i]), labels[i], **loss).item() for i in range(len(labels))]
    assert abs(sum(apart) - result["loss"]) < 1e-10 * result["loss"]
    save_file(batch, MIXED_GOLDEN / f"{name}.batch.safetensors")
    write_expected(name, dict(loss=np.array([result["loss"]]), example_losses=np.array(apart),
                              logits=result["logits"], losses=np.array(losses),
                              **{"grad/" + k: g for k, g in result["gradients"].items()},
                              **{"moved/" + k: m for k, m in moved.items()}), MIXED_GOLDEN)
    say(f"mixed {name}: loss {losses[0]:.3f} to {losses[-1]:.3f}, float32 is {doubt[0]:.1e} away in {doubt[1]}")
    return (f"{train} {name} {model_name} {loss['label_smoothing']} {loss['z_loss']} {settings['lr']} "
            f"{settings['weight_decay']} {int(settings['scale_by_parameter'])}")


def write_mixed(say):
    shutil.rmtree(MIXED_GOLDEN, ignore_errors=True)
    MIXED_GOLDEN.mkdir()
    lines = [mixed_case(name, *case, say) for name, case in MIXED.items()]
    (MIXED_GOLDEN / "cases.txt").write_text("".join(line + "\n" for line in lines))
    (MIXED_GOLDEN / "VERSIONS.txt").write_text((GOLDEN / "VERSIONS.txt").read_text())
    for file in MIXED_GOLDEN.iterdir():
        file.chmod(0o644)


class Writer:
    def __init__(self, verbose):
        self.models, self.lines, self.verbose = {}, [], verbose

    def model(self, name):
        if name not in self.models:
            write_model(name, 100 + list(MODELS).index(name))
            weights = load_file(GOLDEN / name / "model.safetensors")
            self.models[name] = (load_model(GOLDEN / name), weights)
            check_loaded(*self.models[name])
        return self.models[name]

    def say(self, text):
        if self.verbose:
            print(text, flush=True)

    def batch(self, name, model_name, inputs, labels, prompt_rows, rms=1.0, seed=0):
        c, number = config_of(model_name), zlib.crc32(name.encode())
        batch = make_batch(np.random.default_rng([number, seed]), c["vocab_size"], inputs, labels,
                           prompt_rows and (prompt_rows, c["d_model"]), rms, np.int32 if number % 2 else np.int64)
        save_file(batch, GOLDEN / f"{name}.batch.safetensors")
        return batch

    def dump(self, name, model_name, inputs, labels, prompt_rows, settings, rms=1.0):
        model, weights = self.model(model_name)
        batch = self.batch(name, model_name, inputs, labels, prompt_rows, rms)
        config = config_of(model_name)
        self.check_and_write_dump(f"dump {name} {model_name}", name, model, weights, config, batch, settings)

    def check_and_write_dump(self, case, name, model, weights, config, batch, settings):
        result = loss_and_gradients(model, torch_batch(batch), settings)
        check_against_plain(plain_of(model, weights, config), batch, result)
        with restored(model):
            check_gradients(model, torch_batch(batch), settings, result["gradients"], np.random.default_rng(1))
        with restored(model):
            rounded = loss_and_gradients(model.float(), torch_batch(batch, torch.float32), settings)
        whole = math.sqrt(sum(float((g * g).sum()) for g in result["gradients"].values()))
        doubt = (0.0, "")
        for k, g in result["gradients"].items():
            if np.linalg.norm(g) < 1e-12 * whole:  # zero but for rounding: a softmax over one place
                g[...] = 0
            else:
                doubt = max(doubt, (distance(rounded["gradients"][k], g), k))
        # A gradient that single precision itself cannot give to 1e-4 would be no test.
        assert doubt[0] < 3e-5, doubt
        write_expected(name, dict(loss=np.array([result["loss"]]), logits=result["logits"],
                                  encoder_output=result["encoder_output"],
                                  **{"grad/" + k: g for k, g in result["gradients"].items()}))
        self.lines.append(f"{case} {options_of(settings)}")
        self.say(f"{self.lines[-1]}: loss {result['loss']:.6f}, logits' std {result['logits'].std():.2f}, "
                 f"float32 gives logits to {distance(rounded['logits'], result['logits']):.1e}, "
                 f"{doubt[1]} to {doubt[0]:.1e}")

    def steps(self, name, model_name, inputs, labels, prompt_rows, train, first_step, settings):
        model, weights = self.model(model_name)
        loss, doubt, seed = loss_settings(0.1), (1, ""), 0
        # The sign of a gradient near zero decides a first step: a batch on which single precision cannot follow to a
        # tenth of the tests' limit is no test.
        while doubt[0] > 1e-4:
            batch = self.batch(name, model_name, inputs, labels, prompt_rows, seed=seed)
            run = [model, batch, loss, train, first_step, 10, settings]
            losses, after = adafactor_run(*run)
            before = {**weights, "prompt": batch.get("prompt")}
            moved = {k: p - before[k] for k, p in after.items()}
            rounded = adafactor_run(*run, precision=torch.float32)[1]
            doubt = max((np.linalg.norm(rounded[k] - after[k]) / np.linalg.norm(moved[k]), k) for k in moved)
            seed += 1
        write_expected(name, dict(losses=np.array(losses), **{"moved/" + k: m for k, m in moved.items()}))
        words = dict(lr=settings["lr"], optimizer_step=first_step, weight_decay=settings["weight_decay"],
                     scale_by_parameter=str(settings["scale_by_parameter"]).lower(), train=train, steps=10,
                     decay_rate=settings.get("decay_rate", 0.8), clip=settings.get("clip", 1.0))
        self.lines.append(f"steps {name} {model_name} {options_of(loss)} "
                          + " ".join(f"--{k.replace('_', '-')} {v}" for k, v in words.items()))
        self.say(f"{self.lines[-1]}: loss {losses[0]:.3f} to {losses[-1]:.3f}, "
                 f"float32 is {doubt[0]:.1e} away in {doubt[1]}")

    def shared_dump(self, name, directory, shared, settings, inputs, labels):
        """A published checkpoint: only its batch and the expected numbers are stored."""
        model, config = load_model(shared / directory), json.loads((shared / directory / "config.json").read_text())
        batch = make_batch(np.random.default_rng(7), config["vocab_size"], inputs, labels)
        save_file(batch, GOLDEN / f"{name}.batch.safetensors")
        weights = {k: v.detach().numpy() for k, v in model.state_dict().items()}
        self.check_and_write_dump(f"published {name} {directory}", name, model, weights, config, batch, settings)

    def align(self, name, model_name, inputs, labels, format_labels, prompt_rows, settings):
        """Two batches of the same inputs with different targets: the gradients of both, module by module."""
        model, vocabulary = self.model(model_name)[0], config_of(model_name)["vocab_size"]
        full = self.batch(name, model_name, inputs, labels, prompt_rows)
        other = make_batch(np.random.default_rng([zlib.crc32(name.encode()), 1]), vocabulary, inputs, format_labels,
                           dtype=full["labels"].dtype)
        format_only = {**full, "labels": other["labels"]}
        save_file(format_only, GOLDEN / f"{name}.format.safetensors")
        gradients = [loss_and_gradients(model, torch_batch(batch), settings)["gradients"]
                     for batch in (full, format_only)]
        for batch, g in zip((full, format_only), gradients):
            with restored(model):
                check_gradients(model, torch_batch(batch), settings, g, np.random.default_rng(1))
        found = alignment(*gradients)
        (GOLDEN / f"{name}.expected.json").write_text(json.dumps(found, indent=1) + "\n")
        self.lines.append(f"align {name} {model_name} {options_of(settings)}")
        self.say(f"{self.lines[-1]}: " + ", ".join(f"{k} {v['cosine']:.3f}" for k, v in found.items()))

    @torch.no_grad()
    def decode(self, name, model_name, prompt_rows, form, count, beams, longest, rule):
        model, c = self.model(model_name)[0], config_of(model_name)
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        prompt = rng.standard_normal((prompt_rows, c["d_model"])).astype(np.float32) if prompt_rows else None
        inputs, outputs = choose_inputs(model, prompt, c["vocab_size"], count, beams, longest, rule, rng)
        words = [f"--beams {beams} --max-length {longest}"]
        if rule[0] == "hf":
            words += [f"--length-rule hf --length-penalty {rule[1]}"] + ["--early-stopping"] * rule[2]
            found = transformers_generate(model, inputs, prompt, num_beams=beams, max_new_tokens=longest,
                                          length_penalty=rule[1], early_stopping=rule[2])
            for (score, tokens), (s, t) in zip(sum(outputs, []), found, strict=True):
                assert tokens == t and abs(score - s) < 1e-5, (name, score, s, tokens, t)
        else:
            words += [f"--length-rule t5x --alpha {rule[1] if rule[0] == 't5x' else 0}"]
        if prompt_rows:
            write_prompt(GOLDEN / f"{name}.prompt", prompt, form)
            words.append(f"--prompt {GOLDEN}/{name}.prompt")
        lines = []
        for found in outputs:
            lines += [f"{s:.6f}\t" + " ".join(str(i) for i in t if i not in (PAD, EOS)) for s, t in found]
            lines += [f"{NEG_INF:.6f}\t"] * (beams - len(found))  # slots that T5X leaves as they were at the start
        (GOLDEN / f"{name}.inputs.txt").write_text("".join(" ".join(map(str, ids)) + "\n" for ids in inputs))
        (GOLDEN / f"{name}.expected.txt").write_text("".join(line + "\n" for line in lines))
        self.lines.append(f"generate {name} {model_name} --n-best {beams} {' '.join(words)}")
        self.say(self.lines[-1] + ": lengths " + ", ".join("/".join(str(len(t)) for _, t in o) for o in outputs))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"), help="the shared fixtures, if any")
    parser.add_argument("--verbose", action="store_true")
    arguments = parser.parse_args()
    shared = arguments.shared if (arguments.shared / "SOURCE.md").exists() else None
    torch.set_num_threads(1)
    check_adafactor(shared)
    check_decoding(shared)
    shutil.rmtree(GOLDEN, ignore_errors=True)
    GOLDEN.mkdir(parents=True)
    writer = Writer(arguments.verbose)
    for name, case in DUMPS.items():
        writer.dump(name, *case)
    for name, case in SHARED_DUMPS.items() if shared else ():
        writer.shared_dump(name, case[0], shared, *case[1:])
    for name, case in STEPS.items():
        writer.steps(name, *case)
    for name, case in ALIGNMENTS.items():
        writer.align(name, *case)
    for name, case in DECODES.items():
        writer.decode(name, *case)
    (GOLDEN / "VERSIONS.txt").write_text(
        f"python {platform.python_version()}\ntorch {torch.__version__}\ntransformers {transformers.__version__}\n"
        f"numpy {np.__version__}\nsafetensors {safetensors.__version__}\n")
    (GOLDEN / "cases.txt").write_text("".join(line + "\n" for line in writer.lines))
    write_loras(writer.say)
    write_mixed(writer.say)


if __name__ == "__main__":
    main()
