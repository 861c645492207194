"""Turns a GGUF file into a Hugging Face model folder: `python -m training.models.gguf IN.gguf OUT_DIR`.

Reads LLaMA-architecture files with a byte-level BPE tokenizer ("gpt2" in GGUF's words); refuses others by name.
Weights are dequantised. The tokenizer is rebuilt from the file's own vocabulary and merges: transformers reads it as
a SentencePiece LLaMA tokenizer, and the model would then babble.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.errors import ConfigError, DataError, MissingInput, TrainingError, as_training_error
from training.report.phases import phase

DTYPES = ("bf16", "fp32", "fp16")
SHARD_BYTES = 4 << 30
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# How text is cut before merging, by tokenizer.ggml.pre: patterns are applied one after the other.
PRE_TOKENIZERS: dict[str, tuple[str, ...]] = {
    "smollm": (r"\p{N}", _GPT2),
    "gpt-2": (_GPT2,),
    "llama-bpe": (_LLAMA3,),
    "qwen2": (_LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}"),),
}
_CONTROL = 3  # token type: never made from text, always whole
_USER_DEFINED = 4
_LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TOP_TENSORS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


@dataclass(frozen=True)
class Converted:
    """What was made: the folder, parameters, and the names that a person checks first."""

    path: Path
    parameters: int
    vocabulary: int
    eos_token: str
    has_template: bool


def convert(source: Path, target: Path, dtype: str = "bf16") -> Converted:
    """Writes `target` as a Hugging Face folder (written beside and renamed, so it is whole or absent)."""
    if dtype not in DTYPES:
        raise ConfigError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}.")
    if not source.is_file():
        raise MissingInput(f"{source} does not exist.")
    if target.exists() and any(target.iterdir()):
        raise ConfigError(f"{target} already holds files. Name a new folder, or remove it.")
    reader = _open(source)
    facts = _Facts(source, {name: field for name, field in reader.fields.items()})
    facts.require("general.architecture", "llama", "only LLaMA-architecture files are read")
    facts.require("tokenizer.ggml.model", "gpt2", "only byte-level BPE tokenizers are read")
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        vocabulary, eos, has_template = write_tokenizer(facts, part)
        config = model_config(facts, tied=all(tensor.name != "output.weight" for tensor in reader.tensors), dtype=dtype)
        parameters = _write_weights(reader, facts, config, dtype, part)
        _write_json(part / "config.json", config)
        special = {k: config[k] for k in ("bos_token_id", "eos_token_id", "pad_token_id") if config[k] is not None}
        _write_json(part / "generation_config.json", special)
        if target.exists():
            target.rmdir()
        part.rename(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return Converted(target, parameters, vocabulary, eos, has_template)


class _Facts:
    """The key-value part of a GGUF file, with errors that name the file and the key."""

    def __init__(self, source: Path, fields: dict[str, Any]) -> None:
        self.source = source
        self._fields = fields

    def get(self, key: str, default: Any = None) -> Any:
        return self._fields[key].contents() if key in self._fields else default

    def need(self, key: str) -> Any:
        if key not in self._fields:
            raise DataError(f"{self.source} has no {key}; it is not a complete model file.")
        return self._fields[key].contents()

    def require(self, key: str, wanted: str, why: str) -> None:
        found = self.need(key)
        if found != wanted:
            raise ConfigError(
                f"{self.source} has {key} = {found!r}: {why} ({wanted!r}). Use a Hugging Face folder of it."
            )


def _open(source: Path) -> Any:
    from gguf import GGUFReader

    try:
        return GGUFReader(str(source))
    except (ValueError, IndexError, KeyError, OverflowError, UnicodeDecodeError) as error:
        raise DataError(f"{source} is not a readable GGUF file ({error}). Download it again.") from error


def model_config(facts: _Facts, *, tied: bool, dtype: str) -> dict[str, Any]:
    """config.json of the model."""
    if facts.get("llama.rope.scaling.type", "none") != "none":
        raise ConfigError(
            f"{facts.source} uses scaled rotary positions, which are not read. Use a Hugging Face folder."
        )
    if facts.get("llama.expert_count", 0):
        raise ConfigError(
            f"{facts.source} is a mixture of experts, which is not read. Use a Hugging Face folder of it."
        )
    heads = facts.need("llama.attention.head_count")
    width = facts.need("llama.embedding_length")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": facts.need("llama.feed_forward_length"),
        "num_hidden_layers": facts.need("llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": facts.get("llama.attention.head_count_kv", heads),
        "head_dim": facts.get("llama.attention.key_length", width // heads),
        "hidden_act": "silu",
        "max_position_embeddings": facts.need("llama.context_length"),
        "rms_norm_eps": _float32(facts.need("llama.attention.layer_norm_rms_epsilon")),
        "rope_theta": _float32(facts.get("llama.rope.freq_base", 10000.0)),
        "vocab_size": len(facts.need("tokenizer.ggml.tokens")),
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tied,
        "torch_dtype": {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}[dtype],
        "bos_token_id": facts.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": facts.need("tokenizer.ggml.eos_token_id"),
        "pad_token_id": pad_token(facts),
    }


def pad_token(facts: _Facts) -> int | None:
    """A padding token that is not the end token (else a model trained with it never learns to stop)."""
    eos = facts.need("tokenizer.ggml.eos_token_id")
    candidates = (facts.get("tokenizer.ggml.padding_token_id"), facts.get("tokenizer.ggml.unknown_token_id"))
    return next((token for token in candidates if token is not None and token != eos), None)


def write_tokenizer(facts: _Facts, folder: Path) -> tuple[int, str, bool]:
    """Writes tokenizer.json and tokenizer_config.json; returns (vocabulary size, eos token, has a chat template)."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

    kind = facts.get("tokenizer.ggml.pre", "gpt-2")
    if kind not in PRE_TOKENIZERS:
        known = ", ".join(PRE_TOKENIZERS)
        raise ConfigError(
            f"{facts.source} cuts text by the rule {kind!r}; known rules: {known}. Use a Hugging Face folder."
        )
    tokens: list[str] = facts.need("tokenizer.ggml.tokens")
    types: list[int] = facts.get("tokenizer.ggml.token_type", [1] * len(tokens))
    merges = [tuple(merge.split(" ", 1)) for merge in facts.need("tokenizer.ggml.merges")]
    tokenizer = Tokenizer(
        models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges, ignore_merges=kind == "llama-bpe")
    )
    splits = [pre_tokenizers.Split(Regex(rule), "isolated") for rule in PRE_TOKENIZERS[kind]]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    # Added in the order of their ids, so that each keeps the id that it has in the vocabulary.
    added = [(i, token, types[i]) for i, token in enumerate(tokens) if types[i] in (_CONTROL, _USER_DEFINED)]
    for _, token, kind_of_token in added:
        entry = AddedToken(token, normalized=False, special=kind_of_token == _CONTROL)
        (tokenizer.add_special_tokens if kind_of_token == _CONTROL else tokenizer.add_tokens)([entry])
    bos = facts.get("tokenizer.ggml.bos_token_id")
    adds_bos = bool(facts.get("tokenizer.ggml.add_bos_token", False)) and bos is not None
    steps: list[Any] = [processors.ByteLevel(trim_offsets=False)]
    if adds_bos:
        steps.append(
            processors.TemplateProcessing(
                single=f"{tokens[bos]} $A",
                pair=f"{tokens[bos]} $A {tokens[bos]} $B",
                special_tokens=[(tokens[bos], bos)],
            )
        )
    tokenizer.post_processor = processors.Sequence(steps)
    tokenizer.save(str(folder / "tokenizer.json"))

    eos = tokens[facts.need("tokenizer.ggml.eos_token_id")]
    pad = pad_token(facts)
    unknown = facts.get("tokenizer.ggml.unknown_token_id")
    template = facts.get("tokenizer.chat_template")
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": facts.need("llama.context_length"),
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "added_tokens_decoder": {
            str(i): {
                "content": token,
                "special": kind_of_token == _CONTROL,
                "normalized": False,
                "lstrip": False,
                "rstrip": False,
                "single_word": False,
            }
            for i, token, kind_of_token in added
        },
        "eos_token": eos,
    }
    for name, token_id in (("bos_token", bos), ("pad_token", pad), ("unk_token", unknown)):
        if token_id is not None:
            settings[name] = tokens[token_id]
    if template:
        settings["chat_template"] = template
    _write_json(folder / "tokenizer_config.json", settings)
    return len(tokens), eos, bool(template)


