"""Shows what a language model answers to fixed prompts before, during and after training."""

from __future__ import annotations

from typing import Any

import torch

from training.config.generation import GenerationConfig
from training.config.stages import SamplesConfig
from training.data.template import TextCodec
from training.errors import ConfigError
from training.loop.run import Run
from training.models.families import context_of
from training.report.phases import phase
from training.report.telemetry import Telemetry
from training.rollout import RolloutEngine

COLUMNS = ["prompt", "answer"]


class Samples:
    """Greedy answers to the configured prompts, as `sample` events and as text in the log."""

    def __init__(self, run: Run, model: Any, codec: TextCodec, config: SamplesConfig) -> None:
        self.run, self.model, self.codec, self.config = run, model, codec, config
        self._evaluations = 0
        self._tokens = [codec.encode_prompt([{"role": "user", "content": prompt}]) for prompt in config.prompts]
        context = context_of(model.config)
        for prompt, tokens in zip(config.prompts, self._tokens, strict=True):
            if context is not None and len(tokens) + config.max_new_tokens > context:
                raise ConfigError(
                    f"samples: the prompt {prompt[:40]!r} has {len(tokens)} tokens and samples.max_new_tokens is "
                    f"{config.max_new_tokens}: together more than the {context} that the model reads."
                )

    def show(self, title: str, trained: Any, telemetry: Telemetry) -> None:
        """Answer all prompts now. Every rank must call it; nothing happens without prompts."""
        if not self._tokens or not self.run.strategy.shows_whole(trained):
            return
        said = phase(f"answering the sample prompts {title}", self.run.note)
        with self.run.strategy.generation(trained), said:
            answers = self._answers() if self.run.is_main else []
        self.run.strategy.barrier()
        if self.run.is_main:
            rows = [[prompt, answer] for prompt, answer in zip(self.config.prompts, answers, strict=True)]
            telemetry.sample(title, rows, columns=COLUMNS)
            telemetry.note("\n".join([f"{title}:", *(f"  {prompt}\n    → {answer}" for prompt, answer in rows)]))

    def after_evaluation(self, step: int, trained: Any, telemetry: Telemetry) -> None:
        """Show them at each `every`-th evaluation."""
        self._evaluations += 1
        if self.config.every and self._evaluations % self.config.every == 0:
            self.show(f"step {step}", trained, telemetry)

    def _answers(self) -> list[str]:
        longest = max(len(tokens) for tokens in self._tokens)
        room = longest + self.config.max_new_tokens
        try:
            engine = RolloutEngine(
                self.model, stop_ids=self.codec.stop_ids, max_batch=min(len(self._tokens), 16), max_length=room
            )
            wanted = GenerationConfig(max_new_tokens=self.config.max_new_tokens, temperature=0.0)
            rollout = engine.generate(self._tokens, wanted)
            engine.release()
            found = [rollout.response(row) for row in range(len(self._tokens))]
        except ValueError:  # an architecture that the engine doesn't know
            found = [self._plain(tokens) for tokens in self._tokens]
        return [self.codec.decode(tokens).strip() for tokens in found]

    @torch.no_grad()
    def _plain(self, tokens: list[int]) -> list[int]:
        ids = list(tokens)
        for _ in range(self.config.max_new_tokens):
            inputs = torch.tensor([ids], device=self.run.strategy.device)
            token = int(self.model(input_ids=inputs, use_cache=False).logits[0, -1].argmax())
            if token in self.codec.stop_ids:
                break
            ids.append(token)
        return ids[len(tokens) :]
