#!/usr/bin/env python3
"""What `promot bench` measures with PyTorch, CTranslate2 and OpenBLAS, for comparison on the same machine.

    python tests/bench_pytorch.py --against bench.json [--out FILE]        what `promot bench --out bench.json` measured
    python tests/bench_pytorch.py [--model DIR] [--method finetune|prompt|promot] [--dtype float32|bfloat16] …  one step
    python tests/bench_pytorch.py --card ./promot-gpu [--batch N] [--out FILE]   on a graphics card: mT5-large and mT5-XL

The model is transformers' (eager attention), of random weights unless a directory is given; the optimizer its Adafactor,
with promot's settings (parameter scaling for the model, none for a prompt). PyTorch pads, so a batch of real lengths is
compared with the batch that is padded to its longest. CTranslate2 decodes the same model in fp32 and int8, where it is
installed. NumPy, which brings OpenBLAS along, multiplies the matrices of the linear layers. Each measurement is a process
of its own, so that its peak memory is its own; one repetition warms up, the median of the others counts. Needs torch and
transformers.

On a card, both sides make the same steps on it in bf16, PyTorch in every way that its version knows: eager attention or
SDPA, each also compiled. What counts is the best of them (a way that fails, for lack of memory too, is told and left
out). There PyTorch's weights are bf16 alone, while promot updates exact fp32 ones."""
import argparse
import importlib.util
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time

MT5_SMALL = dict(model_type="mt5", vocab_size=250112, d_model=512, d_kv=64, d_ff=1024, num_heads=6, num_layers=8)
LAYOUTS = ("forward", "d input", "d weight")
METHODS = {"fine-tuning": "finetune", "prompt tuning": "prompt", "ProMoT stage 2": "promot"}
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
MT5_LARGE = dict(model_type="mt5", vocab_size=250112, d_model=1024, d_kv=64, d_ff=2816, num_heads=16, num_layers=24)
MT5_XL = dict(model_type="mt5", vocab_size=250112, d_model=2048, d_kv=64, d_ff=5120, num_heads=32, num_layers=24)
ON_CPU = {"PyTorch": {}}
ON_A_CARD = {"PyTorch " + name: {"device": "cuda", "attention": attention, "compiled": compiled}
             for name, attention, compiled in (("eager", "eager", False), ("SDPA", "sdpa", False),
                                               ("eager, compiled", "eager", True), ("SDPA, compiled", "sdpa", True))}
CARD_MARK = 2  # so many times PyTorch's best


def make_model(args):
    import torch
    import transformers
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    dtype = getattr(torch, args.dtype)
    kind = transformers.AutoModelForSeq2SeqLM
    with torch.device(args.device):
        if args.model:
            return kind.from_pretrained(args.model, dtype=dtype, attn_implementation=args.attention).to(args.device)
        values = dict(args.config)
        configuration = transformers.MT5Config if values.pop("model_type", "mt5") == "mt5" else transformers.T5Config
        config = configuration(**{"decoder_start_token_id": 0, "tie_word_embeddings": False, **values})
        return kind.from_config(config, attn_implementation=args.attention).to(dtype)


def random_ids(args, length, vocabulary):
    import torch
    return torch.randint(3, min(32000, vocabulary), (args.batch, length), device=args.device)


def peak_bytes(device):
    if device == "cuda":
        import torch
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measured(run, args):
    """A card is asked and goes on by itself, so the clock waits for it."""
    def wait():
        if args.device == "cuda":
            import torch
            torch.cuda.synchronize()

    run()
    if args.compiled:
        run()  # what the first one did not compile yet
    seconds = []
    for _ in range(args.repeat):
        wait()
        begun = time.perf_counter()
        run()
        wait()
        seconds.append(time.perf_counter() - begun)
    return {"seconds": statistics.median(seconds), "fastest": min(seconds), "peak_bytes": peak_bytes(args.device)}


