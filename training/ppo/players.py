"""Gathers what a run of PPO or GRPO needs (actor, reference, critic, rewards) and refuses what can't work together."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_utils import PreTrainedModel

from training.config.ppo import PPOTrainConfig
from training.config.rollouts import RolloutTrainConfig
from training.config.stages import GRPOConfig, LoraConfig, PPOConfig
from training.config.strategies import OptimizerConfig
from training.data.batch import PromptRow
from training.data.template import TextCodec
from training.errors import ConfigError
from training.loop.run import Run
from training.loop.schedule import learning_rate_schedule
from training.models.agreement import DOCUMENTS, check_hidden, check_loss
from training.models.attention import PACKED
from training.models.blocks import trunk_of
from training.models.compile import speed_up_blocks
from training.models.export import load_reward_model
from training.models.families import context_of, engine_context, engine_refusal
from training.models.footprint import activation_bytes
from training.models.heads import RewardModel
from training.models.load import check_vocabulary, load_config
from training.models.lora import adapters_off, convert_to_lora
from training.models.rehearsal import mend_generation
from training.ppo.experience import Completions, evaluate_actions
from training.ppo.models import Actor, Critic, action_logprobs
from training.ppo.scores import Rewards
from training.ppo.update import over_ranks
from training.strategies.base import Schedule, Strategy, Trained

RLConfig = PPOConfig | GRPOConfig


def check(config: RLConfig, dp_size: int) -> None:
    """Refuse an actor that can't be generated with, and batch sizes that can't be shared out over the ranks.

    Reads no weights. ConfigError says which key to change.
    """
    train = config.train
    refusal = engine_refusal(load_config(config.model))
    if refusal:
        name = "PPO" if isinstance(config, PPOConfig) else "GRPO"
        raise ConfigError(f"{name} can't roll out {config.model}: {refusal}.")
    for name in ("rollout_batch_size", "minibatch_size"):
        if getattr(train, name) % dp_size:
            raise ConfigError(f"train.{name} is {getattr(train, name)}: it must be a multiple of the {dp_size} ranks.")
    if train.rollout_batch_size // dp_size % train.samples_per_prompt:
        raise ConfigError(
            f"Each of {dp_size} ranks rolls out {train.rollout_batch_size // dp_size} completions: that must be a "
            f"multiple of train.samples_per_prompt ({train.samples_per_prompt})."
        )
    if isinstance(config, PPOConfig) and config.ptx.coef and config.ptx.batch_size % dp_size:
        raise ConfigError(f"ptx.batch_size is {config.ptx.batch_size}: it must be a multiple of the {dp_size} ranks.")


def prompt_limit(config: RLConfig) -> int:
    """The longest prompt that can be rolled out: train.max_prompt_length, or less where a context is short.

    Raises ConfigError when max_new_tokens fills the context of the actor, the critic or the reward model.
    """
    new, limit = config.generation.max_new_tokens, config.train.max_prompt_length
    for what, path in (
        ("actor", config.model),
        ("reference", config.reference),
        ("reward model", config.reward.model),
        ("critic", config.critic.model if isinstance(config, PPOConfig) else None),
    ):
        limit_of = engine_context if what == "actor" else context_of
        context = limit_of(load_config(path)) if path is not None else None
        if context is None:
            continue
        if new >= context:
            raise ConfigError(
                f"generation.max_new_tokens is {new} but the {what} {path} reads {context} tokens in all, prompt "
                f"included: set it below {context}."
            )
        limit = min(limit, context - new)
    return limit


def schedules(train: RolloutTrainConfig, steps: int) -> tuple[Schedule, Schedule]:
    """(actor's, critic's) schedule over `steps` of a run: the actor makes no update while the critic warms up."""
    updates = train.ppo_epochs * (train.rollout_batch_size // train.minibatch_size)
    waiting = train.critic_warmup_steps if isinstance(train, PPOTrainConfig) else 0
    acting = max(steps - waiting, 1)
    return learning_rate_schedule(train, acting * updates), learning_rate_schedule(train, steps * updates)


MICRO_TOKENS, MICRO_TOKENS_ON_CPU = 32_768, 16_384
MICRO_STEP = 4096
FREE_SHARE = 0.6
"""Part of the GPU's free memory for activations; the rest is for gradients, logits and the rollout's cache."""
CACHE_SHARE = 0.25
"""Part of it that the rollout's cache may take at most."""


