"""What a run of PPO or GRPO tells of each step: its figures, how time was spent, and a table of completions to read."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from training.data.batch import PromptRow
from training.data.template import TextCodec
from training.errors import NanLoss
from training.loop.checkpoint import Checkpoints
from training.ppo.experience import Experience
from training.report.phases import AGAIN_S, Phase, say

if TYPE_CHECKING:
    from training.ppo.learner import Learner

SHOWN_CHARACTERS = 300
COLUMNS = ["prompt", "completion", "score", "kl", "tokens", "finished"]


class Phases:
    """Seconds of each named phase of a step; the device has finished when a phase ends."""

    def __init__(self, device: torch.device, note: Callable[[str], None] = say) -> None:
        self.device, self.note = device, note
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        saying = Phase(f"this step: {name}", self.note, first_s=AGAIN_S)
        try:
            yield
        finally:
            saying.end()
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def take(self) -> dict[str, float]:
        """`{phase}_seconds` since the last take, and their sum."""
        figures = {f"{name}_seconds": seconds for name, seconds in self.seconds.items()}
        self.seconds = {}
        return {**figures, "step_seconds": sum(figures.values())}


def tell(
    learner: Learner, experience: Experience, rows: Sequence[PromptRow], seen: Mapping[str, float],
    learned: Mapping[str, float],
) -> None:  # fmt: skip
    """The figures of the step that was just done, and now and then completions to read."""
    completions, tokens = int(seen["completions"]), int(seen["tokens"])
    times = learner.phases.take()
    figures = {**seen, **learned, **times, "samples_per_second": completions / times["step_seconds"]}
    del figures["completions"], figures["tokens"]
    if learner.run.on_gpu:
        figures["memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
    learner.figures = figures
    learner.telemetry.step(learner.step, figures, tokens=tokens)
    step, every = learner.step, learner.train.sample_every
    if learner.run.is_main and every and (step % every == 0 or step in (1, learner.total)):
        table = sample_table(experience, rows, learner.codec, learner.train.sample_rows, step)
        keep_samples(learner.run.run_dir / "samples.jsonl", table)
        learner.telemetry.sample(f"step {step}", shown(table), columns=COLUMNS)
        learner.telemetry.note(as_text(f"step {step}", table))


def finite(learned: Mapping[str, float], learner: Learner, advice: str) -> None:
    """Raise NanLoss, naming what stopped being a number and the checkpoint from before."""
    broken = [name for name, value in learned.items() if not math.isfinite(value)]
    if broken:
        latest = Checkpoints(learner.run.run_dir).latest()
        raise NanLoss(
            f"{', '.join(broken)} stopped being a number at step {learner.step + 1}. Last good checkpoint: "
            f"{latest or 'none was saved'}. {advice}"
        )


def sample_table(
    experience: Experience, prompts: Sequence[PromptRow], codec: TextCodec, count: int, step: int
) -> list[dict[str, object]]:
    """`count` rows spread evenly over the rollout: prompt's last turn, completion, score, KL and length."""
    data = experience.completions
    chosen = [i * len(data) // min(count, len(data)) for i in range(min(count, len(data)))]
    ids = data.response_ids()
    kl = experience.kl.sum(1).tolist() if experience.kl is not None else None
    scores = experience.scores.tolist()
    finished = data.finished.tolist()
    return [
        {
            "step": step,
            "row": prompts[i].row,
            "prompt": prompts[i].messages[-1]["content"] if prompts[i].messages else prompts[i].text,
            "completion": codec.decode(ids[i]),
            "score": round(scores[i], 4),
            "kl": round(kl[i], 4) if kl is not None else None,
            "tokens": len(ids[i]),
            "finished": bool(finished[i]),
        }
        for i in chosen
    ]


def keep_samples(path: Path, rows: Sequence[dict[str, object]]) -> None:
    """Append whole rows as JSON lines; a full disk must not stop training."""
    with suppress(OSError), path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def shown(rows: Sequence[dict[str, object]]) -> list[list[object]]:
    """The rows by COLUMNS with long texts cut, for the event."""
    return [[_cut(row[name]) for name in COLUMNS] for row in rows]


def as_text(title: str, rows: Sequence[dict[str, object]]) -> str:
    """The same for a person who reads the log."""
    lines = [f"{title}:"]
    for row in rows:
        lines.append(f"  {_cut(row['prompt'])}")
        kl = f"KL {row['kl']}, " if row["kl"] is not None else ""
        lines.append(f"    → {_cut(row['completion'])}   (score {row['score']}, {kl}{row['tokens']} tokens)")
    return "\n".join(lines)


def _cut(value: object) -> object:
    return f"{value[:SHOWN_CHARACTERS]}…" if isinstance(value, str) and len(value) > SHOWN_CHARACTERS else value
