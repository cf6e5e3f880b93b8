"""Reads what promot writes with the software that it is meant for: safetensors, PEFT, transformers.

    make test; python tests/check_formats.py

Looks at the files that test_checkpoint and test_prompt_file leave in build/test. Prints one line, and exits 0, when
all is well. (That .npy files are written as numpy writes them is compared byte by byte in test_prompt_file.)
"""
import pathlib

import peft
import safetensors.torch
import torch
import transformers

SCRATCH = pathlib.Path(__file__).resolve().parent.parent / "build" / "test"


def check_safetensors():
    path = SCRATCH / "checkpoint" / "written.safetensors"
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}
    tensors = safetensors.torch.load_file(path)
    assert set(tensors) == {"w", "scalar", "none", 'i"d\né'}, set(tensors)
    w = torch.tensor([[1, -2, 3.5], [1e-40, float("inf"), 0]])
    assert torch.equal(tensors["w"], w) and tensors["scalar"].shape == () and tensors["scalar"] == 42
    assert tensors["none"].shape == (0, 5) and tensors['i"d\né'].tolist() == [-1, 2**63 - 1]


def check_adapter():
    """PEFT loads the adapter onto a model, and the model sees its rows in front of the input."""
    folder = SCRATCH / "prompt_file" / "run" / "prompt" / "rte"
    rows = torch.arange(12.0).reshape(3, 4) / 8
    config = peft.PeftConfig.from_pretrained(str(folder))
    assert isinstance(config, peft.PromptTuningConfig) and config.num_virtual_tokens == 3 and config.inference_mode
    assert config.num_transformer_submodules == 1 and config.token_dim == 4 and config.num_layers == 8
    transformers.set_seed(0)
    base = transformers.MT5ForConditionalGeneration(transformers.MT5Config(
        vocab_size=20, d_model=4, d_kv=2, d_ff=8, num_layers=2, num_heads=2, decoder_start_token_id=0)).eval()
    ids, labels = torch.tensor([[5, 6, 1]]), torch.tensor([[7, 1]])
    embedded = torch.cat([rows[None], base.shared(ids)], dim=1)
    expected = base(inputs_embeds=embedded, labels=labels).logits
    model = peft.PeftModel.from_pretrained(base, str(folder)).eval()
    assert torch.equal(model.prompt_encoder["default"].embedding.weight, rows)
    seen = model(input_ids=ids, labels=labels, attention_mask=torch.ones_like(ids)).logits
    assert torch.allclose(seen, expected), (seen - expected).abs().max()
    text = peft.PeftConfig.from_pretrained(str(SCRATCH / "prompt_file" / "text"))
    assert text.prompt_tuning_init == "TEXT" and text.prompt_tuning_init_text == "Is it so? é"


if __name__ == "__main__":
    check_safetensors()
    check_adapter()
    print(f"what promot writes is read by safetensors {safetensors.__version__} and peft {peft.__version__}")
