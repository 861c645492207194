"""Tells a run's figures by event lines, a progress line, TensorBoard and wandb; they stay tensors until then."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.report.phases import AGAIN_S
from training.report.wandb import WandbLog, open_wandb

if TYPE_CHECKING:
    import torch

PREFIX = "@navarch "
LISTENERS = ("NAVARCH_JOB", "NAVARCH_EVENTS")
"""Set where a program reads the event lines: by the control plane in its containers, or by hand."""
MARKED = {"lr", "epoch", "total_steps", "memory_gib"}
"""Values that are shown as last seen; all others as the mean since the last line."""


def emit(event: str, *, stream: Any = None, log: Path | None = None, **fields: Any) -> dict[str, Any]:
    """Print one `@navarch {json}` line, flushed, in one write, where a program reads them; and append it to `log`."""
    record = {"event": event, "time": round(time.time(), 3), **_finite(fields)}
    line = json.dumps(record, ensure_ascii=False, separators=(",", ":"))
    if stream is not None or any(os.environ.get(name) for name in LISTENERS):
        stream = stream or sys.stdout
        stream.write(f"{PREFIX}{line}\n")
        stream.flush()
    if log is not None:
        with suppress(OSError), log.open("a", encoding="utf-8") as file:  # a full disk must not stop training
            file.write(line + "\n")
    return record


def _finite(value: Any) -> Any:
    """JSON has no NaN: those become null, which readers show as a gap."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


