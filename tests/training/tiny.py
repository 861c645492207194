"""Tiny models of every architecture and packed batches from lists of token ids, for the training tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import CONFIG_MAPPING

from training.data.batch import IGNORE, PackedBatch

SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
GROUPED = {"cohere", "gemma", "glm", "granite", "helium", "llama", "mistral", "olmo", "olmo2", "phi", "phi3", "qwen2",
           "qwen3", "starcoder2"}  # fmt: skip
EXTRA: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
             "resid_pdrop": 0.0},
    "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "rotary_dim": 4},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0},
    "bloom": {"n_layer": 2, "n_head": 4, "hidden_dropout": 0.0, "attention_dropout": 0.0},
    "gemma": {"head_dim": 8}, "glm": {"head_dim": 8}, "qwen3": {"head_dim": 8}, "helium": {"head_dim": 8},
    "gpt_neox": {"hidden_dropout": 0.0, "attention_dropout": 0.0},
    "starcoder2": {"residual_dropout": 0.0, "embedding_dropout": 0.0},
    "phi3": {"resid_pdrop": 0.0, "embd_pdrop": 0.0},
    "phi": {"resid_pdrop": 0.0, "embd_pdrop": 0.0},
}  # fmt: skip


def tiny_config(architecture: str = "llama", **changes: Any) -> Any:
    """A transformers config with 2 layers of width 32 and 64 tokens."""
    values = {**SIZES, **EXTRA.get(architecture, {}), **changes}
    if architecture in GROUPED:
        values.setdefault("num_key_value_heads", 2)
    return CONFIG_MAPPING[architecture](**values)


def packed(
    docs: Sequence[Sequence[int]],
    *,
    length: int | None = None,
    labels: Sequence[Sequence[int]] | None = None,
    max_length: int = 32,
    pairs: Sequence[tuple[int, int]] | None = None,
    prompts: Sequence[int] | None = None,
    margins: Sequence[float] | None = None,
    slots: int = 16,
) -> PackedBatch:
    """`docs` end to end, filled with pad segments up to `length`; without `labels` all next tokens are targets."""
    lengths = tuple(len(doc) for doc in docs)
    real = sum(lengths)
    total = length if length is not None else real
    tokens = [token for doc in docs for token in doc]
    if labels is None:
        labels = [[*doc[1:], IGNORE] for doc in docs]
    flat = [label for row in labels for label in row]
    bounds, positions = [0], [place for doc in docs for place in range(len(doc))]
    for n in lengths:
        bounds.append(bounds[-1] + n)
    while bounds[-1] < total:
        piece = min(max_length, total - bounds[-1])
        positions += range(piece)
        bounds.append(bounds[-1] + piece)
    bounds += [total] * (slots + 1 - len(bounds))
    fill = total - real
    return PackedBatch(
        tokens=torch.tensor(tokens + [0] * fill),
        labels=torch.tensor(flat + [IGNORE] * fill),
        positions=torch.tensor(positions),
        cu_seqlens=torch.tensor(bounds, dtype=torch.int32),
        max_seqlen=max_length,
        num_targets=sum(label != IGNORE for label in flat),
        lengths=lengths,
        rows=tuple(f"made:{i + 1}" for i in range(len(docs))),
        pairs=torch.tensor(pairs) if pairs is not None else None,
        prompt_lengths=torch.tensor(prompts) if prompts is not None else None,
        margins=torch.tensor(margins, dtype=torch.float32) if margins is not None else None,
    )
