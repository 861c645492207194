"""The options of PPO: bad values are refused by their key, and each of coati's arguments has its counterpart."""

import re

import pytest

from training.config import ppo as ppo_config
from training.config.data import DataSource
from training.config.ppo import CriticConfig, KLConfig, PPOTrainConfig, PtxConfig, RewardConfig
from training.ppo.players import schedules

COATI_ARGUMENTS = [
    "prompt_dataset",
    "pretrain_dataset",
    "strategy",
    "model",
    "pretrain",
    "rm_model",
    "rm_path",
    "rm_pretrain",
    "save_path",
    "need_optim_ckpt",
    "num_episodes",
    "max_timesteps",
    "update_timesteps",
    "max_epochs",
    "train_batch_size",
    "ptx_batch_size",
    "experience_batch_size",
    "lora_rank",
    "kl_coef",
    "ptx_coef",
    "max_input_len",
    "max_seq_len",
]


@pytest.mark.parametrize("name", COATI_ARGUMENTS)
def test_the_table_names_every_coati_argument(name: str) -> None:
    left = " ".join(line.split("|")[1] for line in (ppo_config.__doc__ or "").splitlines() if line.startswith("|"))
    assert re.search(rf"\b{name}\b", left)


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: PPOTrainConfig(clip_range=0), "train.clip_range"),
        (lambda: PPOTrainConfig(gamma=1.5), "train.gamma"),
        (lambda: PPOTrainConfig(dual_clip=0.5), "train.dual_clip"),
        (lambda: PPOTrainConfig(rollout_batch_size=100, minibatch_size=32), "train.minibatch_size"),
        (lambda: PPOTrainConfig(rollout_batch_size=32, samples_per_prompt=3), "train.samples_per_prompt"),
        (lambda: PPOTrainConfig(ppo_epochs=0), "train.ppo_epochs"),
        (lambda: RewardConfig(model="rm", function="a:b"), "not both"),
        (lambda: RewardConfig(function="no_colon"), "no_colon"),
        (lambda: RewardConfig(clip=0), "reward.clip"),
        (lambda: RewardConfig().require_source(), "reward needs"),
        (lambda: CriticConfig(clip_range=-1), "critic.clip_range"),
        (lambda: KLConfig(estimator="k4"), "kl.estimator"),  # type: ignore[arg-type]
        (lambda: KLConfig(coef=-1), "kl.coef"),
        (lambda: PtxConfig(coef=0.5), "ptx.data"),
    ],
)
def test_bad_values_are_refused_by_key(make: object, key: str) -> None:
    with pytest.raises(ValueError, match=re.escape(key)):
        make()  # type: ignore[operator]


def test_ptx_with_data_is_accepted() -> None:
    assert PtxConfig(data=(DataSource("a.jsonl"),), coef=1.0).coef == 1.0


@pytest.mark.parametrize("warm", [0, 3])
def test_the_actors_rate_ends_with_its_last_update_though_the_critic_began_earlier(warm: int) -> None:
    train = PPOTrainConfig(rollout_batch_size=8, minibatch_size=4, ppo_epochs=2, critic_warmup_steps=warm)
    actor, critic = schedules(train, 10)  # four updates a step
    assert actor(0) == critic(0) == 1.0
    assert actor(4 * (10 - warm)) == critic(40) == 0.0 and actor(4 * (10 - warm) - 1) < 0.05