def micro_tokens(run: Run, model: Any) -> int:
    """Tokens of one backward pass of `model` (a causal LM): as configured, else what fits; the same on all ranks."""
    asked: int | None = run.config.train.micro_batch_tokens
    if asked is not None:
        return asked
    if not run.on_gpu:
        return MICRO_TOKENS_ON_CPU
    device = run.strategy.device
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = torch.cuda.mem_get_info(device)[0] + unused
    fitting = int(FREE_SHARE * free / activation_bytes(model, compiled=run.compiled))
    fitting = max(MICRO_STEP, min(MICRO_TOKENS, fitting // MICRO_STEP * MICRO_STEP))
    tokens = int(over_ranks(run.strategy, torch.tensor([fitting])).min())
    run.note(f"{free / 2**30:.0f} GiB of GPU memory are free: train.micro_batch_tokens is {tokens}")
    return tokens


COMPILED_VARIANTS = 256
"""Versions of a compiled block: lengths, with and without gradients, adapters on and off, four models."""


@dataclass
class Players:
    """The models of a run. `critic` is None where groups are compared; `reference` is None where the actor with its
    adapter off is the reference, or where no KL is measured."""

    actor: Trained
    critic: Trained | None
    reference: Actor | None
    rewards: Rewards

    @property
    def trained(self) -> list[Trained]:
        return [self.actor] if self.critic is None else [self.actor, self.critic]

    def ref_logprobs(self, strategy: Strategy, completions: Completions, budget: int) -> Tensor:
        """[b, r] log-probs of the reference. Every rank must call it."""
        if self.reference is not None:
            return action_logprobs(self.reference, completions, budget)
        with strategy.generation(self.actor) as policy, adapters_off(policy):
            return action_logprobs(policy, completions, budget)

    def values(self, strategy: Strategy, completions: Completions, budget: int) -> Tensor:
        """[b, r] the critic's values before each action. Every rank must call it."""
        assert self.critic is not None
        with strategy.generation(self.critic) as critic:
            return evaluate_actions(completions, budget, critic.action_values)


def speed_up(run: Run) -> tuple[Callable[[Any], None], Callable[[Any], None]]:
    """What makes the blocks of a trained model and of a frozen one fast or small, as the configuration says.

    Only blocks that take packed rows are compiled: padded rows come in too many shapes.
    """
    checkpointing = run.config.train.activation_checkpointing
    if run.compiled:
        torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, COMPILED_VARIANTS)

    def trained(model: Any) -> None:
        compiled = run.compiled and model.config._attn_implementation == PACKED
        speed_up_blocks(model, compiled=compiled, checkpointing=checkpointing)

    def frozen(model: Any) -> None:
        compiled = run.compiled and model.config._attn_implementation == PACKED
        speed_up_blocks(model, compiled=compiled)

    return trained, frozen


def gather(run: Run, codec: TextCodec, steps: int) -> Players:
    """Load everything and hand actor and critic to the strategy. One seed on all ranks: new heads must be alike."""
    config, strategy = run.config, run.strategy
    faster, faster_frozen = speed_up(run)
    actor_schedule, critic_schedule = schedules(config.train, steps)
    torch.manual_seed(config.train.seed)
    rewards = Rewards.load(config.reward, strategy, codec, config.train.score_tokens)
    for reward in rewards.models:
        if not reward.retokenize:  # tokens of its own come in any length
            faster_frozen(reward.model.trunk)
    critic = None
    if isinstance(config, PPOConfig):
        value_model = _critic(run, codec)
        faster(value_model.model.trunk)
        critic = strategy.prepare(value_model, _optimizer(config, config.critic.lr), critic_schedule, name="critic")
    reference = None
    measured = isinstance(config, PPOConfig) or config.kl.coef > 0
    if measured and (config.reference is not None or config.lora is None):
        _same_vocabulary(config, codec)
        reference = _actor(run, codec, config.reference or config.model, None)
        faster_frozen(reference.model)
        strategy.prepare_frozen(reference)
    actor = _actor(run, codec, config.model, config.lora)
    faster(actor.model)
    trained = strategy.prepare(actor, _optimizer(config, config.train.lr), actor_schedule, name="actor")
    return Players(trained, critic, reference, rewards)


def agree(run: Run, players: Players, prompts: Sequence[PromptRow], pad_id: int) -> None:
    """Compare what actor and critic compute with transformers, on some prompts. Every rank must call it."""
    device = run.strategy.device
    documents = [torch.tensor(row.tokens, device=device) for row in prompts[:DOCUMENTS]]
    with run.strategy.generation(players.actor) as actor:
        error = check_loss(actor.model, documents, pad_id=pad_id)
    if players.critic is not None:
        with run.strategy.generation(players.critic) as critic:
            error = max(error, check_hidden(critic.model.trunk, documents, pad_id=pad_id))
    who = "actor and critic compute" if players.critic is not None else "the actor computes"
    run.note(f"{who} the same as in transformers (difference {error:.1e})")


def _optimizer(config: RLConfig, lr: float) -> OptimizerConfig:
    train = config.train
    return OptimizerConfig(lr, train.betas, train.eps, train.weight_decay, train.max_grad_norm)


def _actor(run: Run, codec: TextCodec, path: str, lora: LoraConfig | None) -> Actor:
    model: PreTrainedModel = run.load_base(path)
    if notice := mend_generation(model):
        run.note(notice)
    check_vocabulary(model, max(codec.tokenizer.get_vocab().values()) + 1, path)
    if lora is not None:
        convert_to_lora(model, lora)
    config, train = run.config, run.config.train
    return Actor(
        model,
        temperature=config.generation.temperature,
        **(_group_options(config) if isinstance(config, GRPOConfig) else {"clip_range": train.clip_range}),
        dual_clip=train.dual_clip,
        entropy_coef=train.entropy_coef,
        pad_id=codec.pad_id,
        chunk=train.head_chunk,
        compiled_head=run.compiled and run.on_gpu,
    )


def _group_options(config: GRPOConfig) -> dict[str, Any]:
    """What GRPO's policy loss has otherwise than PPO's."""
    options, kl = config.grpo, config.kl
    return {
        "clip_range": options.epsilon_low,
        "clip_high": options.epsilon_high,
        "sequence_ratio": options.importance_sampling_level == "sequence",
        "kl_coef": kl.coef if kl.place == "loss" else 0.0,
        "kl_estimator": kl.estimate,
    }


def _same_vocabulary(config: RLConfig, codec: TextCodec) -> None:
    if config.reference is None:
        return
    if TextCodec.load(config.reference).vocabulary_digest != codec.vocabulary_digest:
        raise ConfigError(
            f"The reference {config.reference} has another vocabulary than the actor {config.model}: KL between them "
            "means nothing. Use a reference with the actor's tokenizer."
        )


def _critic(run: Run, codec: TextCodec) -> Critic:
    """From critic.model, else the reward model, else the actor; its head at zero or as the reward model's."""
    config: PPOConfig = run.config
    path = config.critic.model or config.reward.model or config.model
    if path != config.model and TextCodec.load(path).vocabulary_digest != codec.vocabulary_digest:
        raise ConfigError(
            f"The critic would start from {path}, which has another vocabulary than the actor {config.model}: "
            "set critic.model to a model that reads the actor's tokens (the actor itself will do)."
        )
    scored = getattr(load_config(path), "num_labels", None) == 1
    if config.critic.head == "reward" and not scored:
        raise ConfigError(f"critic.head is reward, but {path} has no reward head: set critic.head: zero.")
    if scored:
        model = load_reward_model(path, pad_id=codec.pad_id)
        if config.critic.head == "zero":
            torch.nn.init.zeros_(model.score.weight)
    else:
        model = RewardModel(trunk_of(run.load_base(path)), pad_id=codec.pad_id, head_init="zero")
    lora = _critic_lora(config)
    if lora is not None:
        convert_to_lora(model, lora)
        model.score.requires_grad_(True)  # small and new: it trains whole
    return Critic(model, clip_range=config.critic.clip_range, coef=config.critic.coef)


def _critic_lora(config: PPOConfig) -> LoraConfig | None:
    rank = config.critic.lora_rank
    if rank is None:
        return config.lora
    return dataclasses.replace(config.lora or LoraConfig(), rank=rank) if rank else None
