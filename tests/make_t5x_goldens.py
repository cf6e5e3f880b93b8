"""Makes tests/golden/t5x: small T5X checkpoints, and the same models as Hugging Face's safetensors.

    python tests/make_t5x_goldens.py

The arrays in files are written by TensorStore, as T5X has it do; the index is packed with msgpack the way of
flax.serialization (_ndarray_to_bytes, _chunk), for which there is no need to install JAX. All weights are multiples of
1/8 below 16, so that every type of float holds them exactly and every checkpoint equals its twin.

    gated_twin, relu_twin    the models under their Hugging Face names
    files                    gated; matrices in files, some in odd ways; version 3, with an optimizer's state
    stacked                  gated; the layers of a stack in one array, kernels with heads; plain Flax layout
    inline                   relu; all of it in the index, in several types; the embedding in pieces
    umt5, orbax              what is refused: a position bias in every layer, another layout
    types                    an array of each type and of no, one and three dimensions, with its values in expected.json
"""
import importlib.metadata
import json
import pathlib
import shutil

import ml_dtypes
import msgpack
import numpy as np
import safetensors
import safetensors.numpy
import tensorstore as ts

OUT = pathlib.Path(__file__).resolve().parent / "golden" / "t5x"
V, D, HEADS, D_KV, D_FF, BUCKETS, LAYERS = 11, 6, 2, 2, 5, 4, {"encoder": 2, "decoder": 3}
INNER = HEADS * D_KV
random = np.random.default_rng(20221101)


# ------------------------------------------------------------------------------------------------- index, as Flax packs

def array_bytes(array):
    return msgpack.packb((array.shape, array.dtype.name, array.tobytes("C")), use_bin_type=True)


def pack_leaf(leaf):
    if isinstance(leaf, np.ndarray):
        return msgpack.ExtType(1, array_bytes(leaf))
    if isinstance(leaf, np.generic):
        return msgpack.ExtType(3, array_bytes(np.asarray(leaf)))
    raise TypeError(leaf)


def in_pieces(array, size):
    flat = array.reshape(-1)
    return {"__msgpack_chunked_array__": True, "shape": {str(d): n for d, n in enumerate(array.shape)},
            "chunks": {str(i): flat[at:at + size] for i, at in enumerate(range(0, flat.size, size))}}


def write_index(folder, tree):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "checkpoint").write_bytes(msgpack.packb(tree, default=pack_leaf, strict_types=True))


# ------------------------------------------------------------------------------------------------ arrays, by TensorStore

def in_files(folder, name, array, chunks, compressor={"id": "gzip", "level": 1}, path=None, spare_spec=False):
    """Writes an array; returns the spec that stands for it in the index."""
    metadata = {"chunks": list(chunks), "compressor": compressor, "shape": list(array.shape)}
    spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": str(folder / name)}, "metadata": metadata,
            "dtype": array.dtype.name}
    ts.open(spec, create=True).result().write(array).result()
    stored = json.loads((folder / name / ".zarray").read_text())
    spec["kvstore"] = {"driver": "gfile", "path": path or name}
    if not spare_spec:  # T5X's index has the type in either of two places
        del spec["dtype"]
        metadata["dtype"] = stored["dtype"]
    return spec


# ------------------------------------------------------------------------------------------------------------ the models

def weights(*shape):
    return (random.integers(-100, 100, shape) / 8).astype(np.float32)


def layer_weights(stack, gated):
    names = {"encoder": ("attention",), "decoder": ("self_attention", "encoder_decoder_attention")}[stack]
    norms = {"encoder": ("pre_attention", "pre_mlp"), "decoder": ("pre_self_attention", "pre_cross_attention", "pre_mlp")}
    layer = {name: {kind: {"kernel": weights(D, INNER) if kind != "out" else weights(INNER, D)}
                    for kind in ("query", "key", "value", "out")} for name in names}
    layer["mlp"] = {wi: {"kernel": weights(D, D_FF)} for wi in (("wi_0", "wi_1") if gated else ("wi",))}
    layer["mlp"]["wo"] = {"kernel": weights(D_FF, D)}
    return layer | {norm + "_layer_norm": {"scale": weights(D)} for norm in norms[stack]}


def model(gated):
    """T5X's parameters; encoder and decoder hold "layers_0", …"""
    tree = {"token_embedder": {"embedding": weights(V, D)}}
    for stack, count in LAYERS.items():
        tree[stack] = {f"layers_{i}": layer_weights(stack, gated) for i in range(count)}
        tree[stack][stack + "_norm"] = {"scale": weights(D)}
        tree[stack]["relpos_bias"] = {"rel_embedding": weights(HEADS, BUCKETS)}
    if gated:
        tree["decoder"]["logits_dense"] = {"kernel": weights(D, V)}
    return tree


