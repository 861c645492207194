"""How a completion is generated: length, sampling and stopping, for rollouts, PPO and serving (imports no torch)."""

from __future__ import annotations

from dataclasses import dataclass

MAX_STOP_IDS = 8


@dataclass(frozen=True)
class GenerationConfig:
    """Options of one generation.

    `temperature` 0 is greedy. `top_k` 0, `top_p` 1 and `min_p` 0 are off. `stop_ids` None means the stop ids of the
    template that the engine was given; an empty tuple means none. `stop` holds strings that end a completion when they
    appear in its text. Order of the filters is transformers': repetition penalty, temperature, top-k, top-p, min-p.
    """

    max_new_tokens: int = 128
    """Tokens of a completion at most."""
    temperature: float = 1.0
    """Logits are divided by it; 0: always the likeliest token."""
    top_k: int = 0
    """Draw from the K likeliest tokens only; 0: from all."""
    top_p: float = 1.0
    """Draw from the likeliest tokens that have this share of the probability together; 1: from all."""
    min_p: float = 0.0
    """Tokens less likely than this share of the likeliest one's probability are left out."""
    repetition_penalty: float = 1.0
    """Above 1: tokens that are in the text already become less likely (CTRL); 1: off."""
    stop: tuple[str, ...] = ()
    """Texts that end a completion."""
    stop_ids: tuple[int, ...] | None = None
    """Tokens that end a completion; null: the template's."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}: give at least 1")
        if self.temperature < 0:
            raise ValueError(f"temperature is {self.temperature}: give 0 (greedy) or more")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}: give 0 (off) or more")
        if not 0 <= self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}: give a value from 0 to 1")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p is {self.min_p}: give a value from 0 to 1")
        if self.repetition_penalty <= 0:
            raise ValueError(f"repetition_penalty is {self.repetition_penalty}: give a value above 0 (1 is off)")
        if self.stop_ids is not None and len(self.stop_ids) > MAX_STOP_IDS:
            raise ValueError(f"{len(self.stop_ids)} stop ids given: at most {MAX_STOP_IDS} are possible")
        if any(not text for text in self.stop):
            raise ValueError("an empty stop string was given: it would end every completion at once; remove it")

    @property
    def filtered(self) -> bool:
        """True when tokens are drawn from a truncated distribution, so log-probs are not the sampling ones."""
        return self.temperature > 0 and (self.top_k > 0 or self.top_p < 1 or self.min_p > 0)

    @property
    def penalised(self) -> bool:
        return self.repetition_penalty != 1
