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
UNGROUPED = {"gpt2", "gptj", "gpt_neo", "gpt_neox", "gpt_bigcode", "codegen", "opt", "bloom", "biogpt", "mpt", "falcon",
             "mamba", "mamba2", "falcon_mamba", "persimmon", "dbrx"}  # fmt: skip
GPT: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "embd_pdrop": 0.0,
                       "attn_pdrop": 0.0, "resid_pdrop": 0.0}  # fmt: skip
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2,
                           "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24}  # fmt: skip
SMALL_HEADS: dict[str, Any] = {"head_dim": 8}
EXTRA: dict[str, dict[str, Any]] = {
    "gpt2": GPT, "gptj": {**GPT, "rotary_dim": 4}, "gpt_bigcode": GPT, "codegen": {**GPT, "rotary_dim": 4},
    "gpt_neo": {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 8,
                "resid_dropout": 0.0, "embed_dropout": 0.0, "attention_dropout": 0.0},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0},
    "bloom": {"n_layer": 2, "n_head": 4, "hidden_dropout": 0.0, "attention_dropout": 0.0},
    "biogpt": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "layerdrop": 0.0},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 128, "expansion_ratio": 2},
    "dbrx": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 128,
             "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
             "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2}},
    "gemma": SMALL_HEADS, "glm": SMALL_HEADS, "glm4": SMALL_HEADS, "qwen3": SMALL_HEADS, "helium": SMALL_HEADS,
    "gemma2": {**SMALL_HEADS, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 1.0, "final_logit_softcapping": 2.0,
               "sliding_window": 6},
    "gemma3_text": {**SMALL_HEADS, "query_pre_attn_scalar": 8, "sliding_window": 6, "sliding_window_pattern": 2},
    "recurrent_gemma": {"lru_width": 32, "attention_window_size": 16, "conv1d_width": 4, "logits_soft_cap": 2.0,
                        "num_hidden_layers": 3, "block_types": ["recurrent", "recurrent", "attention"]},
    "cohere": {"logit_scale": 0.25}, "cohere2": {"logit_scale": 0.25, "sliding_window": 6, "sliding_window_pattern": 2},
    "granite": {"logits_scaling": 4.0, "embedding_multiplier": 2.0, "residual_multiplier": 0.5},
    "granitemoe": {**EXPERTS, "logits_scaling": 4.0}, "granitemoeshared": {**EXPERTS, "logits_scaling": 4.0},
    "gpt_neox": {"hidden_dropout": 0.0, "attention_dropout": 0.0},
    "starcoder2": {"residual_dropout": 0.0, "embedding_dropout": 0.0},
    "phi3": {"resid_pdrop": 0.0, "embd_pdrop": 0.0}, "phi": {"resid_pdrop": 0.0, "embd_pdrop": 0.0},
    "falcon": {"new_decoder_architecture": False, "multi_query": True},
    "mixtral": EXPERTS, "qwen2_moe": EXPERTS, "qwen3_moe": {**EXPERTS, **SMALL_HEADS}, "olmoe": EXPERTS,
    "phimoe": EXPERTS, "jetmoe": {"num_key_value_heads": 2, "kv_channels": 8, **EXPERTS},
    "deepseek_v3": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 1,
                    "topk_group": 1, "moe_intermediate_size": 24, "kv_lora_rank": 8, "q_lora_rank": 8,
                    "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "first_k_dense_replace": 1,
                    "num_key_value_heads": 4},
    "mamba": {"state_size": 4}, "falcon_mamba": {"state_size": 4},
    "mamba2": {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 8},
}  # fmt: skip


def tiny_config(architecture: str = "llama", **changes: Any) -> Any:
    """A transformers config with 2 layers of width 32 and 64 tokens."""
    values = {**SIZES, **EXTRA.get(architecture, {}), **changes}
    if architecture not in UNGROUPED:
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