def measure_step(args):
    """One training step: forward, backward, Adafactor."""
    import torch
    from transformers.optimization import Adafactor
    model = make_model(args).train()
    vocabulary, _ = model.get_input_embeddings().weight.shape
    inputs = random_ids(args, args.input, vocabulary)
    labels = random_ids(args, args.target, vocabulary)
    prompt = torch.nn.Parameter(model.get_input_embeddings().weight[:args.prompt].detach().clone())
    for parameter in model.parameters():
        parameter.requires_grad_(args.method != "prompt")
    prompt.requires_grad_(args.method == "prompt")
    trained = [prompt] if args.method == "prompt" else list(model.parameters())
    optimizer = Adafactor(trained, lr=0.2 if args.method == "prompt" else 1e-3, relative_step=False,
                          warmup_init=False, scale_parameter=args.method != "prompt")
    if args.compiled:
        model.compile()  # in place: its parameters are the optimizer's

    def step():
        optimizer.zero_grad(set_to_none=True)
        if args.method == "finetune":
            loss = model(input_ids=inputs, labels=labels).loss
        else:
            embedded = model.get_input_embeddings()(inputs)
            attached = torch.cat([prompt[None].expand(args.batch, -1, -1).to(embedded.dtype), embedded], 1)
            loss = model(inputs_embeds=attached, labels=labels).loss
        loss.backward()
        optimizer.step()

    return measured(step, args)


def measure_decoding(args):
    """PyTorch: generate, with as many new tokens as promot."""
    import torch
    model = make_model(args).eval()
    inputs = random_ids(args, args.input, model.config.vocab_size)

    def decode():
        with torch.inference_mode():
            model.generate(inputs, num_beams=args.beams, do_sample=False, min_new_tokens=args.output,
                           max_new_tokens=args.output)

    result = measured(decode, args)
    return {**result, "tokens_per_second": args.batch * args.output / result["seconds"]}


def convert(args):
    """Writes the random model for CTranslate2. Its vocabulary is made up: a word is the number of its id."""
    from ctranslate2.converters import TransformersConverter
    model = make_model(args)
    words = ["<pad>", "</s>", "<unk>"] + ["w%d" % i for i in range(3, model.config.vocab_size)]

    class Vocabulary:
        pad_token, eos_token, unk_token = words[:3]

        def get_vocab(self):
            return {word: i for i, word in enumerate(words)}

        def convert_ids_to_tokens(self, i):
            return words[i]

    class Converter(TransformersConverter):
        def load_model(self, *_, **__):
            return model

        def load_tokenizer(self, *_, **__):
            return Vocabulary()

    model.config.save_pretrained(args.directory)
    Converter(args.directory).convert(os.path.join(args.directory, "ctranslate2"), force=True)
    return {}


def measure_ctranslate2(args):
    import random
    import ctranslate2
    random.seed(0)
    translator = ctranslate2.Translator(os.path.join(args.directory, "ctranslate2"), compute_type=args.dtype,
                                        intra_threads=args.threads)
    last = min(32000, args.config["vocab_size"]) - 1
    inputs = [["w%d" % random.randint(3, last) for _ in range(args.input)] for _ in range(args.batch)]
    result = measured(lambda: translator.translate_batch(inputs, beam_size=args.beams, max_decoding_length=args.output,
                                                         min_decoding_length=args.output), args)
    return {**result, "tokens_per_second": args.batch * args.output / result["seconds"]}


def measure_openblas(args):
    """A linear layer's product, in one of the layouts of training."""
    import numpy
    random = numpy.random.default_rng(0)

    def matrix(height, width):
        return random.random((height, width), dtype=numpy.float32) - numpy.float32(0.5)

    if args.layout == "forward":
        a, b = matrix(args.rows, args.inputs), matrix(args.outputs, args.inputs).T
    elif args.layout == "d input":
        a, b = matrix(args.rows, args.outputs), matrix(args.outputs, args.inputs)
    else:
        a, b = matrix(args.rows, args.outputs).T, matrix(args.rows, args.inputs)
    product = numpy.empty((a.shape[0], b.shape[1]), numpy.float32)
    return measured(lambda: numpy.matmul(a, b, out=product), args)