def twin(tree):
    """The same under Hugging Face's names (transformers' convert_t5x_checkpoint_to_pytorch.py)."""
    out = {"shared.weight": tree["token_embedder"]["embedding"]}
    if "logits_dense" in tree["decoder"]:
        out["lm_head.weight"] = tree["decoder"]["logits_dense"]["kernel"].T
    for stack, count in LAYERS.items():
        bias = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        out[bias] = tree[stack]["relpos_bias"]["rel_embedding"].T
        out[f"{stack}.final_layer_norm.weight"] = tree[stack][stack + "_norm"]["scale"]
        parts = (("attention", "pre_attention", "SelfAttention"),) if stack == "encoder" else (
            ("self_attention", "pre_self_attention", "SelfAttention"),
            ("encoder_decoder_attention", "pre_cross_attention", "EncDecAttention"))
        for i in range(count):
            layer, block = tree[stack][f"layers_{i}"], f"{stack}.block.{i}.layer."
            for n, (name, norm, theirs) in enumerate(parts):
                for kind, letter in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "o")):
                    out[f"{block}{n}.{theirs}.{letter}.weight"] = layer[name][kind]["kernel"].T
                out[f"{block}{n}.layer_norm.weight"] = layer[norm + "_layer_norm"]["scale"]
            for name, leaf in layer["mlp"].items():
                out[f"{block}{len(parts)}.DenseReluDense.{name}.weight"] = leaf["kernel"].T
            out[f"{block}{len(parts)}.layer_norm.weight"] = layer["pre_mlp_layer_norm"]["scale"]
    return {name: np.ascontiguousarray(array) for name, array in out.items()}


