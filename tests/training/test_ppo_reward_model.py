"""PPO with a reward model: scores are transformers' own, the critic starts from it, other tokenizers are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from tests.training.test_ppo_stage import LETTERS, make_model, metrics, settings, start, write_files
from training.config.load import load_config
from training.config.ppo import RewardConfig
from training.data.batch import PromptRow
from training.data.template import TextCodec
from training.errors import ConfigError, MissingInput
from training.models.blocks import trunk_of
from training.models.export import load_reward_model, save_reward_model
from training.models.heads import RewardModel
from training.models.load import load_causal_lm
from training.ppo.experience import Completions
from training.ppo.players import prompt_limit
from training.ppo.rewards import ModelReward, RewardFailed


def make_reward_model(folder: Path, base: Path) -> Path:
    torch.manual_seed(3)
    model = RewardModel(trunk_of(load_causal_lm(str(base))))
    save_reward_model(folder, model, model.state_dict(), TextCodec.load(base), {})
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reward")
    make_model(folder / "actor")
    make_reward_model(folder / "rm", folder / "actor")
    make_model(folder / "other-actor", letters=LETTERS[::-1], seed=1)
    make_reward_model(folder / "other-rm", folder / "other-actor")
    write_files(folder)
    return folder


def completions(codec: TextCodec, texts: list[tuple[str, str]]) -> tuple[Completions, list[PromptRow]]:
    rows, ids, lengths = [], [], []
    for number, (prompt, answer) in enumerate(texts):
        messages = ({"role": "user", "content": prompt},)
        head = codec.encode_prompt(messages)
        tail = [*codec.tokenizer(answer)["input_ids"], codec.eos_id]
        rows.append(PromptRow(f"p:{number}", messages, prompt, tuple(head), {}))
        ids.append([*head, *tail])
        lengths.append((len(head), len(tail)))
    tokens = torch.full((len(ids), max(map(len, ids))), codec.pad_id)
    for row, each in enumerate(ids):
        tokens[row, : len(each)] = torch.tensor(each)
    prompts, responses = zip(*lengths, strict=True)
    finished = torch.ones(len(ids), dtype=torch.bool)
    return Completions(tokens, prompts, responses, finished, tuple(row.row for row in rows)), rows


TEXTS = [("a", "bc"), ("hhh", "a"), ("bb", "cdefg"), ("c", "")]


def plain_scores(rm: Path, codec: TextCodec) -> list[float]:
    """What transformers says of each row by itself, in `codec`'s tokens."""
    plain = AutoModelForSequenceClassification.from_pretrained(rm).eval()
    scores = []
    for prompt, answer in TEXTS:
        ids = [*codec.tokenizer(prompt + answer)["input_ids"], codec.eos_id]
        with torch.no_grad():
            scores.append(plain(input_ids=torch.tensor([ids])).logits.item())
    return scores


@pytest.mark.parametrize("budget", [4, 1000])
def test_scores_are_those_of_transformers_on_each_row_alone(place: Path, budget: int) -> None:
    codec = TextCodec.load(place / "actor")
    data, rows = completions(codec, TEXTS)
    config = RewardConfig(model=str(place / "rm"))
    reward = ModelReward(load_reward_model(config.model or ""), TextCodec.load(place / "rm"), codec, config)
    assert reward.retokenize is False
    assert reward.score(data, rows, budget).tolist() == pytest.approx(plain_scores(place / "rm", codec), abs=1e-5)


def test_another_tokenizer_is_refused_or_its_own_tokens_are_scored(place: Path) -> None:
    codec, other = TextCodec.load(place / "actor"), TextCodec.load(place / "other-rm")
    data, rows = completions(codec, TEXTS)
    config = RewardConfig(model=str(place / "other-rm"))
    with pytest.raises(ConfigError, match=r"another vocabulary.*reward\.retokenize"):
        ModelReward(load_reward_model(config.model or ""), other, codec, config)
    allowed = RewardConfig(model=str(place / "other-rm"), retokenize=True)
    reward = ModelReward(load_reward_model(config.model or ""), other, codec, allowed)
    assert reward.score(data, rows, 1000).tolist() == pytest.approx(plain_scores(place / "other-rm", other), abs=1e-5)


def test_a_score_that_is_no_number_names_the_row(place: Path) -> None:
    codec = TextCodec.load(place / "actor")
    data, rows = completions(codec, TEXTS)
    config = RewardConfig(model=str(place / "rm"))
    reward = ModelReward(load_reward_model(config.model or ""), codec, codec, config)
    torch.nn.init.constant_(reward.model.score.weight, float("nan"))
    with pytest.raises(RewardFailed, match=r"Row p:0.*nan"):
        reward.score(data, rows, 1000)


def run(place: Path, tmp_path: Path, **changes: Any) -> list[dict[str, Any]]:
    reward = {"function": None, "model": str(place / "rm"), **changes.pop("reward", {})}
    return start(place / "actor", place, run_dir=str(tmp_path / "run"), reward=reward, **changes)


def test_a_run_learns_from_a_reward_model(place: Path, tmp_path: Path) -> None:
    told = run(
        place, tmp_path, critic={"lr": 1e-2}, kl={"coef": 0.001},
        train={"max_steps": 40, "epochs": 99, "rollout_batch_size": 32, "minibatch_size": 16, "lr": 1e-2},
    )  # fmt: skip
    rewards = metrics(told, "reward")
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.5 * metrics(told, "reward_std")[0]
    assert metrics(told, "value")[0] == 0  # the value head starts at zero


def test_the_critic_may_keep_the_reward_head_and_adapters_fit_both(place: Path, tmp_path: Path) -> None:
    told = run(place, tmp_path, critic={"head": "reward"}, lora={"rank": 2})
    assert metrics(told, "value")[0] != 0
    assert metrics(told, "kl")[0] == pytest.approx(0, abs=1e-4)
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").exists()


def test_critic_of_other_tokens_is_refused_with_the_way_out(place: Path, tmp_path: Path) -> None:
    other = {"model": str(place / "other-rm"), "retokenize": True}
    with pytest.raises(ConfigError, match=r"critic would start from .*other-rm.*set critic\.model"):
        run(place, tmp_path, reward=other)
    told = run(place, tmp_path, reward=other, critic={"model": str(place / "actor")})
    assert len(metrics(told, "reward")) == 3


def test_a_causal_model_has_no_reward_head(place: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match="no reward model"):
        run(place, tmp_path, reward={"model": str(place / "actor")})
    with pytest.raises(ConfigError, match="no reward head"):
        run(place, tmp_path, critic={"model": str(place / "actor"), "head": "reward"})


def test_a_reference_of_another_vocabulary_is_refused(place: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="another vocabulary than the actor"):
        run(place, tmp_path, reference=str(place / "other-actor"))


def test_the_shortest_context_bounds_prompts(place: Path, tmp_path: Path) -> None:
    short = make_reward_model(tmp_path / "short-rm", make_model(tmp_path / "short", context=16))
    tree = settings(place / "actor", place, reward={"function": None, "model": str(short)})
    assert prompt_limit(load_config("ppo", {**tree, "train": {"max_prompt_length": 100}})) == 10