MEASURES = {"openblas": measure_openblas, "step": measure_step, "decoding": measure_decoding, "convert": convert,
            "ctranslate2": measure_ctranslate2}


def apart(what, settings):
    """Runs a measurement in a process of its own; None when it fails, which is told."""
    call = [sys.executable, __file__, "--measure", what, "--settings", json.dumps(settings)]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": str(settings["threads"])}  # read when NumPy is loaded
    done = subprocess.run(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    print("%s failed: %s" % (what, (done.stderr.strip() or "killed").splitlines()[-1]), file=sys.stderr)
    return None


def cases_of(report, args, directory, ways):
    """(label, promot's row, program, measure, settings) of everything that promot measured on all threads, with PyTorch
    in each of its ways."""
    threads = report["machine"]["threads"]
    common = {"config": report["config"], "threads": threads, "repeat": args.repeat, "directory": directory}
    for row in report.get("kernels", []):
        layout = next((layout for layout in LAYOUTS if row["kernel"].endswith(" " + layout)), None)
        shape = re.fullmatch(r"(\d+) x (\d+) -> (\d+)", row["shape"])
        if layout and shape and row["dtype"] == "fp32" and row["threads"] == threads:
            rows, inputs, outputs = map(int, shape.groups())
            yield ("%s, %s" % (row["kernel"], row["shape"]), row, "OpenBLAS", "openblas",
                   {**common, "repeat": 7, "layout": layout, "rows": rows, "inputs": inputs, "outputs": outputs})
    steps = report.get("steps", [])
    padded = [row for row in steps if row["lengths"] == "padded"]
    for row in steps:
        if row["threads"] != threads or row["lengths"] == "padded" or (row["lengths"] == "real" and not padded):
            continue
        sizes = {name: int(row[name]) for name in ("batch", "input", "target", "prompt")}
        label = "%s, %s" % (row["step"], row["dtype"])
        if row["lengths"] == "real":
            sizes["input"] = int(padded[0]["source_rows"]) // sizes["batch"]
            sizes["target"] = int(padded[0]["target_rows"]) // sizes["batch"]
            label += ", real lengths"
        for program, way in ways.items():
            yield label, row, program, "step", {**common, **sizes, **way, "method": METHODS[row["step"]],
                                                "dtype": DTYPES[row["dtype"]]}
    for row in report.get("decoding", []):
        sizes = {name: int(row[name]) for name in ("batch", "input", "output", "beams")}
        label = "%s, batch %d" % (row["decoding"], sizes["batch"])
        yield (label + ", " + row["dtype"], row, "PyTorch", "decoding",
               {**common, **sizes, "dtype": DTYPES[row["dtype"]]})
        if row["dtype"] == "fp32" and importlib.util.find_spec("ctranslate2"):
            for dtype in ("float32", "int8"):
                yield (label + ", fp32", row, "CTranslate2 " + dtype, "ctranslate2",
                       {**common, **sizes, "dtype": dtype})


def compare(report, args, ways=ON_CPU):
    rows = []
    print("\n%-42s %9s %-22s %9s %7s %10s %9s" % ("seconds; peak memory in GB", "promot", "other", "seconds", "ratio",
                                                 "promot GB", "other GB"))
    with tempfile.TemporaryDirectory() as directory:
        converted = False
        for label, ours, program, what, settings in cases_of(report, args, directory, ways):
            if what == "ctranslate2" and not converted:
                converted = apart("convert", {**settings, "dtype": "float32"}) is not None
                if not converted:
                    continue
            theirs = apart(what, settings)
            if theirs is None:
                continue
            ratio = theirs["seconds"] / ours["seconds"]
            row = {"what": label, "program": program, "promot_seconds": ours["seconds"], "ratio": ratio, **theirs}
            memory = "-"  # on a card, promot tells that of the host
            if ways is ON_CPU and "peak_bytes" in ours:
                memory = "%.2f" % (ours["peak_bytes"] / 1e9)
                row.update(promot_peak_bytes=ours["peak_bytes"],
                           memory_ratio=ours["peak_bytes"] / theirs["peak_bytes"])
            rows.append(row)
            print("%-42s %9.4f %-22s %9.4f %6.2fx %10s %9.2f" % (
                label, ours["seconds"], program, theirs["seconds"], ratio, memory, theirs["peak_bytes"] / 1e9),
                flush=True)
    return rows


def compare_on_a_card(args):
    """promot-gpu bench, then PyTorch at the same steps."""
    rows, marks = [], []
    for name, config in (("mT5-large", MT5_LARGE), ("mT5-XL", MT5_XL)):
        with tempfile.TemporaryDirectory() as directory:
            file, out = os.path.join(directory, "config.json"), os.path.join(directory, "bench.json")
            with open(file, "w") as target:
                json.dump(config, target)
            print("\n" + name, flush=True)
            sizes = {"--batch": args.batch, "--input-length": args.input, "--target-length": args.target,
                     "--prompt-length": args.prompt, "--repeat": max(3, args.repeat)}
            ours = subprocess.run([args.card, "bench", "--only", "steps", "--config", file, "--out", out,
                                   *(str(word) for size in sizes.items() for word in size)])
            if ours.returncode:
                sys.exit("%s bench ended with status %d" % (args.card, ours.returncode))
            with open(out) as source:
                found = compare(json.load(source), args, ON_A_CARD)
        rows += [{"model": name, **row} for row in found]
        for what in dict.fromkeys(row["what"] for row in found):
            best = min((row for row in found if row["what"] == what), key=lambda row: row["seconds"])
            marks.append((name, what, best["ratio"], best["program"]))
    print("\nBeside the best of PyTorch; the mark is %dx" % CARD_MARK)
    for name, what, ratio, program in marks:
        print("%-10s %-28s %6.2fx %-12s %s" % (name, what, ratio, "reached" if ratio >= CARD_MARK else "NOT REACHED",
                                               program))
    return rows


def versions():
    found = {}
    for name in ("numpy", "torch", "transformers", "ctranslate2"):
        if importlib.util.find_spec(name):
            found[name] = __import__(name).__version__
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", help="the JSON of promot bench --out: everything in it that others can do")
    parser.add_argument("--card", metavar="PROGRAM", help="promot-gpu: its steps on this card, and PyTorch's")
    parser.add_argument("--out", help="the comparison as JSON")
    parser.add_argument("--model")
    parser.add_argument("--method", default="finetune", choices=["finetune", "prompt", "promot"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    for name, value in (("batch", 8), ("input", 512), ("target", 64), ("prompt", 100), ("threads", os.cpu_count()),
                        ("repeat", 2)):
        parser.add_argument("--" + name, type=int, default=value)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--attention", default="eager", choices=["eager", "sdpa"])
    parser.add_argument("--compiled", action="store_true", help="by torch.compile")
    parser.add_argument("--measure", choices=sorted(MEASURES), help=argparse.SUPPRESS)
    parser.add_argument("--settings", default="{}", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.config = MT5_SMALL
    if args.measure:
        vars(args).update(json.loads(args.settings))
        print(json.dumps(MEASURES[args.measure](args)))
    elif args.against or args.card:
        if args.card:
            rows = compare_on_a_card(args)
        else:
            with open(args.against) as file:
                rows = compare(json.load(file), args)
        if args.out:
            with open(args.out, "w") as file:
                json.dump({"versions": versions(), "rows": rows}, file, indent=1)
    else:
        result = measure_step(args)
        print("%.3f s a step, peak memory %.2f GB" % (result["seconds"], result["peak_bytes"] / 1e9))


if __name__ == "__main__":
    main()