def _write_weights(reader: Any, facts: _Facts, config: dict[str, Any], dtype: str, folder: Path) -> int:
    """Dequantises every tensor into safetensors shards; returns the number of parameters."""
    import torch
    from safetensors.torch import save_file

    wanted = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[dtype]
    shards: list[dict[str, torch.Tensor]] = [{}]
    size, parameters, names = 0, 0, []
    files: list[Path] = []

    def flush() -> None:
        path = folder / f"shard-{len(files)}"
        save_file(shards[0], str(path), metadata={"format": "pt"})
        path.chmod(0o644)  # safetensors makes it private; others serve and mount it
        files.append(path)
        names.append(list(shards[0]))
        shards[0] = {}

    for name, values in _tensors(reader, facts, config):
        tensor = torch.from_numpy(values).to(wanted).contiguous()
        if shards[0] and size + tensor.nbytes > SHARD_BYTES * (len(files) + 1):
            flush()
        shards[0][name] = tensor
        size += tensor.nbytes
        parameters += tensor.numel()
    flush()
    if len(files) == 1:
        files[0].rename(folder / "model.safetensors")
        return parameters
    index: dict[str, str] = {}
    for number, path in enumerate(files, start=1):
        final = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        path.rename(folder / final)
        index.update(dict.fromkeys(names[number - 1], final))
    _write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": index})
    return parameters


