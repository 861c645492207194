"""The rollout engine against transformers: same greedy tokens, same log-probs, whatever the batch looks like."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Phi3Config,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from tests.training.tiny import tiny_config
from training.config.generation import GenerationConfig
from training.config.stages import LoraConfig
from training.models.load import from_config
from training.models.lora import convert_to_lora, lora_layers
from training.ppo.experience import Completions
from training.ppo.models import Actor, action_logprobs
from training.rollout import RolloutEngine, fuse_projections

VOCABULARY = 97
SHAPE: dict[str, Any] = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}

CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SHAPE, intermediate_size=48, num_key_value_heads=2, max_position_embeddings=128),
    "llama3-rope": LlamaConfig(
        **SHAPE,
        intermediate_size=48,
        max_position_embeddings=128,
        attention_bias=True,
        tie_word_embeddings=True,
        rope_scaling={
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
    "mistral": MistralConfig(
        **SHAPE, intermediate_size=48, num_key_value_heads=1, max_position_embeddings=128, sliding_window=None
    ),
    "qwen2": Qwen2Config(**SHAPE, intermediate_size=48, num_key_value_heads=2, max_position_embeddings=128),
    "qwen3": Qwen3Config(
        **SHAPE, intermediate_size=48, num_key_value_heads=2, max_position_embeddings=128, head_dim=16
    ),
    "phi3": Phi3Config(
        **SHAPE,
        intermediate_size=48,
        num_key_value_heads=2,
        max_position_embeddings=128,
        pad_token_id=0,
        eos_token_id=None,
    ),
    "gpt2": GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=128),
    "gpt2-scaled": GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=128, scale_attn_by_inverse_layer_idx=True
    ),
    "opt": OPTConfig(**SHAPE, ffn_dim=48, max_position_embeddings=128, word_embed_proj_dim=32),
    "opt-postnorm": OPTConfig(
        **SHAPE, ffn_dim=48, max_position_embeddings=128, word_embed_proj_dim=16, do_layer_norm_before=False
    ),
    "bloom": BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4),
    "bloom-odd-heads": BloomConfig(
        vocab_size=VOCABULARY, hidden_size=36, n_layer=2, n_head=6, apply_residual_connection_post_layernorm=True
    ),
}


def make_model(name: str, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = CONFIGS[name]
    config.initializer_range = config.init_std = 0.3  # peaked logits: a greedy choice is never a near tie
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    model.generation_config.eos_token_id = None
    for parameter in model.parameters():  # biases and norms start at trivial values that would hide a mistake
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, mean=parameter.mean().item(), std=0.2)
    return model


def make_prompts(lengths: tuple[int, ...] = (5, 1, 17, 9, 2)) -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(3, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]


def forward_logprobs(model: Any, tokens: list[int], prompt: int, temperature: float) -> torch.Tensor:
    """Log-probs of the completion's tokens by an ordinary forward over the whole row."""
    with torch.no_grad():
        logits = model(torch.tensor([tokens])).logits[0].float() / (temperature or 1.0)
    return logits.log_softmax(-1)[torch.arange(prompt - 1, len(tokens) - 1), torch.tensor(tokens[prompt:])]


@pytest.mark.parametrize("name", list(CONFIGS))
def test_greedy_equals_transformers_generate(name: str) -> None:
    model = make_model(name)
    prompts = make_prompts()
    rollout = RolloutEngine(model, max_batch=8, max_length=64).generate(
        prompts, GenerationConfig(max_new_tokens=24, temperature=0)
    )
    for row, prompt in enumerate(prompts):
        ids = torch.tensor([prompt])
        expected = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False, pad_token_id=0
        )
        assert rollout.response(row) == expected[0, len(prompt) :].tolist(), f"row {row} of {name}"


@pytest.mark.parametrize("name", list(CONFIGS))
def test_logprobs_of_samples_equal_a_teacher_forced_forward(name: str) -> None:
    model = make_model(name)
    prompts = make_prompts()
    config = GenerationConfig(max_new_tokens=20, temperature=0.7)
    rollout = RolloutEngine(model, stop_ids=[2], max_batch=3, max_length=64, seed=5).generate(prompts, config)
    for row, prompt in enumerate(prompts):
        response = rollout.response(row)
        expected = forward_logprobs(model, prompt + response, len(prompt), 0.7)
        torch.testing.assert_close(rollout.logprobs[row, : len(response)], expected, atol=2e-4, rtol=1e-4)
        assert rollout.logprobs[row, len(response) :].abs().sum() == 0


def test_a_row_does_not_depend_on_its_batch_its_slot_or_the_order() -> None:
    model = make_model("llama")
    prompts = make_prompts()
    config = GenerationConfig(max_new_tokens=30, temperature=1.0)
    seeds = [11, 12, 13, 14, 15]
    together = RolloutEngine(model, stop_ids=[7], max_batch=8, max_length=64).generate(prompts, config, seeds=seeds)
    refilled = RolloutEngine(model, stop_ids=[7], max_batch=2, max_length=64).generate(
        prompts[::-1], config, seeds=seeds[::-1]
    )
    for row, prompt in enumerate(prompts):
        alone = RolloutEngine(model, stop_ids=[7], max_batch=1, max_length=64).generate(
            [prompt], config, seeds=[seeds[row]]
        )
        assert together.response(row) == alone.response(0) == refilled.response(len(prompts) - 1 - row)
        assert bool(together.finished_by_stop[row]) == (together.response(row)[-1] == 7)