class Telemetry:
    """Collects a run's figures and tells them; every method is a no-op on ranks other than 0, except `error`.

    `step()` only keeps references to device tensors. Once per `every` steps they are stacked and copied to the host at
    once: the only synchronisation that telemetry causes.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        total_steps: int,
        every: int = 10,
        is_main: bool = True,
        tensorboard: bool = True,
        wandb: str | None = None,
        config: Mapping[str, Any] | None = None,
        first_step: int = 0,
    ) -> None:
        self.run_dir, self.total_steps, self.every, self.is_main = run_dir, total_steps, every, is_main
        self._pending: list[dict[str, Any]] = []
        self._tokens = 0
        self._since = self._started = self._told = time.perf_counter()
        self._first_step = first_step
        self._writer: Any = None
        self._wandb: WandbLog | None = None
        self._bar: Any = None
        self._log = run_dir / "events.jsonl" if is_main else None
        if is_main:
            run_dir.mkdir(parents=True, exist_ok=True)
            self._writer = _tensorboard(run_dir) if tensorboard else None
            self._wandb = open_wandb(wandb, run_dir, config=config or {}, first_step=first_step, say=self.note)
            if sys.stderr.isatty():
                self._bar = _progress_bar(total_steps, first_step)

    def start_clock(self) -> None:
        """Begin counting time and tokens from now (after compilation or evaluation, say)."""
        self._since, self._tokens = time.perf_counter(), 0

    def step(
        self, step: int, values: Mapping[str, torch.Tensor | float], *, tokens: int = 0
    ) -> dict[str, float] | None:
        """Note one step's values; at the end of an interval returns (and tells) the interval's figures.

        `tokens`: real tokens that all ranks processed in this step, known on the host.
        """
        self._pending.append(dict(values))
        self._tokens += tokens
        if step % self.every and step != self.total_steps:
            self._show_way(step)
            return None
        figures = _fetch(self._pending)
        self._pending.clear()
        now = time.perf_counter()
        if self._tokens:
            figures["tokens_per_second"] = self._tokens / max(now - self._since, 1e-9)
        self._since, self._tokens = now, 0
        self._tell("metrics", step, figures)
        if self.is_main:
            self._progress(step, now)
            self._show(step, figures, self._eta(step, now))
        return figures

    def _show_way(self, step: int) -> None:
        """Between two intervals, where one takes long: how far it is, without waiting for any figure."""
        now = time.perf_counter()
        if self.is_main and now - self._told > AGAIN_S:
            self._progress(step, now)
            self.note(f"step {step}/{self.total_steps}  {_clock(self._eta(step, now))} left")

    def _eta(self, step: int, now: float) -> float:
        done = max(step - self._first_step, 1)
        return (now - self._started) / done * max(self.total_steps - step, 0)

    def _progress(self, step: int, now: float) -> None:
        self._told = now
        eta = round(self._eta(step, now), 1)
        emit("progress", log=self._log, step=step, total_steps=self.total_steps, eta_s=eta)

    def evaluation(self, step: int, values: Mapping[str, float]) -> None:
        """Tell held-out figures; names get the prefix `eval/`."""
        prefixed = {
            name if name.startswith("eval/") else f"eval/{name}": float(value) for name, value in values.items()
        }
        self._tell("eval", step, prefixed)
        self.note(f"evaluation at step {step}: " + ", ".join(f"{k[5:]} {v:.4g}" for k, v in prefixed.items()))

    def artifact(self, path: Path, kind: str, metrics: Mapping[str, float] | None = None) -> None:
        """Announce a model, adapter or checkpoint, by its path relative to the run folder."""
        if self.is_main:
            shown = path.relative_to(self.run_dir) if path.is_relative_to(self.run_dir) else path
            emit("artifact", log=self._log, path=str(shown), kind=kind, metrics=dict(metrics or {}))
            self.note(f"saved {kind}: {path}")

    def sample(self, title: str, rows: Sequence[Any], columns: Sequence[str] = ()) -> None:
        """Show a table of examples."""
        if self.is_main:
            named = {"columns": list(columns)} if columns else {}
            emit("sample", log=self._log, title=title, **named, rows=list(rows))

    def note(self, text: str) -> None:
        """A plain line for a person who reads the log."""
        if self.is_main:
            (self._bar.console.print if self._bar else lambda line: print(line, flush=True))(text)

    def close(self, exit_code: int = 0) -> None:
        """Flush what writes to files, and say elsewhere how the run ended; a second call does nothing."""
        bar, writer, wandb, self._bar, self._writer, self._wandb = (
            self._bar,
            self._writer,
            self._wandb,
            None,
            None,
            None,
        )
        if bar is not None:
            bar.stop()
        if writer is not None:
            with suppress(OSError):
                writer.close()
        if wandb is not None:
            wandb.finish(exit_code)

    def _tell(self, event: str, step: int, values: Mapping[str, float]) -> None:
        if not self.is_main:
            return
        shown = {name: float(f"{value:.6g}") for name, value in values.items()}
        emit(event, log=self._log, step=step, total_steps=self.total_steps, values=shown)
        if self._writer is not None:
            for name, value in values.items():
                with suppress(OSError):
                    self._writer.add_scalar(name if "/" in name else f"train/{name}", value, step)
        if self._wandb is not None:
            self._wandb.log(step, values)

    def _show(self, step: int, figures: Mapping[str, float], eta: float) -> None:
        parts = [f"{name} {figures[name]:.4g}" for name in ("loss", "accuracy", "lr", "grad_norm") if name in figures]
        if "tokens_per_second" in figures:
            parts.append(f"{figures['tokens_per_second']:,.0f} tokens/s")
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step, description="  ".join(parts))
        else:
            print(f"step {step}/{self.total_steps}  {'  '.join(parts)}  {_clock(eta)} left", flush=True)


def _fetch(pending: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Means over the pending steps of each value (the last one for MARKED), with one copy from the device."""
    names = list(dict.fromkeys(name for values in pending for name in values))
    flat = [(name, values[name]) for name in names for values in pending if name in values]
    tensors = [(i, value) for i, (_, value) in enumerate(flat) if not isinstance(value, int | float)]
    numbers: list[float] = [0.0 if not isinstance(value, int | float) else float(value) for _, value in flat]
    if tensors:
        import torch

        stacked = torch.stack([value.detach().float().reshape(()) for _, value in tensors]).tolist()
        for (i, _), number in zip(tensors, stacked, strict=True):
            numbers[i] = number
    series: dict[str, list[float]] = {}
    for (name, _), number in zip(flat, numbers, strict=True):
        series.setdefault(name, []).append(number)
    return {name: items[-1] if name in MARKED else sum(items) / len(items) for name, items in series.items()}


def _clock(seconds: float) -> str:
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}h{minute:02d}m" if hours else f"{minute}m{second:02d}s" if minute else f"{second}s"


def _progress_bar(total: int, done: int) -> Any:
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        return None
    bar = Progress(
        MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn(),
        console=Console(stderr=True),
    )  # fmt: skip
    bar.start()
    bar.add_task("", total=total, completed=done)
    return bar


def _tensorboard(run_dir: Path) -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        print("TensorBoard is not installed: no TensorBoard files are written.", file=sys.stderr)
        return None
    return SummaryWriter(str(run_dir / "tensorboard"))
