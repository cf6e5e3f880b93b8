"""Makes tests/golden/formats: small files as torch, safetensors, PEFT and numpy write them, and what they hold.

    python tests/make_format_goldens.py

expected.json holds {file: {tensor: {"dtype", "shape", "values"}}}, the values row-major with "nan", "inf" and "-inf"
as text, and the versions of the software under "_versions". The files hostile*.bin hold a pickle that calls os.system
when Python loads it; the command is `echo`, and nothing here loads them. Only legacy.bin differs from run to run: torch
names its storages by their addresses.
"""
import json
import os
import pathlib
import pickle
import shutil
import struct
import zipfile

import numpy as np
import peft
import safetensors
import safetensors.torch
import torch

OUT = pathlib.Path(__file__).resolve().parent / "golden" / "formats"
DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64", torch.int64: "I64",
          torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL"}
expected = {"_versions": {"torch": torch.__version__, "safetensors": safetensors.__version__,
                          "peft": peft.__version__, "numpy": np.__version__}}


def number(value):
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    return value


def describe(tensors):
    return {name: {"dtype": DTYPES[t.dtype], "shape": list(t.shape),
                   "values": [number(v) for v in t.detach().to(torch.float64).reshape(-1).tolist()]
                   if t.dtype.is_floating_point else [int(v) for v in t.reshape(-1).tolist()]}
            for name, t in tensors.items()}


def state_dict():
    """Every type, the special values of the small floats, views, a tied pair, a scalar and an empty tensor."""
    generator = torch.Generator().manual_seed(7)
    base = torch.randn(5, 7, generator=generator)
    special = [0.0, -0.0, 1.0, -2.5, 65504.0, 2.0**-14, 2.0**-24, 3 * 2.0**-24, float("inf"), float("-inf"),
               float("nan"), 1 / 3]
    return {
        "f32": base, "f32.transposed": base.t(), "f32.slice": base[1:4, 2::2], "f32.column": base[:, 3],
        "f32.parameter": torch.nn.Parameter(torch.arange(3.0)), "f32.scalar": torch.tensor(1.5),
        "f32.empty": torch.zeros(0, 4), "f32.tied": base,
        "f16": torch.tensor(special, dtype=torch.float16), "bf16": torch.tensor(special, dtype=torch.bfloat16),
        "f64": torch.tensor([1 / 3, -1e30, 1e-40, 2.0], dtype=torch.float64),
        "i64": torch.tensor([[2**62, -(2**63)], [0, 1]]), "i32": torch.tensor([2**31 - 1, -(2**31)], dtype=torch.int32),
        "i16": torch.tensor([-32768, 32767], dtype=torch.int16), "i8": torch.tensor([-128, 127], dtype=torch.int8),
        "u8": torch.tensor([0, 255], dtype=torch.uint8), "bool": torch.tensor([True, False]),
    }


def make_torch():
    tensors = state_dict()
    torch.manual_seed(7)
    ordered = torch.nn.Linear(3, 2).state_dict()  # an OrderedDict with a _metadata attribute
    files = {
        "zip.bin": (tensors, tensors, {}),
        "zip_protocol4.bin": (tensors, tensors, {"pickle_protocol": 4}),
        "legacy.bin": (tensors, tensors, {"_use_new_zipfile_serialization": False}),
        "nested.bin": ({"model_state_dict": ordered, "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}},
                        "epoch": 42, "loss": 0.125, "done": False, "note": None}, ordered, {}),
        "bare.pt": (tensors["f32.slice"], {"": tensors["f32.slice"]}, {}),
    }
    for name, (saved, seen, options) in files.items():
        torch.save(saved, OUT / name, **options)
        expected[name] = describe(seen)


def make_sharded():
    tensors = {f"layer.{i}.weight": torch.arange(6.0).reshape(2, 3) + 10 * i for i in range(4)}
    for folder, stem, save in (("sharded_torch", "pytorch_model-%05d-of-00002.bin", torch.save),
                               ("sharded_safetensors", "model-%05d-of-00002.safetensors", safetensors.torch.save_file)):
        (OUT / folder).mkdir()
        weight_map = {}
        for shard in range(2):
            part = {name: t for i, (name, t) in enumerate(tensors.items()) if i % 2 == shard}
            save(part, OUT / folder / (stem % (shard + 1)))
            weight_map |= {name: stem % (shard + 1) for name in part}
        index = stem.split("-")[0] + stem[stem.rindex("."):] + ".index.json"
        description = {"metadata": {"total_size": 96}, "weight_map": weight_map}
        (OUT / folder / index).write_text(json.dumps(description, indent=2))
        expected[folder] = describe(tensors)


class Hostile:
    def __reduce__(self):
        return os.system, ("echo this must never run",)


def make_hostile():
    program = pickle.dumps({"weight": Hostile()}, protocol=2)
    with zipfile.ZipFile(OUT / "hostile.bin", "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo("archive/data.pkl"), program)
        archive.writestr(zipfile.ZipInfo("archive/byteorder"), "little")
    preamble = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}]
    (OUT / "hostile_legacy.bin").write_bytes(b"".join(pickle.dumps(p, protocol=2) for p in preamble) + program)
    with zipfile.ZipFile(OUT / "compressed.bin", "w", zipfile.ZIP_DEFLATED) as archive:
        program = pickle.dumps({}, protocol=2) + b" " * 100
        archive.writestr(zipfile.ZipInfo("archive/data.pkl"), program, zipfile.ZIP_DEFLATED)


def make_safetensors():
    tensors = {name: t.detach().clone().contiguous() for name, t in state_dict().items()}
    safetensors.torch.save_file(tensors, OUT / "reference.safetensors", metadata={"format": "pt"})
    expected["reference.safetensors"] = describe(tensors)


def make_prompts():
    """An adapter with the two submodules that PEFT stores by default, the same as old PEFT stored it, numpy files."""
    rows = torch.arange(24, dtype=torch.float32).reshape(6, 4) / 8
    config = peft.PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=3, token_dim=4, num_layers=2,
                                     num_attention_heads=2, num_transformer_submodules=2, inference_mode=True)
    for folder in ("adapter", "adapter_bin"):
        (OUT / folder).mkdir()
        config.save_pretrained(OUT / folder)
    safetensors.torch.save_file({"prompt_embeddings": rows}, OUT / "adapter" / "adapter_model.safetensors",
                                metadata={"format": "pt"})
    torch.save({"prompt_embeddings": rows}, OUT / "adapter_bin" / "adapter_model.bin")
    matrix = rows[:3].numpy()
    np.save(OUT / "f4.npy", matrix)
    np.save(OUT / "f8.npy", matrix.astype("<f8"))
    for version in ((2, 0), (3, 0)):
        with open(OUT / f"version{version[0]}.npy", "wb") as file:
            np.lib.format.write_array(file, matrix, version=version)
    np.save(OUT / "fortran.npy", np.asfortranarray(matrix))
    np.save(OUT / "bigendian.npy", matrix.astype(">f4"))
    np.save(OUT / "integers.npy", matrix.astype("<i4"))
    np.save(OUT / "cube.npy", matrix.reshape(3, 2, 2))


if __name__ == "__main__":
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    make_torch()
    make_sharded()
    make_hostile()
    make_safetensors()
    make_prompts()
    lines = []
    for file, held in expected.items():
        entries = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in held.items())
        lines.append(f" {json.dumps(file)}: {{\n{entries}\n }}")
    (OUT / "expected.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
    for file in OUT.rglob("*"):
        file.chmod(0o755 if file.is_dir() else 0o644)