def write_twin(folder, tree, gated):
    folder.mkdir(parents=True)
    safetensors.numpy.save_file(twin(tree), folder / "model.safetensors", metadata={"format": "pt"})
    config = {"model_type": "t5", "feed_forward_proj": "gated-gelu" if gated else "relu", "vocab_size": V, "d_model": D,
              "d_kv": D_KV, "num_heads": HEADS, "d_ff": D_FF, "num_layers": LAYERS["encoder"],
              "num_decoder_layers": LAYERS["decoder"], "relative_attention_num_buckets": BUCKETS,
              "relative_attention_max_distance": 128, "layer_norm_epsilon": 1e-6, "tie_word_embeddings": not gated,
              "is_encoder_decoder": True, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def map_leaves(tree, change, path=()):
    if isinstance(tree, dict):
        return {key: map_leaves(value, change, path + (key,)) for key, value in tree.items()}
    return change(path, tree)


# ------------------------------------------------------------------------------------------------------- the checkpoints

def make_files(tree):
    folder = OUT / "files"
    special = {
        "decoder.logits_dense.kernel": {"chunks": (4, 4)},  # two by three chunks, cut at both edges
        "token_embedder.embedding": {"chunks": (4, 6), "path": "/somewhere/else/target.token_embedder.embedding/"},
        "encoder.layers_0.mlp.wi_0.kernel": {"chunks": (5, 2), "compressor": None},
        "encoder.layers_0.mlp.wi_1.kernel": {"chunks": (6, 5), "compressor": {"id": "zlib", "level": 9}},
        "encoder.layers_0.mlp.wo.kernel": {"chunks": (8, 8)},  # larger than the array
        "encoder.layers_1.attention.query.kernel": {"chunks": (6, 4), "spare_spec": True},
        "encoder.layers_1.mlp.wo.kernel": {"chunks": (5, 3)},
    }

    def change(path, array):
        name = ".".join(path)
        if name not in special and (array.ndim < 2 or "layers_0" not in name):
            return array
        options = special.get(name, {"chunks": array.shape})
        if "encoder_decoder_attention" in name:
            array = array.astype(ml_dtypes.bfloat16)
        return in_files(folder, "target." + name, array, **options)

    target = map_leaves(tree, change)
    (folder / "target.encoder.layers_1.mlp.wo.kernel" / ".zarray").unlink()  # the spec says it too
    target["encoder"]["prompt"] = {"prompt": {"prompt": weights(3, D)}}
    gone = {"driver": "zarr", "kvstore": {"driver": "gfile", "path": "state.param_states.v"},
            "metadata": {"chunks": [2], "compressor": {"id": "gzip", "level": 1}, "dtype": "<f4", "shape": [4]}}
    state = {"step": np.int32(7), "param_states": {"decoder": {"v": gone, "m": None, "v_row": weights(1)}}}
    write_index(folder, {"version": 3, "optimizer": {"target": target, "state": state, "flax_mutables": {}}})


def stacked(layers):
    """Layers on axis 1; attention kernels with a dimension for the heads, as t5x/examples/scalable_t5 has them."""
    def change(path, array):
        arrays = [array]
        for layer in layers[1:]:
            for key in path:
                layer = layer[key]
            arrays.append(layer)
        if path[0].endswith("attention"):
            shape = (HEADS, D_KV, D) if path[1] == "out" else (D, HEADS, D_KV)
            arrays = [a.reshape(shape) for a in arrays]
        return np.stack(arrays, axis=1)
    return map_leaves(layers[0], change)


def make_stacked(tree):
    folder, target = OUT / "stacked", {"token_embedder": tree["token_embedder"]}
    for stack, count in LAYERS.items():
        layers = stacked([tree[stack][f"layers_{i}"] for i in range(count)])
        target[stack] = {key: value for key, value in tree[stack].items() if not key.startswith("layers_")}
        target[stack][stack] = layers
    bias = target["encoder"].pop("relpos_bias")["rel_embedding"]  # in every layer, but the same
    target["encoder"]["encoder"]["relpos_bias"] = {"rel_embedding": np.stack([bias] * LAYERS["encoder"], axis=1)}
    chunks = {"query": (4, 1, 2, 2), "out": (1, 2, 2, 5), "wi_0": (6, 2, 3), "wo": (5, 3, 6)}

    def change(path, array):
        name = ".".join(path)
        cut = chunks.get(path[-2]) if path[:2] == ("decoder", "decoder") else None
        return in_files(folder, "target." + name, array, cut) if cut else array

    write_index(folder, {"target": map_leaves(target, change), "state": {"step": np.int32(7)}})


def make_inline(tree):
    def change(path, array):
        if path[0] == "token_embedder":
            return in_pieces(array, 25)
        kind = {"key": ml_dtypes.bfloat16, "value": np.float16, "out": np.float64}.get(path[-2], np.float32)
        return array.astype(kind)
    write_index(OUT / "inline", {"version": 3, "optimizer": {"state": {"step": np.int32(7)},
                                                             "target": map_leaves(tree, change)}})


def make_refused():
    write_index(OUT / "umt5", {"target": {"encoder": {"encoder": {"relpos_bias": {
        "rel_embedding": weights(HEADS, 2, BUCKETS)}}}}})
    write_index(OUT / "orbax", {"target": {"token_embedder": {"embedding": "PLACEHOLDER://token_embedder.embedding"}}})


def make_types():
    folder, target, expected = OUT / "types", {}, {}
    special = np.array([0.0, -0.0, 1.0, -2.5, 1 / 3, 2.0**-14, 2.0**-24, np.inf, -np.inf, np.nan])
    arrays = {name: special.astype(kind) for name, kind in (("f4", np.float32), ("f8", np.float64), ("f2", np.float16),
                                                             ("bf16", ml_dtypes.bfloat16))}
    arrays |= {name: np.array([np.iinfo(kind).min, 1, np.iinfo(kind).max], kind) for name, kind in
               (("i4", np.int32), ("i2", np.int16), ("i1", np.int8), ("u1", np.uint8))}
    arrays |= {"b1": np.array([True, False]), "scalar": np.array(2.5, np.float32), "cube": weights(3, 5, 2)}
    for name, array in arrays.items():
        target[name] = {"inline": array, "files": in_files(folder, name, array, [min(4, n) for n in array.shape])}
        values = array.astype(np.float64).reshape(-1).tolist()
        expected[name] = {"shape": list(array.shape), "values": [str(v) for v in values]}
    write_index(folder, {"version": 3, "optimizer": {"target": target, "state": {}}})
    versions = {"msgpack": ".".join(map(str, msgpack.version)), "numpy": np.__version__,
                "safetensors": safetensors.__version__, "tensorstore": importlib.metadata.version("tensorstore"),
                "ml_dtypes": ml_dtypes.__version__}
    lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in ({"_versions": versions} | expected).items()]
    (OUT / "expected.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    gated, relu = model(True), model(False)
    write_twin(OUT / "gated_twin", gated, True)
    write_twin(OUT / "relu_twin", relu, False)
    make_files(gated)
    make_stacked(gated)
    make_inline(relu)
    make_refused()
    make_types()
