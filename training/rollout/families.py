"""Reads transformers' causal language models as a row of blocks around attention, weights in place.

A family splits a model at its attention: `embed` makes the state, each block's `inputs` gives query, key and value, its
`finish` takes what was attended to the next state, `head` gives logits. Prefill and decode differ only in the attention
between, so every model that fits here has both. Tokens lie in one dimension: t tokens, or n rows of one new token each.
Normalisation, biases and residuals are the family's own; LoRA layers are called as modules.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.models.chunked_head import head_product
from training.models.families import engine_context, engine_refusal
from training.rollout import kernels, one_row
from training.rollout.linear import Projection, QuantizedLinear, Weight, fuse_linears, product, weight_of

ENDLESS = 1 << 20
"""The context of models whose positions have no end."""
State = Any  # what a family passes from block to block


class Block(Protocol):
    scale: float
    ahead: tuple[Tensor, ...]
    """What `finish` reads first, for attention to bring near."""

    def inputs(self, state: State) -> tuple[State, Tensor, Tensor, Tensor]:
        """-> state, q [t, H, D], k [t, G, D], v [t, G, D], before rotary embedding."""

    def finish(self, state: State, attended: Tensor) -> State:
        """attended [t, H * D] -> the next block's state."""


class Family(Protocol):
    blocks: list[Block]
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    context: int
    dtype: torch.dtype
    slopes: Tensor | None

    def embed(self, tokens: Tensor, positions: Tensor) -> State: ...

    def head(self, state: State) -> Tensor:
        """-> logits [t, V], fp32 where a family can."""

    def rotary(self, length: int) -> tuple[Tensor, Tensor] | None:
        """(cos, sin) tables [length, D/2] in fp32, or None for models without rotary embedding."""


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


def head_logits(hidden: Tensor, weight: Weight | None, module: nn.Module) -> Tensor:
    """Logits [t, V]: fp32 sums kept in fp32 where the device can, so that log-probs lose nothing to rounding.

    The same product as the trainer's own head, whose log-probs these are compared with.
    """
    if weight is None:
        return module(hidden)
    return head_product(hidden, weight.data, weight.bias) if weight.bits == 16 else product(hidden, weight)


class LlamaBlock:
    """Layers as LLaMA's. State: (residual stream, output not yet added to it or None)."""

    def __init__(self, layer: nn.Module, family: LlamaFamily) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.family = family
        self.scale = float(attention.scaling)
        self.qkv, self.gate_up, self.activation = self.joined(attention, mlp)
        self.out = Projection([attention.o_proj])
        self.down = Projection([mlp.down_proj])
        self.ahead = tuple(part.weight.data for part in (self.out, self.gate_up, self.down) if part.weight is not None)
        self.silu = family.config.hidden_act == "silu"
        self.norm1 = (layer.input_layernorm.weight, float(layer.input_layernorm.variance_epsilon))
        self.norm2 = (layer.post_attention_layernorm.weight, float(layer.post_attention_layernorm.variance_epsilon))

    def joined(self, attention: nn.Module, mlp: nn.Module) -> tuple[Projection, Projection, nn.Module]:
        """(query, key and value; gate and up; what the gate goes through)"""
        qkv = Projection([attention.q_proj, attention.k_proj, attention.v_proj])
        return qkv, Projection([mlp.gate_proj, mlp.up_proj]), mlp.act_fn

    def takes_one_row(self, state: State) -> bool:
        residual, pending = state
        return (
            pending is None
            and self.silu
            and residual.shape[0] == 1
            and all(one_row.serves(residual, part.weight) for part in (self.qkv, self.out, self.gate_up, self.down))
        )

    def _norm(self, state: State, norm: tuple[Tensor, float]) -> tuple[Tensor, Tensor]:
        residual, pending = state
        if residual.is_cuda and kernels.AVAILABLE:
            return kernels.add_rms_norm(residual, pending, norm[0], norm[1])
        residual = residual if pending is None else residual + pending
        return residual, rms_norm(residual, *norm)

    def inputs(self, state: State) -> tuple[State, Tensor, Tensor, Tensor]:
        family = self.family
        if self.takes_one_row(state):
            residual = state[0]
            q, k, v = one_row.gemv(residual, self.qkv.weight, norm=self.norm1).split(self.qkv.sizes, dim=-1)
        else:
            residual, x = self._norm(state, self.norm1)
            q, k, v = self.qkv(x)
        t, size = residual.shape[0], family.head_size
        heads = (q.view(t, family.heads, size), k.view(t, family.kv_heads, size), v.view(t, family.kv_heads, size))
        return (residual, None), *heads

    def finish(self, state: State, attended: Tensor) -> State:
        residual = state[0]
        if self.takes_one_row(state):
            residual = one_row.gemv(attended, self.out.weight, residual=residual)
            hidden = one_row.gemv(residual, self.gate_up.weight, norm=self.norm2, gated=True)
            return one_row.gemv(hidden, self.down.weight, residual=residual), None
        residual, x = self._norm((residual, self.out(attended)[0]), self.norm2)
        gate, up = self.gate_up(x)
        if self.silu and gate.is_cuda and kernels.AVAILABLE:
            hidden = kernels.silu_mul(gate, up)
        else:
            hidden = self.activation(gate) * up
        return residual, self.down(hidden)[0]


