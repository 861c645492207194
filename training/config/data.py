"""Says where a stage's documents come from and how they are read: the `data` section of every run file (no torch)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any, Literal

Format = Literal[
    "auto", "alpaca", "prompt-completion", "sharegpt", "messages", "rm-static", "hh-rlhf", "dpo", "prompt", "text"
]
OverLong = Literal["auto", "truncate", "split", "drop"]
BadRows = Literal["stop", "skip"]
TrainOn = Literal["assistant", "last"]

HUB_PREFIX = "hf:"


@dataclass(frozen=True)
class DataSource:
    """One file, folder or Hugging Face data set (`hf:org/name`), and how much of it is used."""

    path: str
    """File (.json .jsonl .txt .parquet, each also .gz), folder, or hf:org/name."""
    format: Format = "auto"
    """Row format; auto looks at the first rows."""
    weight: float = 1.0
    """Passes over this source per epoch: 2 = twice, 0.5 = half."""
    max_samples: int | None = None
    """Use the first N rows only."""
    split: str = "train"
    """Which files of a folder or hub data set: train, test …"""
    columns: dict[str, str] = field(default_factory=dict)
    """Field names that differ: {prompt: my_question, chosen: better}."""
    ignore: tuple[str, ...] = ()
    """Fields that are left out on purpose."""

    def __post_init__(self) -> None:
        if not self.path.strip():
            raise ValueError("path is empty; name a file, a folder or hf:org/name")
        if self.path.startswith(HUB_PREFIX) and self.path[len(HUB_PREFIX) :].count("/") < 1:
            raise ValueError(f"path {self.path!r} is not a hub data set; write hf:org/name")
        if not 0 < self.weight <= 1000:
            raise ValueError(f"weight must be between 0 and 1000, not {self.weight:g}")
        if self.max_samples is not None and self.max_samples < 1:
            raise ValueError(f"max_samples must be at least 1, not {self.max_samples}")
        if len(set(self.columns.values())) < len(self.columns):
            raise ValueError("columns names one field of the rows twice")

    @classmethod
    def shorthand(cls, value: object) -> Mapping[str, Any]:
        """A bare string is a path."""
        if isinstance(value, str):
            return {"path": value}
        raise ValueError(f"a data source is a path or a mapping with `path`, not {type(value).__name__}")

    @property
    def is_hub(self) -> bool:
        return self.path.startswith(HUB_PREFIX)

    @property
    def name(self) -> str:
        """Short name for row ids and messages: the file's name, or the hub id."""
        return self.path[len(HUB_PREFIX) :] if self.is_hub else PurePosixPath(self.path).name


@dataclass(frozen=True)
class DataConfig:
    """All sources of a stage, the held-out part, and how rows become tokens.

    In YAML a list of sources (`data: [a.jsonl, {path: b.json, weight: 2}]`), one path, or a mapping with `sources`.
    """

    sources: tuple[DataSource, ...] = ()
    """What is trained on; `data: FILE` and `data: [FILE, …]` are short for it."""
    eval: tuple[DataSource, ...] = ()
    """Held-out sources; none = take eval_fraction."""
    eval_fraction: float = 0.0
    """Part of the sources held out, chosen by each row's content: stable over runs."""
    eval_max_samples: int | None = None
    """Evaluate on at most N documents."""
    template: str = "auto"
    """Chat template: auto (the tokenizer's own), a named one, or a path to a .jinja file."""
    add_special_tokens: bool = False
    """Give the tokenizer the tokens that a named template (chatml, llama3) needs."""
    date: str = ""
    """The day that templates write as today, like 2024-07-26; default: the run's first."""
    system: str = ""
    """System message for conversations that have none."""
    train_on: TrainOn = "assistant"
    """assistant: all its turns; last: the last one only."""
    over_long: OverLong = "auto"
    """Documents over max_length: truncate, drop, or split (text only); auto: pt splits, others cut."""
    bad_rows: BadRows = "stop"
    """Stop at the first bad row, or skip and count them."""
    max_left_out: float = 0.1
    """Share of the rows, and of the assistant's turns, that may go unlearned before a run is refused."""
    window: int = 16384
    """Documents that are shuffled and packed together."""
    shuffle: bool = True
    """Another order in each epoch, the same for the same train.seed; false: as the files have it."""
    cache_dir: str = ""
    """Where tokens are kept; default $NAVARCH_CACHE_DIR, ~/.cache."""
    workers: int = 0
    """Processes that tokenise; 0 = as many as pay."""

    def __post_init__(self) -> None:
        if not 0 <= self.eval_fraction < 1:
            raise ValueError(f"eval_fraction must be in [0, 1), not {self.eval_fraction:g}")
        if self.eval and self.eval_fraction:
            raise ValueError("give either eval sources or eval_fraction, not both")
        if self.date and self.day is None:
            raise ValueError(f"date is {self.date!r}: write it as 2024-07-26")
        if not 0 <= self.max_left_out <= 1:
            raise ValueError(f"max_left_out is a share, from 0 to 1, not {self.max_left_out:g}")
        if self.window < 1:
            raise ValueError(f"window must be at least 1, not {self.window}")
        if self.workers < 0:
            raise ValueError(f"workers must be 0 or more, not {self.workers}")
        if self.eval_max_samples is not None and self.eval_max_samples < 1:
            raise ValueError(f"eval_max_samples must be at least 1, not {self.eval_max_samples}")

    @classmethod
    def shorthand(cls, value: object) -> Mapping[str, Any]:
        """A path, or a list of sources, stands for `sources`."""
        if isinstance(value, str):
            return {"sources": [value]}
        if isinstance(value, list | tuple):
            return {"sources": list(value)}
        raise ValueError(f"data is a path, a list of sources or a mapping, not {type(value).__name__}")

    @property
    def day(self) -> datetime | None:
        """`date` as a day's first moment."""
        try:
            return datetime.strptime(self.date, "%Y-%m-%d")
        except ValueError:
            return None

    @property
    def paths(self) -> tuple[str, ...]:
        """Every path that the stage reads, for checks before a job starts."""
        return tuple(source.path for source in (*self.sources, *self.eval))
