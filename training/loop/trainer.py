"""The loop that pt, sft, rm and dpo share: accumulate, step, tell, evaluate, save, stop, resume."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from training.config.strategies import OptimizerConfig
from training.data.batch import PackedBatch, StepBatch
from training.errors import ConfigError, NanLoss, Stopped
from training.loop.checkpoint import Checkpoints, find_resume, read_state
from training.loop.prefetch import prefetched
from training.loop.run import Run
from training.loop.schedule import learning_rate_schedule, total_steps
from training.report.phases import phase

Forward = Callable[[nn.Module, PackedBatch, PackedBatch], Mapping[str, Tensor] | Tensor]
"""(wrapped module, batch on the device, the same on the host) → the loss sum, or named sums with `loss` among them."""
LAG = 2
"""On a GPU a step's figures are read this many steps later, when they are long there: nothing ever waits for them."""


class Trainer:
    """Trains one module over a loader's steps.

    per: what the loss is divided by, `targets` or `pairs`, counted over all micro-batches and ranks. check: compares
    the module with transformers on the first micro-batch, before anything is learned from it (models/agreement.py).
    """

    def __init__(
        self,
        run: Run,
        module: nn.Module,
        loader: Any,
        *,
        forward: Forward = lambda module, batch, _: module(batch),
        per: str = "targets",
        around: Callable[[PackedBatch], AbstractContextManager[None]] | None = None,
        check: Callable[[PackedBatch], float] | None = None,
        write_weights: Callable[[Path], None] | None = None,
    ) -> None:
        self.run, self.loader, self.forward, self.per = run, loader, forward, per
        self.check = check
        self.around = around or (lambda batch: nullcontext())
        self.write_weights = write_weights
        self.after_evaluation: Callable[[int, Any, Any], None] = lambda step, trained, telemetry: None
        config, strategy = run.config, run.strategy
        self.strategy = strategy
        self.total = total_steps(config.train, loader.steps_per_epoch)
        train = config.train
        optimizer = OptimizerConfig(
            lr=train.lr, betas=train.betas, eps=train.eps, weight_decay=train.weight_decay,
            max_grad_norm=train.max_grad_norm,
        )  # fmt: skip
        self.trained = strategy.prepare(module, optimizer, learning_rate_schedule(train, self.total))
        self.checkpoints = Checkpoints(run.run_dir, keep=config.checkpoint.keep, keep_best=config.checkpoint.keep_best)
        self.step = 0
        self.names: list[str] = []
        self.best = math.inf
        self.last: dict[str, float] = {}
        self.evaluated: dict[str, float] = {}
        self.step_seconds: list[float] = []
        self.step_tokens: list[int] = []
        self._rates: dict[int, float] = {}
        self._read_at = 0.0
        self._lag = LAG if run.on_gpu else 0
        self._waiting: deque[tuple[int, StepBatch, Tensor, Any, float]] = deque()
        torch.manual_seed(train.seed + 1 + strategy.rank)
        self._resume()
        self.telemetry = run.telemetry(self.total, self.step)

    # the loop

    def fit(self) -> dict[str, float]:
        """Train to the last step; returns the last figures. Raises Stopped, NanLoss, WriteFailed, …"""
        config = self.run.config
        if config.eval.at_start and self.step == 0:
            self._evaluate(0)
        self.telemetry.start_clock()
        source = self.loader.steps(self.total - self.step)
        saying = phase(f"step {self.step + 1} of {self.total}", self.run.note)  # which may compile
        checked = False
        for batch, cursor in prefetched(source, self.loader.state_dict, pin=self.run.on_gpu):
            if not checked:
                self._check(batch)
                checked = True
            with saying:
                self._train(batch)
            saying = nullcontext()
            self.step += 1
            saved = False
            if config.eval.every and self.step % config.eval.every == 0 and self.step < self.total:
                self._drain()
                saved = self._evaluate(self.step, cursor)
            if config.checkpoint.every and self.step % config.checkpoint.every == 0 and not saved:
                self._drain()
                self.save(cursor)
            if self._stop_agreed:
                self._drain()
                path = self.save(cursor, weights=False)
                raise Stopped(f"Stopped at step {self.step} of {self.total}; resume from {path} with --resume auto.")
        self._drain()
        return self.last

    def finish(self) -> dict[str, float]:
        """After the last step, and after its weights are written: the last checkpoint and held-out figures."""
        if self.run.config.checkpoint.at_end:
            self.save(self.loader.state_dict())
        self._evaluate(self.step, None)
        return self.figures

    @property
    def figures(self) -> dict[str, float]:
        """The last figures of training and evaluation, by the names of the metrics."""
        return {**self.last, **{f"eval/{name}": value for name, value in self.evaluated.items()}}

    def _check(self, step: StepBatch) -> None:
        """Compare the model with transformers, where the strategy can show whole layers. Every rank must call it."""
        if self.check is None:
            return
        if not self.strategy.shows_whole(self.trained):
            if self.strategy.capabilities.rollouts:
                self.run.note("not compared with transformers: its whole weights don't fit beside what the GPU holds")
            return
        with self.strategy.generation(self.trained):
            error = self.check(step.micro_batches[0].to(self.strategy.device))
        self.run.note(f"the model computes what it does in transformers (difference {error:.1e})")
        self.telemetry.start_clock()

    def _train(self, step: StepBatch) -> None:
        """One optimizer step over this rank's micro-batches; leaves its figures to be read later."""
        strategy, trained = self.strategy, self.trained
        started = time.perf_counter()
        trained.module.train()
        count = step.num_pairs if self.per == "pairs" else step.num_targets
        factor = strategy.dp_size / max(count, 1)
        sums: Tensor | None = None
        rate = trained.learning_rate
        for number, host_batch in enumerate(step.micro_batches):
            batch = host_batch.to(strategy.device, non_blocking=True)
            with strategy.accumulate(trained, last=number == len(step.micro_batches) - 1), self.around(batch):
                values = self._values(self.forward(trained.module, batch, host_batch))
                strategy.backward(trained, values["loss"] * factor)
            stacked = torch.stack([value.detach().float() for value in values.values()])
            sums = stacked if sums is None else sums + stacked
        norm = strategy.step(trained).detach().float().reshape(1)
        assert sums is not None
        asked = torch.full((1,), float(self.run.stop.is_set()), device=sums.device)
        figures = strategy.all_reduce_sum(torch.cat([sums, asked]))
        figures = torch.cat([figures, norm.to(figures.device)])
        host, event = figures, None
        if figures.is_cuda:
            host = torch.empty(figures.shape, dtype=figures.dtype, pin_memory=True)
            host.copy_(figures, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._rates[self.step + 1] = rate
        self._waiting.append((self.step + 1, step, host, event, started))
        while len(self._waiting) > self._lag:
            self._read()

    def _values(self, result: Mapping[str, Tensor] | Tensor) -> Mapping[str, Tensor]:
        values = result if isinstance(result, Mapping) else {"loss": result}
        self.names = list(values)
        return values

    # reading figures, some steps later

    _stop_agreed = False

    def _read(self) -> None:
        """Take the oldest step's figures from the host copy and tell them; all ranks see the same numbers."""
        number, step, host, event, started = self._waiting.popleft()
        if event is not None:
            event.synchronize()
        *sums, asked, norm = host.tolist()
        count = max(step.num_pairs if self.per == "pairs" else step.num_targets, 1)
        values = {name: total / count for name, total in zip(self.names, sums, strict=True)}
        infinite = not math.isfinite(values["loss"]) or (
            self.run.config.train.precision != "fp16" and not math.isfinite(norm)
        )
        if infinite:
            self._nan(number, step, values["loss"], norm)
        self._stop_agreed = self._stop_agreed or asked > 0
        now = time.perf_counter()
        self.step_seconds.append(now - max(started, self._read_at))
        self.step_tokens.append(step.num_tokens)
        self._read_at = now
        values.update(lr=self._rates.pop(number), grad_norm=norm, epoch=step.epoch)
        if self.run.on_gpu:
            values["memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        self.last = {**self.last, **(self.telemetry.step(number, values, tokens=step.num_tokens) or {})}

    def _drain(self) -> None:
        while self._waiting:
            self._read()

    def _nan(self, number: int, step: StepBatch, loss: float, norm: float) -> None:
        rows: list[Any] = [None] * self.strategy.world_size
        if self.strategy.world_size > 1:
            dist.all_gather_object(rows, step.rows)
        else:
            rows = [step.rows]
        named = list(dict.fromkeys(row for part in rows for row in part))
        good = self.checkpoints.latest()
        shown = ", ".join(named[:40]) + (f" and {len(named) - 40} more" if len(named) > 40 else "")
        raise NanLoss(
            f"The loss is {loss:g} and the gradient norm {norm:g} at step {number}. Rows of that step: {shown}. "
            f"Last good checkpoint: {good or 'none was saved'}. The bad step was not applied; look at the rows, or "
            "lower train.lr."
        )

    # evaluation

    def _evaluate(self, step: int, cursor: Any = None) -> bool:
        """Tell held-out figures; saves a checkpoint when they are the best so far (and there is a cursor to save)."""
        with phase("evaluating on held-out data", self.run.note):
            figures = self.evaluate()
        if not figures:
            return False
        self.evaluated = figures
        self.telemetry.evaluation(step, figures)
        if 0 < step < self.total:
            self.after_evaluation(step, self.trained, self.telemetry)
        self.telemetry.start_clock()
        better = figures["loss"] < self.best
        self.best = min(self.best, figures["loss"])
        if better and cursor is not None and self.run.config.checkpoint.keep_best and self.run.config.eval.every:
            self.save(cursor)
            if self.run.is_main:
                self.checkpoints.mark_best(step, figures["loss"])
            return True
        return False

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Held-out means over all ranks: loss and, for language models, perplexity; {} without held-out data."""
        module = self.trained.module
        module.eval()
        sums: Tensor | None = None
        count = 0
        for number, host_batch in enumerate(self.loader.evaluation()):
            if self.run.config.eval.max_batches is not None and number >= self.run.config.eval.max_batches:
                break
            batch = host_batch.to(self.strategy.device)
            values = self._values(self.forward(module, batch, host_batch))
            stacked = torch.stack([value.detach().float() for value in values.values()])
            sums = stacked if sums is None else sums + stacked
            count += host_batch.num_pairs if self.per == "pairs" else host_batch.num_targets
        module.train()
        if sums is None:
            return {}
        counted = torch.tensor([float(count)], dtype=torch.float64, device=sums.device)
        totals = self.strategy.all_reduce_sum(torch.cat([sums.double(), counted])).tolist()
        figures = {name: total / max(totals[-1], 1) for name, total in zip(self.names, totals[:-1], strict=True)}
        if self.per == "targets":
            figures["perplexity"] = math.exp(min(figures["loss"], 50))
        return figures

    # saving and resuming

    def save(self, cursor: Any, *, weights: bool = True) -> Path:
        """A checkpoint of everything that a resume needs, the same on all ranks."""
        strategy = self.strategy

        def write(folder: Path) -> None:
            strategy.save([self.trained], folder / "trainer")
            if weights and self.write_weights is not None:
                self.write_weights(folder)

        def agree(fine: bool) -> bool:
            return float(strategy.all_reduce_sum(torch.tensor([0.0 if fine else 1.0]))) == 0

        state = {"stage": self.run.stage, "loader": cursor, "best": self.best if math.isfinite(self.best) else None,
                 "world_size": strategy.world_size, "total_steps": self.total}  # fmt: skip
        with phase("saving a checkpoint", self.run.note):
            path = self.checkpoints.save(
                self.step, write, state, is_main=strategy.is_main, barrier=strategy.barrier, agree=agree
            )
        self.telemetry.artifact(path, "checkpoint", self.last)
        self.telemetry.start_clock()
        return path

    def _resume(self) -> None:
        found = find_resume(self.run.config.resume, self.run.run_dir)
        if found is None:
            return
        state = read_state(found)
        if state["stage"] != self.run.stage:
            raise ConfigError(f"{found} is a checkpoint of {state['stage']}, not of {self.run.stage}.")
        self.loader.load_state_dict(state["loader"])
        self.strategy.load([self.trained], found / "trainer")
        self.step = int(state["step"])
        self.best = state["best"] if state["best"] is not None else math.inf
        self.run.note(f"resumed from {found} at step {self.step} of {self.total}")
        if state["world_size"] != self.strategy.world_size:
            self.run.note(
                f"saved by {state['world_size']} ranks, now {self.strategy.world_size}: batches differ from here"
            )