def _tensors(reader: Any, facts: _Facts, config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """(transformers' name, float32 array) of each tensor; checks that none is missing or of the wrong shape."""
    import numpy as np
    from gguf.quants import dequantize

    expected = _expected_shapes(config)
    for tensor in reader.tensors:
        name = hf_name(tensor.name)
        if name is None or name not in expected:
            raise ConfigError(
                f"{facts.source} holds the tensor {tensor.name!r}, which a plain LLaMA model does not have."
            )
        values = np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32, copy=True)
        if values.shape != expected[name]:
            raise DataError(f"{facts.source}: {tensor.name} has the shape {values.shape}, expected {expected[name]}.")
        if ".attn_q." in tensor.name:
            values = unpermute(values, config["num_attention_heads"])
        elif ".attn_k." in tensor.name:
            values = unpermute(values, config["num_key_value_heads"])
        del expected[name]
        yield name, values
    if expected:
        raise DataError(f"{facts.source} lacks {len(expected)} tensors, among them {sorted(expected)[0]}.")


def hf_name(name: str) -> str | None:
    """transformers' name of a GGUF tensor, or None: blk.3.attn_q.weight → model.layers.3.self_attn.q_proj.weight."""
    parts = name.removesuffix(".weight").split(".")
    if len(parts) == 1 and parts[0] in _TOP_TENSORS:
        return f"{_TOP_TENSORS[parts[0]]}.weight"
    if len(parts) == 3 and parts[0] == "blk" and parts[1].isdigit() and parts[2] in _LAYER_TENSORS:
        return f"model.layers.{parts[1]}.{_LAYER_TENSORS[parts[2]]}.weight"
    return None


def unpermute(values: Any, heads: int) -> Any:
    """Undoes the interleaving of rotary halves: rows [heads, half, 2] → [heads, 2, half]; values [heads·dim, width]."""
    rows, width = values.shape
    return values.reshape(heads, rows // heads // 2, 2, width).swapaxes(1, 2).reshape(rows, width)


def _expected_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    width, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    query = config["num_attention_heads"] * config["head_dim"]
    key = config["num_key_value_heads"] * config["head_dim"]
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm": (width,),
        "post_attention_layernorm": (width,),
        "self_attn.q_proj": (query, width),
        "self_attn.k_proj": (key, width),
        "self_attn.v_proj": (key, width),
        "self_attn.o_proj": (width, query),
        "mlp.gate_proj": (inner, width),
        "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
    }
    shapes = {
        f"model.layers.{i}.{name}.weight": shape
        for i in range(config["num_hidden_layers"])
        for name, shape in layer.items()
    }
    shapes |= {"model.embed_tokens.weight": (vocabulary, width), "model.norm.weight": (width,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocabulary, width)
    return shapes


def _float32(value: float) -> float:
    """The shortest decimal that is the same 32-bit number: 9.999999747378752e-06 → 1e-05."""
    import numpy as np

    return float(str(np.float32(value)))


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main(argv: list[str] | None = None, say: Callable[[str], object] = print) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.models.gguf", description=__doc__)
    parser.add_argument("source", type=Path, metavar="IN.gguf")
    parser.add_argument("target", type=Path, metavar="OUT_DIR")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16", help="number format of the weights")
    options = parser.parse_args(argv)
    try:
        with phase(f"converting {options.source}"):
            made = convert(options.source, options.target, options.dtype)
    except (TrainingError, OSError) as error:
        named = as_training_error(error)
        print(f"error: {named}", file=sys.stderr)
        return named.exit_code
    template = "with its chat template" if made.has_template else "without a chat template"
    say(
        f"{made.path}: {made.parameters:,} parameters, {made.vocabulary:,} tokens, "
        f"ends with {made.eos_token}, {template}"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
