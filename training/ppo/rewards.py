"""Scores of completions: calls a user's function with care, checks a reward model's codec, and shapes the scores.

A reward function is `function(prompts, completions, rows, **arguments) -> scores`: texts of the prompts as rendered,
texts of the completions without special tokens, and the prompt rows' own fields; one finite number for each row.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from training.config.rollouts import RewardConfig, RewardFunction
from training.data.batch import PromptRow
from training.data.template import TextCodec
from training.errors import ConfigError, DataError, MissingInput
from training.ppo import formulas as rl
from training.ppo.experience import Completions, evaluate_rows

if TYPE_CHECKING:
    from training.models.heads import RewardModel


class RewardFailed(DataError):
    """The reward function raised, or returned what can't be a score; the message names the row."""


class Codec(Protocol):
    """What of a TextCodec is compared here."""

    @property
    def fingerprint(self) -> str: ...
    @property
    def vocabulary_digest(self) -> str: ...
    @property
    def template_name(self) -> str: ...


@dataclass(frozen=True)
class RewardSample:
    """What a reward function may look at: one completion with its prompt, the prompt's row id and the row's fields."""

    row: str
    prompt: str
    completion: str
    fields: Mapping[str, object]


def load_function(spec: str) -> Callable[..., Any]:
    """The function that `package.module:function` or `/path/file.py:function` names, or ConfigError, MissingInput."""
    where, _, name = spec.rpartition(":")
    try:
        if where.endswith(".py"):
            path = Path(where)
            if not path.is_file():
                raise MissingInput(f"reward.function: there is no file {path}.")
            module_spec = importlib.util.spec_from_file_location(f"navarch_reward_{path.stem}", path)
            assert module_spec is not None and module_spec.loader is not None
            module = importlib.util.module_from_spec(module_spec)
            module_spec.loader.exec_module(module)
        else:
            module = importlib.import_module(where)
    except MissingInput:
        raise
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"reward.function {spec!r}: no module named {error.name!r} can be imported; install it in the image, "
            "set PYTHONPATH in the job's env, or give the file: /path/to/file.py:function."
        ) from error
    except Exception as error:
        raise ConfigError(f"reward.function {spec!r}: importing it raised {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        offered = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ConfigError(
            f"reward.function {spec!r}: {where} has no function {name!r}; it has {', '.join(offered) or 'none'}."
        )
    return function  # type: ignore[no-any-return]


class FunctionReward:
    """Calls a user's function on a batch, and finds the row at fault when it fails."""

    def __init__(self, config: RewardFunction) -> None:
        self.name = config.function
        self.arguments = dict(config.arguments)
        self.function = load_function(config.function)

    def score(self, samples: Sequence[RewardSample]) -> list[float]:
        """One finite number per sample. RewardFailed names the row that raised, or whose score is no number."""
        try:
            returned = self._call(samples)
        except Exception as error:
            raise RewardFailed(f"{self._culprit(samples)}: {self.name} raised {_said(error)}. {_HINT}") from error
        scores = returned.tolist() if hasattr(returned, "tolist") else returned
        if not isinstance(scores, Sequence) or isinstance(scores, str | bytes):
            raise RewardFailed(
                f"{self.name} must return a list of {len(samples)} numbers, not {_kind(returned)}. {_HINT}"
            )
        if len(scores) != len(samples):
            raise RewardFailed(f"{self.name} returned {len(scores)} scores for {len(samples)} completions. {_HINT}")
        return [self._number(score, sample) for score, sample in zip(scores, samples, strict=True)]

    def _call(self, samples: Sequence[RewardSample]) -> Any:
        return self.function(
            [sample.prompt for sample in samples],
            [sample.completion for sample in samples],
            [dict(sample.fields) for sample in samples],
            **self.arguments,
        )

    def _number(self, score: object, sample: RewardSample) -> float:
        try:
            number = float(score)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise RewardFailed(
                f"Row {sample.row}: {self.name} returned {score!r}, which is not a finite number, for the completion "
                f"{_shown(sample.completion)}. {_HINT}"
            )
        return number

    def _culprit(self, samples: Sequence[RewardSample]) -> str:
        """The first row on which the function also fails by itself."""
        for sample in samples:
            try:
                self._call([sample])
            except Exception:
                return f"Row {sample.row} (completion {_shown(sample.completion)})"
        return f"Rows {samples[0].row} … {samples[-1].row} together" if samples else "An empty batch"


