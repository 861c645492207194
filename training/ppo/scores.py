"""Scores of a rollout from everything that rewards it: a reward model, functions, or their weighted sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from training.config.rollouts import RewardConfig
from training.data.batch import PromptRow
from training.data.template import TextCodec
from training.errors import RankFailed
from training.models.export import load_reward_model
from training.ppo.experience import Completions
from training.ppo.models import without_dropout
from training.ppo.rewards import FunctionReward, ModelReward, RewardFailed, RewardSample, must_retokenize
from training.ppo.update import any_rank
from training.strategies.base import Strategy


@dataclass(frozen=True)
class Source:
    """One thing that scores. name: as the metrics call it, where there are several."""

    name: str
    weight: float
    reward: FunctionReward | ModelReward


class Rewards:
    """All sources of a run's reward."""

    def __init__(self, sources: Sequence[Source], strategy: Strategy, codec: TextCodec, budget: int) -> None:
        self.sources, self.strategy, self.codec, self.budget = tuple(sources), strategy, codec, budget

    @classmethod
    def load(cls, config: RewardConfig, strategy: Strategy, codec: TextCodec, budget: int) -> Rewards:
        """Imports the functions and loads the model; ConfigError where one can't be had or reads other tokens."""
        sources = []
        if config.model is not None:
            own = TextCodec.load(config.model, today=codec.today)
            must_retokenize(codec, own, config.retokenize, config.model)  # before weights are read: it may refuse
            model = ModelReward(load_reward_model(config.model, pad_id=own.pad_id), own, codec, config)
            strategy.prepare_frozen(without_dropout(model.model))
            sources.append(Source("model", config.weight, model))
        for each in config.all_functions:
            name = each.function.rpartition(":")[2]
            if name in [source.name for source in sources]:  # the same function with other arguments
                name = f"{name}_{len(sources) + 1}"
            sources.append(Source(name, each.weight, FunctionReward(each)))
        return cls(sources, strategy, codec, budget)

    @property
    def models(self) -> list[ModelReward]:
        return [source.reward for source in self.sources if isinstance(source.reward, ModelReward)]

    def __call__(self, completions: Completions, rows: Sequence[PromptRow]) -> tuple[Tensor, Mapping[str, Tensor]]:
        """([b] weighted sums, {source: [b] its own scores} where there are several), float32.

        Every rank must call it: RewardFailed on the rank whose score is no number, RankFailed on the others.
        """
        failure: RewardFailed | None = None
        parts: dict[str, Tensor] = {}
        try:
            for source in self.sources:
                parts[source.name] = self._score(source.reward, completions, rows)
        except RewardFailed as error:
            failure = error
        if any_rank(self.strategy, failure is not None):
            raise failure or RankFailed("The reward failed on another rank, which names the row.")
        if len(parts) == 1 and self.sources[0].weight == 1:
            return parts[self.sources[0].name], {}
        total = torch.stack([source.weight * parts[source.name] for source in self.sources]).sum(0)
        return total, parts if len(parts) > 1 else {}

    def _score(
        self, reward: FunctionReward | ModelReward, completions: Completions, rows: Sequence[PromptRow]
    ) -> Tensor:
        if isinstance(reward, ModelReward):
            return reward.score(completions, rows, self.budget)
        samples = [
            RewardSample(row.row, row.text, self.codec.decode(ids), row.fields)
            for row, ids in zip(rows, completions.response_ids(), strict=True)
        ]
        return torch.tensor(reward.score(samples), dtype=torch.float32, device=completions.tokens.device)
