"""What the HTTP processes and the decoder process say to each other over their pipes (imports no torch)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from training.config.generation import GenerationConfig

TOP_LOGPROBS = 20
"""Most likely tokens that a request may ask for at each place."""
FinishReason = Literal["stop", "length", "abort", "error"]


class QueueFull(Exception):
    """More requests wait than the server was told to keep."""


@dataclass(frozen=True)
class Facts:
    """What the HTTP side must know of the model that the decoder process has loaded (a reward model: no vocabulary)."""

    name: str
    max_length: int
    vocabulary: int
    reward: bool


# --- from an HTTP process to the decoder process


@dataclass(frozen=True)
class Ask:
    """One completion to make. `number` is the HTTP process's own name for it; `created` is its `time.monotonic()`.

    `seed` None: the server draws one; else completion `choice` of the request gets its own stream of that seed.
    `live`: wants tokens as they come (it streams, or looks for stop strings); else only the end is told.
    `top` > 0 asks for the most likely tokens too.
    """

    number: int
    prompt: list[int]
    config: GenerationConfig
    stop_ids: tuple[int, ...]
    seed: int | None
    choice: int
    live: bool
    logprobs: bool
    top: int
    created: float


class Submit(NamedTuple):
    """Completions of one request: all are taken, or none."""

    asks: tuple[Ask, ...]


class Cancel(NamedTuple):
    """Nobody waits for these completions any more."""

    numbers: tuple[int, ...]


class Score(NamedTuple):
    """Documents for a reward model; answered by `Answer` with one float each, or with `Refused`."""

    number: int
    documents: list[list[int]]


class Query(NamedTuple):
    """Answered by `Answer`: the text of /metrics (bytes), or the `Status`."""

    number: int
    what: Literal["metrics", "status"]


class Hello(NamedTuple):
    """First message of an HTTP process: who to count the CPU seconds of."""

    pid: int


# --- from the decoder process to an HTTP process


class Update(NamedTuple):
    """New tokens of a completion; the last one has a finish reason.

    With finish "stop" the last token is the stop token, which is counted but not shown. logprobs and top are given
    only when asked for, one entry a token.
    """

    number: int
    tokens: list[int]
    logprobs: list[float] | None = None
    top: list[list[tuple[int, float]]] | None = None
    finish: FinishReason | None = None
    error: str | None = None


class Accepted(NamedTuple):
    """A submitted request has its place."""

    number: int


class Refused(NamedTuple):
    """A submitted request (named by its first completion) was not taken."""

    number: int
    reason: Literal["full", "draining"]
    retry_after: int


class Answer(NamedTuple):
    """The answer to a Query or a Score."""

    number: int
    value: Any


class Status(NamedTuple):
    ready: bool
    running: int
    waiting: int


# --- from the supervisor, and to it


class Command(NamedTuple):
    """`ready`: the first completion was seen; `drain`: take nothing new; `stop`: end now."""

    what: Literal["ready", "drain", "stop"]


class Failed(NamedTuple):
    """A part of the server could not start or go on; `kind` and `exit_code` are those of its TrainingError."""

    kind: str
    exit_code: int
    message: str