_HINT = "Correct the function and resume: a checkpoint of the steps done so far was saved."


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _kind(value: object) -> str:
    return type(value).__name__


def _shown(text: str, limit: int = 80) -> str:
    return repr(text if len(text) <= limit else text[:limit] + "…")


def must_retokenize(actor: Codec, reward: Codec, allowed: bool, reward_path: str) -> bool:
    """False when the reward model reads the actor's token ids as they are; True when texts must be tokenised again.

    Raises ConfigError when vocabularies or templates differ and `allowed` (reward.retokenize) is off.
    """
    if actor.fingerprint == reward.fingerprint:
        return False
    same_words = actor.vocabulary_digest == reward.vocabulary_digest
    differs = (
        f"chat template ({reward.template_name}; the actor's is {actor.template_name})" if same_words else "vocabulary"
    )
    if not allowed:
        raise ConfigError(
            f"The reward model {reward_path} has another {differs} than the actor, so token ids mean different things "
            "to them. Use a reward model trained from the same model, or set reward.retokenize: true to have every "
            "completion decoded and tokenised again for it."
        )
    return True


class ModelReward:
    """Scores from a reward model, on the actor's own token ids or on texts tokenised again for it."""

    def __init__(self, model: RewardModel, codec: TextCodec, actor_codec: TextCodec, config: RewardConfig) -> None:
        assert config.model is not None
        self.model, self.codec, self.actor_codec, self.name = model, codec, actor_codec, config.model
        self.retokenize = must_retokenize(actor_codec, codec, config.retokenize, config.model)

    def score(self, completions: Completions, prompts: Sequence[PromptRow], budget: int) -> Tensor:
        """[b] float32; RewardFailed names the row whose score is no number."""
        if self.retokenize:
            completions = self._tokenised_again(completions, prompts)
        scores = evaluate_rows(completions, budget, self.model.scores)
        bad = (~scores.isfinite()).nonzero().flatten().tolist()
        if bad:
            raise RewardFailed(
                f"Row {completions.rows[bad[0]]}: the reward model {self.name} gives {scores[bad[0]].item()}, "
                "which is not a finite number. Check that model on held-out pairs; a checkpoint of this run was saved."
            )
        return scores

    def _tokenised_again(self, completions: Completions, prompts: Sequence[PromptRow]) -> Completions:
        """Each conversation in the reward model's own tokens, up to the assistant's stop token."""
        texts = [self.actor_codec.decode(ids) for ids in completions.response_ids()]
        encoded = self.codec.encode_chats(
            [
                [*prompt.messages, {"role": "assistant", "content": text}]
                for prompt, text in zip(prompts, texts, strict=True)
            ],
            [prompt.tools for prompt in prompts],
        )
        tokens = torch.zeros(len(encoded), max(len(each) for each in encoded), dtype=torch.long)
        for row, each in enumerate(encoded):
            tokens[row, : len(each)] = torch.from_numpy(each.tokens).long()
        return Completions(
            tokens.to(completions.tokens.device),
            tuple(len(each) - 1 for each in encoded),
            (1,) * len(encoded),
            completions.finished,
            completions.rows,
        )


class ScoreShaping:
    """From raw scores to the ones that are learned from: normalised, penalised for a missing stop token, clipped."""

    def __init__(self, config: RewardConfig, reduce: rl.Reduce = rl.one_rank) -> None:
        self.config = config
        self.reduce = reduce
        self.moments = rl.RunningMoments()

    def __call__(self, scores: Tensor, finished: Tensor) -> Tensor:
        """scores [b] of this rank, finished [b] bool (ended by a stop token) → [b] float32.

        The penalty comes after normalisation, so that its size is what the configuration says; the clip comes last.
        """
        shaped = scores.float()
        if self.config.normalize == "running":
            self.moments.update(shaped, self.reduce)
            shaped = self.moments.normalize(shaped)
        elif self.config.normalize == "rollout":
            shaped = rl.whiten(shaped, torch.ones_like(shaped, dtype=torch.bool), reduce=self.reduce)
        if self.config.missing_eos_penalty is not None:
            shaped = shaped - self.config.missing_eos_penalty * (~finished).float()
        if self.config.clip is not None:
            shaped = shaped.clamp(-self.config.clip, self.config.clip)
        return shaped

    def state_dict(self) -> dict[str, float]:
        return self.moments.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.moments.load_state_dict(state)