def test_result_has_prompts_completions_and_zeros_after() -> None:
    model = make_model("llama")
    prompts = make_prompts()
    rollout = RolloutEngine(model, stop_ids=[4, 9], max_batch=8, max_length=64, seed=1).generate(
        prompts, GenerationConfig(max_new_tokens=40)
    )
    assert rollout.tokens.dtype == torch.int64 and rollout.logprobs.dtype == torch.float32
    assert not rollout.tokens.is_inference(), "a trainer must be able to use the tokens under autograd"
    assert rollout.finished_by_stop.any() and rollout.response_lengths.unique().numel() > 1
    for row, prompt in enumerate(prompts):
        end = len(prompt) + int(rollout.response_lengths[row])
        assert rollout.tokens[row, : len(prompt)].tolist() == prompt
        assert rollout.tokens[row, end:].abs().sum() == 0
        assert set(rollout.response(row)[:-1]).isdisjoint({4, 9})


def test_the_length_budget_ends_a_row() -> None:
    model = make_model("gpt2")
    rollout = RolloutEngine(model, max_batch=2, max_length=20).generate(
        make_prompts((17, 3)), GenerationConfig(max_new_tokens=8, temperature=0)
    )
    assert rollout.response_lengths.tolist() == [3, 8]
    assert rollout.finished_by_stop.tolist() == [False, False]


def test_a_stop_string_ends_a_row_at_the_token_that_completes_it() -> None:
    model = make_model("llama")

    def decode(ids: list[int]) -> str:
        return "".join(chr(97 + i % 26) for i in ids)

    prompts = make_prompts((4, 6, 8))
    free = RolloutEngine(model, max_batch=4, max_length=64).generate(
        prompts, GenerationConfig(temperature=0, max_new_tokens=40)
    )
    texts = [decode(free.response(row)) for row in range(3)]
    word = texts[0][18:21]
    stopped = RolloutEngine(model, decode=decode, max_batch=4, max_length=64).generate(
        prompts, GenerationConfig(temperature=0, max_new_tokens=40, stop=(word,))
    )
    for row, text in enumerate(texts):
        end = text.find(word) + len(word) if word in text else len(text)
        assert decode(stopped.response(row)) == text[:end]
        assert bool(stopped.finished_by_stop[row]) == (word in text)


def test_repetition_penalty_equals_transformers() -> None:
    model = make_model("llama")
    prompts = make_prompts((6, 12))
    rollout = RolloutEngine(model, max_batch=2, max_length=64).generate(
        prompts, GenerationConfig(max_new_tokens=24, temperature=0, repetition_penalty=1.7)
    )
    for row, prompt in enumerate(prompts):
        ids = torch.tensor([prompt])
        expected = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=24,
            do_sample=False,
            repetition_penalty=1.7,
            pad_token_id=0,
        )
        assert rollout.response(row) == expected[0, len(prompt) :].tolist()


def test_weights_are_shared_with_the_trainer() -> None:
    model = make_model("llama")
    engine = RolloutEngine(model, max_batch=2, max_length=64)
    prompts, config = make_prompts((6, 3)), GenerationConfig(max_new_tokens=16, temperature=0)
    before = engine.generate(prompts, config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-0.7)
    after = engine.generate(prompts, config)
    fresh = RolloutEngine(model, max_batch=2, max_length=64).generate(prompts, config)
    assert after.tokens.tolist() == fresh.tokens.tolist() != before.tokens.tolist()


def test_a_copy_in_another_type_follows_the_weights() -> None:
    model = make_model("llama")
    engine = RolloutEngine(model, max_batch=2, max_length=64, dtype=torch.float64)
    prompts, config = make_prompts((6, 3)), GenerationConfig(max_new_tokens=16, temperature=0)
    with torch.no_grad():
        model.lm_head.weight.mul_(-1)
    expected = RolloutEngine(model, max_batch=2, max_length=64).generate(prompts, config)
    assert engine.generate(prompts, config).tokens.tolist() == expected.tokens.tolist()


def test_random_stream_resumes_exactly() -> None:
    model = make_model("llama")
    prompts, config = make_prompts(), GenerationConfig(max_new_tokens=12)
    engine = RolloutEngine(model, max_batch=8, max_length=64, seed=9)
    first = engine.generate(prompts, config)
    state = engine.state_dict()
    second = engine.generate(prompts, config)
    assert first.tokens.tolist() != second.tokens.tolist(), "a stream must not repeat itself"
    resumed = RolloutEngine(model, max_batch=8, max_length=64)
    resumed.load_state_dict(state)
    third = resumed.generate(prompts, config)
    assert torch.equal(third.tokens, second.tokens) and torch.equal(third.logprobs, second.logprobs)