class Qwen3Block(LlamaBlock):
    """Queries and keys are normalised, head by head, before they are rotated."""

    def __init__(self, layer: nn.Module, family: LlamaFamily) -> None:
        super().__init__(layer, family)
        norms = layer.self_attn.q_norm, layer.self_attn.k_norm
        self.head_norms = [(norm.weight, float(norm.variance_epsilon)) for norm in norms]

    def inputs(self, state: State) -> tuple[State, Tensor, Tensor, Tensor]:
        state, q, k, v = super().inputs(state)
        q, k = (self._of_heads(x, norm) for x, norm in zip((q, k), self.head_norms, strict=True))
        return state, q, k, v

    def _of_heads(self, x: Tensor, norm: tuple[Tensor, float]) -> Tensor:
        return self._norm((x.reshape(-1, x.shape[-1]), None), norm)[1].view(x.shape)


class Phi3Block(LlamaBlock):
    """Query, key and value are one layer, gate and up another."""

    def joined(self, attention: nn.Module, mlp: nn.Module) -> tuple[Projection, Projection, nn.Module]:
        family = self.family
        sizes = [heads * family.head_size for heads in (family.heads, family.kv_heads, family.kv_heads)]
        half = int(mlp.gate_up_proj.out_features) // 2
        return Projection([attention.qkv_proj], sizes), Projection([mlp.gate_up_proj], [half, half]), mlp.activation_fn


def tune_one_row(family: LlamaFamily) -> None:
    """Choose the tiles of the one-row products by timing them here, each over all layers as decoding does."""
    blocks = [block for block in family.blocks if isinstance(block, LlamaBlock)]
    hidden = torch.zeros(1, family.config.hidden_size, device=family.norm[0].device, dtype=family.dtype)
    if not blocks[0].takes_one_row((hidden, None)) or not one_row.serves(hidden, family.head_weight):
        return
    width, traits = hidden.shape[1], one_row.Traits
    kinds: list[tuple[list[Weight | None], int, one_row.Traits]] = [
        ([block.qkv.weight for block in blocks], width, traits(norm=True)),
        ([block.out.weight for block in blocks], family.heads * family.head_size, traits(residual=True)),
        ([block.gate_up.weight for block in blocks], width, traits(norm=True, gated=True)),
        ([block.down.weight for block in blocks], family.config.intermediate_size, traits(residual=True)),
        ([family.head_weight], width, traits(norm=True, wide=True)),
    ]
    for weights, inputs, kind in kinds:
        one_row.tune([weight for weight in weights if weight is not None], inputs, kind)


class LlamaFamily:
    """llama, mistral, qwen2, qwen3, phi3: rotary positions, RMSNorm, gated MLP, grouped queries."""

    slopes: Tensor | None = None
    block: type[LlamaBlock] = LlamaBlock

    def __init__(self, model: nn.Module) -> None:
        self.config = config = model.config
        self.trunk, self.lm_head = model.model, model.lm_head
        self.heads = config.num_attention_heads
        self.kv_heads = config.num_key_value_heads
        self.head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.vocabulary, self.context = config.vocab_size, engine_context(config) or ENDLESS
        self.dtype = self.trunk.embed_tokens.weight.dtype
        self.blocks: list[Block] = [self.block(layer, self) for layer in self.trunk.layers]
        self.norm = (self.trunk.norm.weight, float(self.trunk.norm.variance_epsilon))
        self.head_weight = weight_of([self.lm_head])

    def embed(self, tokens: Tensor, positions: Tensor) -> State:
        return self.trunk.embed_tokens(tokens), None

    def head(self, state: State) -> Tensor:
        residual, pending = state
        if self.head_weight is not None and pending is None and one_row.serves(residual, self.head_weight):
            return one_row.gemv(residual, self.head_weight, norm=self.norm, out_dtype=torch.float32)
        if residual.is_cuda and kernels.AVAILABLE:
            hidden = kernels.add_rms_norm(residual, pending, self.norm[0], self.norm[1])[1]
        else:
            hidden = rms_norm(residual if pending is None else residual + pending, *self.norm)
        return head_logits(hidden, self.head_weight, self.lm_head)

    def rotary(self, length: int) -> tuple[Tensor, Tensor] | None:
        rope = self.trunk.rotary_emb
        angles = torch.arange(length, device=rope.inv_freq.device).float()[:, None] * rope.inv_freq.float()[None, :]
        # transformers rounds these to the model's type; so do we, to stay close to what a trainer computes
        cos, sin = (angles.cos() * rope.attention_scaling), (angles.sin() * rope.attention_scaling)
        return cos.to(self.dtype).float().contiguous(), sin.to(self.dtype).float().contiguous()


