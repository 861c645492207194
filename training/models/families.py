"""What is special about each architecture: one row a family, from which loading, heads, packing and the engine ask.

A row names *keys* of transformers' config; the functions below read a model's own values through them. Imports no
torch. An architecture without a row loads with the defaults, and the check before the first step (agreement.py)
refuses it if that is not what transformers computes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Family:
    """One architecture, by transformers' `model_type`. The defaults are LLaMA's without packing and engine."""

    context: str = "max_position_embeddings"
    """Config key of the longest text that it reads; "" where positions have no end (ALiBi, recurrence)."""
    position_table: bool = False
    """Positions are rows of a table: a longer text is an error, not only a bad idea."""
    packed: bool = False
    """Its attention goes through transformers' registry, with keyword arguments passed down: takes packed rows."""
    engine: bool = False
    """Rollouts and serving can generate with it (rollout/families.py reads it)."""
    eager: bool = False
    """Only its own attention is right, whatever transformers offers."""
    attention_cap: str = ""
    """Config key of c in c·tanh(score / c) on attention scores, which SDPA drops."""
    logit_cap: str = ""
    """Config key of c in c·tanh(logit / c) on the head's logits."""
    logit_factor: str = ""
    """Config key of what the head's logits are multiplied by."""
    logit_divisor: str = ""
    """Config key of what they are divided by."""
    rope_theta: str = "rope_theta"
    """Config key of the rotary base, and of the share of each head that rotates, as transformers 4 names them."""
    rope_share: str = "partial_rotary_factor"
    keeps_state: bool = False
    """Its modules keep a state from one forward to the next, which must be dropped between texts."""
    refused: str = ""
    """Why it can't be trained here, as the end of a sentence."""


_LLAMA = Family(packed=True, engine=True)
_PACKED = Family(packed=True)
_PLAIN = Family()
_TABLE = Family(position_table=True)
_ENDLESS = Family(context="")
_GEMMA2 = Family(attention_cap="attn_logit_softcapping", logit_cap="final_logit_softcapping")
_GRANITE_MOE = Family(logit_divisor="logits_scaling")
_ENCODER = Family(refused="reads in both directions: it has no next token to learn")

FAMILIES: dict[str, Family] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "olmo": _PACKED,
    "olmo2": _PACKED,
    "phi": _PACKED,
    "phi3": _LLAMA,
    "glm": _PACKED,
    "helium": _PACKED,
    "starcoder2": _PACKED,
    "gpt_neox": Family(packed=True, rope_theta="rotary_emb_base", rope_share="rotary_pct"),
    "cohere": Family(packed=True, logit_factor="logit_scale"),
    "granite": Family(packed=True, logit_divisor="logits_scaling"),
    "cohere2": Family(logit_factor="logit_scale"),
    "granitemoe": _GRANITE_MOE,
    "granitemoeshared": _GRANITE_MOE,
    "gemma": _PLAIN,
    "gemma2": _GEMMA2,
    "gemma3_text": _GEMMA2,
    "recurrent_gemma": Family(context="", logit_cap="logits_soft_cap", keeps_state=True),
    "gpt2": Family(context="n_positions", position_table=True, engine=True),
    "opt": Family(position_table=True, engine=True),
    "bloom": Family(context="", engine=True, eager=True),
    "gpt_bigcode": Family(context="n_positions", position_table=True),
    "gpt_neo": _TABLE,
    "biogpt": _TABLE,
    "gptj": Family(context="n_positions", position_table=True),
    "codegen": Family(context="n_positions", position_table=True),
    "mpt": Family(context="max_seq_len"),
    "dbrx": Family(context="max_seq_len"),
    "falcon": _PLAIN,
    "glm4": _PLAIN,
    "stablelm": _PLAIN,
    "persimmon": _PLAIN,
    "nemotron": _PLAIN,
    "diffllama": _PLAIN,
    "mixtral": _PLAIN,
    "qwen2_moe": _PLAIN,
    "qwen3_moe": _PLAIN,
    "olmoe": _PLAIN,
    "phimoe": _PLAIN,
    "jetmoe": _PLAIN,
    "deepseek_v3": _PLAIN,
    "mamba": _ENDLESS,
    "mamba2": _ENDLESS,
    "falcon_mamba": _ENDLESS,
    **dict.fromkeys(("bert", "roberta", "camembert", "electra", "ernie", "xlm-roberta", "bert-generation"), _ENCODER),
}
UNKNOWN = Family()