@pytest.mark.parametrize("name", ["llama", "qwen2", "llama3-rope", "opt"])
def test_fused_projections_keep_every_parameter_and_give_the_same_tokens(name: str) -> None:
    model = make_model(name)
    prompts, config = make_prompts(), GenerationConfig(max_new_tokens=16, temperature=0)
    expected = RolloutEngine(model, max_batch=8, max_length=64).generate(prompts, config)
    parameters = dict(model.named_parameters())
    values = {key: value.clone() for key, value in parameters.items()}
    engine = RolloutEngine(model, max_batch=8, max_length=64)
    engine.generate(prompts, config)
    assert fuse_projections(model) >= 2
    assert all(parameters[key] is value for key, value in model.named_parameters())
    assert all(torch.equal(values[key], value) for key, value in model.named_parameters())
    assert engine.generate(prompts, config).tokens.tolist() == expected.tokens.tolist()
    assert engine.decoder().family.blocks[0].qkv.weight is not None, "the three layers are seen as one product"  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_active_adapters_are_part_of_the_model_that_generates(name: str) -> None:
    model = make_model(name)
    prompts, config = make_prompts(), GenerationConfig(max_new_tokens=16, temperature=0)
    plain = RolloutEngine(model, max_batch=8, max_length=64).generate(prompts, config)
    layers = convert_to_lora(model, LoraConfig(rank=4, alpha=32.0))
    with torch.no_grad():
        for layer in lora_layers(model).values():
            layer.lora_B.normal_(std=0.3)
    assert layers and fuse_projections(model) == 0, "adapted layers keep their own storage"
    adapted = RolloutEngine(model, max_batch=8, max_length=64).generate(prompts, config)
    assert adapted.tokens.tolist() != plain.tokens.tolist()
    for row, prompt in enumerate(prompts):
        response = adapted.response(row)
        expected = forward_logprobs(model, prompt + response, len(prompt), 0)
        torch.testing.assert_close(adapted.logprobs[row, : len(response)], expected, atol=2e-4, rtol=1e-4)


def test_dropout_is_off_and_training_mode_comes_back() -> None:
    model = make_model("gpt2")
    prompts, config = make_prompts(), GenerationConfig(max_new_tokens=12, temperature=0)
    expected = RolloutEngine(model, max_batch=8, max_length=64).generate(prompts, config)
    model.train()
    actual = RolloutEngine(model, max_batch=8, max_length=64).generate(prompts, config)
    assert actual.tokens.tolist() == expected.tokens.tolist()
    assert model.training and model.transformer.h[0].mlp.dropout.training


def test_release_frees_the_cache_and_the_engine_still_works() -> None:
    engine = RolloutEngine(make_model("llama"), max_batch=2, max_length=64)
    prompts, config = make_prompts((3, 4, 5)), GenerationConfig(max_new_tokens=8, temperature=0)
    first = engine.generate(prompts, config)
    engine.release()
    assert torch.equal(engine.generate(prompts, config).tokens, first.tokens)


def test_what_cannot_be_generated_is_refused_with_a_sentence() -> None:
    model = make_model("llama")
    engine = RolloutEngine(model, max_batch=2, max_length=16)
    with pytest.raises(ValueError, match="no tokens"):
        engine.generate([[]], GenerationConfig())
    with pytest.raises(ValueError, match="17 tokens"):
        engine.generate([[3] * 17], GenerationConfig())
    with pytest.raises(ValueError, match="decode"):
        engine.generate([[3]], GenerationConfig(stop=("x",)))
    with pytest.raises(ValueError, match="128 positions"):
        RolloutEngine(model, max_length=129).generate([[3]], GenerationConfig())
    with pytest.raises(ValueError, match="generation knows"):
        RolloutEngine(from_config(tiny_config("olmo"))).generate([[3]], GenerationConfig())


def test_in_bf16_too_logprobs_are_those_of_the_trainers_forward() -> None:
    """The same products, kept in fp32, and rotation rounded alike: ratios are of policies, not of roundings."""
    torch.manual_seed(0)
    shape = {**SHAPE, "vocab_size": 512, "hidden_size": 128}
    config = LlamaConfig(**shape, intermediate_size=256, num_key_value_heads=2, initializer_range=0.1)
    model = from_config(config, dtype=torch.bfloat16).eval()
    rollout = RolloutEngine(model, max_batch=5, max_length=64).generate(
        make_prompts(), GenerationConfig(max_new_tokens=40)
    )
    completions = Completions(
        rollout.tokens, tuple(rollout.prompt_lengths.tolist()), tuple(rollout.response_lengths.tolist()),
        rollout.finished_by_stop, ("",) * 5,
    )  # fmt: skip
    scored = action_logprobs(Actor(model), completions, 4096)
    error = (rollout.logprobs - scored).abs()[completions.mask]
    assert error.mean() < 2e-3