class Qwen3Family(LlamaFamily):
    block = Qwen3Block


class Phi3Family(LlamaFamily):
    block = Phi3Block


class GPT2Block:
    ahead: tuple[Tensor, ...] = ()

    def __init__(self, layer: nn.Module, family: GPT2Family) -> None:
        self.layer, self.family = layer, family
        config = family.config
        self.scale = family.head_size**-0.5 if config.scale_attn_weights else 1.0
        if config.scale_attn_by_inverse_layer_idx:
            self.scale /= layer.attn.layer_idx + 1

    def inputs(self, state: State) -> tuple[State, Tensor, Tensor, Tensor]:
        q, k, v = self.layer.attn.c_attn(self.layer.ln_1(state)).split(self.family.config.hidden_size, dim=-1)
        shape = (state.shape[0], self.family.heads, self.family.head_size)
        return state, q.view(shape), k.view(shape), v.view(shape)

    def finish(self, state: State, attended: Tensor) -> State:
        state = state + self.layer.attn.c_proj(attended)
        return state + self.layer.mlp(self.layer.ln_2(state))


class GPT2Family:
    slopes: Tensor | None = None

    def __init__(self, model: nn.Module) -> None:
        self.config = config = model.config
        self.trunk, self.lm_head = model.transformer, model.lm_head
        self.heads = self.kv_heads = config.n_head
        self.head_size = config.n_embd // config.n_head
        self.vocabulary, self.context = config.vocab_size, engine_context(config) or ENDLESS
        self.dtype = self.trunk.wte.weight.dtype
        self.blocks: list[Block] = [GPT2Block(layer, self) for layer in self.trunk.h]
        self.head_weight = weight_of([self.lm_head])

    def embed(self, tokens: Tensor, positions: Tensor) -> State:
        return self.trunk.wte(tokens) + self.trunk.wpe(positions)

    def head(self, state: State) -> Tensor:
        return head_logits(self.trunk.ln_f(state), self.head_weight, self.lm_head)

    def rotary(self, length: int) -> tuple[Tensor, Tensor] | None:
        return None


class OPTBlock:
    ahead: tuple[Tensor, ...] = ()

    def __init__(self, layer: nn.Module, family: OPTFamily) -> None:
        self.layer, self.family = layer, family
        self.scale = family.head_size**-0.5
        attention = layer.self_attn
        self.qkv = Projection([attention.q_proj, attention.k_proj, attention.v_proj])

    def inputs(self, state: State) -> tuple[State, Tensor, Tensor, Tensor]:
        layer = self.layer
        q, k, v = self.qkv(layer.self_attn_layer_norm(state) if layer.do_layer_norm_before else state)
        shape = (state.shape[0], self.family.heads, self.family.head_size)
        return state, q.view(shape), k.view(shape), v.view(shape)

    def finish(self, state: State, attended: Tensor) -> State:
        layer = self.layer
        state = state + layer.self_attn.out_proj(attended)
        if not layer.do_layer_norm_before:
            state = layer.self_attn_layer_norm(state)
        x = layer.final_layer_norm(state) if layer.do_layer_norm_before else state
        state = state + layer.fc2(layer.activation_fn(layer.fc1(x)))
        return state if layer.do_layer_norm_before else layer.final_layer_norm(state)