@dataclass(frozen=True)
class Logits:
    """What becomes of the head's product: logits = cap·tanh(scale·x / cap), or scale·x without a cap."""

    scale: float = 1.0
    cap: float | None = None


def family_of(config: Any) -> Family:
    """The row of a model's transformers config; the defaults for an architecture that has none."""
    return FAMILIES.get(config.model_type, UNKNOWN)


def names(**wanted: bool) -> list[str]:
    """model_type of every row with these values, for messages: `names(engine=True)`."""
    return sorted(n for n, row in FAMILIES.items() if all(getattr(row, key) == value for key, value in wanted.items()))


def context_of(config: Any) -> int | None:
    """Tokens that the model was made to read; None where positions have no end."""
    key = family_of(config).context
    value = getattr(config, key, None) if key else None
    if not isinstance(value, int) or value < 1:
        return None
    kind, rope = rope_of(config)
    if kind in ("yarn", "linear") and rope.get("original_max_position_embeddings") and rope.get("factor"):
        return max(value, int(rope["original_max_position_embeddings"] * rope["factor"]))
    return value


def logits_of(config: Any) -> Logits:
    """The factor and the soft cap on a model's logits."""
    row = family_of(config)
    scale = _value(config, row.logit_factor, 1.0) / _value(config, row.logit_divisor, 1.0)
    return Logits(scale, _value(config, row.logit_cap, 0.0) or None)


def takes_packed_rows(config: Any) -> bool:
    """Whether a model with this config runs on packed rows (else it gets padded ones)."""
    row = family_of(config)
    return row.packed and not _value(config, row.attention_cap, 0.0)


def only_eager(config: Any) -> bool:
    """Whether SDPA would compute something else than the model's own attention."""
    row = family_of(config)
    return row.eager or bool(_value(config, row.attention_cap, 0.0))


def rope_of(config: Any) -> tuple[str, dict[str, Any]]:
    """(kind of rotary scaling, its settings): ("default", {}) where there is none."""
    rope = getattr(config, "rope_scaling", None) or {}
    return str(rope.get("rope_type", rope.get("type", "default"))), rope


def rotary_limit(config: Any) -> int | None:
    """Texts longer than this turn *all* their positions by other angles (longrope, dynamic NTK); None: no such length.

    Documents on both sides of it can't share a row or a batch: transformers chooses the angles by the longest.
    """
    kind, rope = rope_of(config)
    if kind not in ("longrope", "dynamic"):
        return None
    original = getattr(config, "original_max_position_embeddings", None) or rope.get("original_max_position_embeddings")
    return int(original or config.max_position_embeddings)


def engine_refusal(config: Any) -> str | None:
    """Why the engine can't generate with a model of this config; None when it can."""
    if not family_of(config).engine:
        return f"generation knows {', '.join(names(engine=True))}; this model is {config.model_type!r}"
    kind, _ = rope_of(config)
    if rotary_limit(config) is not None:
        return f"its rotary positions ({kind}) change with the length of the text, which generation does not support"
    share = _value(config, family_of(config).rope_share, 1.0)
    if share != 1.0:
        return f"it rotates {share:g} of each head, and generation rotates whole ones"
    return None


def engine_context(config: Any) -> int | None:
    """Tokens of prompt and completion that generation can hold: the context, or a sliding window that is shorter."""
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    limits = [limit for limit in (context_of(config), window) if limit]
    return min(limits, default=None)


def _value(config: Any, key: str, default: float) -> float:
    found = getattr(config, key, None) if key else None
    return float(found) if found else default