class OPTFamily:
    slopes: Tensor | None = None

    def __init__(self, model: nn.Module) -> None:
        self.config = config = model.config
        self.trunk, self.lm_head = model.model.decoder, model.lm_head
        self.heads = self.kv_heads = config.num_attention_heads
        self.head_size = config.hidden_size // config.num_attention_heads
        self.vocabulary, self.context = config.vocab_size, engine_context(config) or ENDLESS
        self.dtype = self.trunk.embed_tokens.weight.dtype
        self.blocks: list[Block] = [OPTBlock(layer, self) for layer in self.trunk.layers]
        self.head_weight = weight_of([self.lm_head])

    def embed(self, tokens: Tensor, positions: Tensor) -> State:
        x = self.trunk.embed_tokens(tokens)
        if self.trunk.project_in is not None:
            x = self.trunk.project_in(x)
        table = self.trunk.embed_positions
        return x + F.embedding(positions + table.offset, table.weight)

    def head(self, state: State) -> Tensor:
        if self.trunk.final_layer_norm is not None:
            state = self.trunk.final_layer_norm(state)
        if self.trunk.project_out is not None:
            state = self.trunk.project_out(state)
        return head_logits(state, self.head_weight, self.lm_head)

    def rotary(self, length: int) -> tuple[Tensor, Tensor] | None:
        return None


class BloomBlock:
    """State: (hidden states, residual of the attention)."""

    ahead: tuple[Tensor, ...] = ()

    def __init__(self, layer: nn.Module, family: BloomFamily) -> None:
        self.layer, self.family = layer, family
        self.scale = family.head_size**-0.5

    def inputs(self, state: State) -> tuple[State, Tensor, Tensor, Tensor]:
        layer, family = self.layer, self.family
        x = layer.input_layernorm(state)
        fused = layer.self_attention.query_key_value(x).view(state.shape[0], family.heads, 3, family.head_size)
        residual = x if layer.apply_residual_connection_post_layernorm else state
        return residual, fused[:, :, 0], fused[:, :, 1], fused[:, :, 2]

    def finish(self, state: State, attended: Tensor) -> State:
        layer = self.layer
        hidden = state + layer.self_attention.dense(attended)
        x = layer.post_attention_layernorm(hidden)
        return layer.mlp(x, x if layer.apply_residual_connection_post_layernorm else hidden)


class BloomFamily:
    def __init__(self, model: nn.Module) -> None:
        self.config = config = model.config
        self.trunk, self.lm_head = model.transformer, model.lm_head
        self.heads = self.kv_heads = config.n_head
        self.head_size = config.hidden_size // config.n_head
        self.vocabulary, self.context = config.vocab_size, engine_context(config) or ENDLESS
        self.dtype = self.trunk.word_embeddings.weight.dtype
        self.blocks: list[Block] = [BloomBlock(layer, self) for layer in self.trunk.h]
        self.slopes: Tensor | None = alibi_slopes(self.heads).to(self.trunk.word_embeddings.weight.device)
        self.head_weight = weight_of([self.lm_head])

    def embed(self, tokens: Tensor, positions: Tensor) -> State:
        return self.trunk.word_embeddings_layernorm(self.trunk.word_embeddings(tokens))

    def head(self, state: State) -> Tensor:
        return head_logits(self.trunk.ln_f(state), self.head_weight, self.lm_head)

    def rotary(self, length: int) -> tuple[Tensor, Tensor] | None:
        return None


def alibi_slopes(heads: int) -> Tensor:
    """ALiBi's slopes [H] (arXiv 2108.12409): a geometric series, then parts of the next if H is no power of two."""
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    slopes += [2 ** (-4 * (2 * i + 1) / power) for i in range(heads - power)]
    return torch.tensor(slopes)


READERS: dict[str, type] = {
    "llama": LlamaFamily,
    "mistral": LlamaFamily,
    "qwen2": LlamaFamily,
    "qwen3": Qwen3Family,
    "phi3": Phi3Family,
    "gpt2": GPT2Family,
    "opt": OPTFamily,
    "bloom": BloomFamily,
}


def family_of(model: nn.Module) -> Family:
    """The family that reads this model. Raises ValueError for an architecture that generation doesn't know."""
    refusal = engine_refusal(model.config)
    if refusal:
        raise ValueError(refusal)
    return READERS[model.config.model_type](model)  # type: ignore[no-any-return, union-attr, index]


def fuse_projections(model: nn.Module) -> int:
    """Let the layers of LLaMA- and OPT-like models that share an input share a storage too; returns how many groups.

    No copy stays behind and every Parameter keeps its identity, so an optimizer made before or after sees the same
    weights. Layers that aren't plain (LoRA, mixed types) are left alone.
    """
    fused = 0
    for module in model.modules():
        for names in (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")):
            parts = [getattr(module, name, None) for name in names]
            if all(isinstance(part, nn.Linear | QuantizedLinear) for part in parts):
                fused += fuse_linears([part for part in parts if part is not None])
    return fused
