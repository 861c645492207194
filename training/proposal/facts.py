"""Measures what a configuration depends on: lengths of the data's documents, the model's size, this machine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from training.config.data import DataSource
from training.config.stages import LoraConfig
from training.data.check import token_lengths
from training.data.packing import pack
from training.data.records import Placed, Problem, open_source
from training.data.template import TextCodec
from training.errors import DataError
from training.models.families import context_of, engine_context
from training.models.footprint import activation_bytes, recomputed_bytes
from training.models.load import from_config, load_config
from training.models.lora import convert_to_lora
from training.rollout.memory import free_memory

ALL_UP_TO, THEN_EACH = 2000, 10
"""Rows that are all tokenised, and which ones of those after them."""
LORA_RANK = 16
PERCENTILES = (("half up to", 50), ("90 %", 90), ("99 %", 99), ("longest", 100))


@dataclass(frozen=True)
class DataFacts:
    """rows: all of them; bad: unusable ones of those that were looked at, `problem` the first; lengths: tokens of each
    document of the rows that were tokenised, row after row; per_row: documents of a row (two, for pairs)."""

    formats: tuple[str, ...]
    rows: int
    bad: int
    problem: str
    lengths: np.ndarray
    per_row: int
    seen: int

    @property
    def documents(self) -> int:
        return (self.rows - self.bad) * self.per_row

    @property
    def tokens(self) -> int:
        """Of all documents, by the mean of those that were tokenised."""
        return int(self.lengths.mean() * self.documents)

    def bins(self, length: int, capacity: int) -> float:
        """Micro-batches of all rows, as the loader packs them: documents are cut at `length`, pairs stay together."""
        units = np.minimum(self.lengths, length).reshape(-1, self.per_row).sum(1)
        return len(pack(units, capacity, len(units))) * (self.rows - self.bad) / len(units)

    def percentile(self, share: float) -> int:
        return int(np.percentile(self.lengths, share))

    def over(self, length: int) -> float:
        """Share of the documents that are longer."""
        return float((self.lengths > length).mean())

    @property
    def sentence(self) -> str:
        shown = ", ".join(f"{name} {self.percentile(share):,}" for name, share in PERCENTILES)
        looked = "" if self.seen + self.bad == self.rows else f" ({self.seen:,} rows were tokenised)"
        pairs = " of a pair" if self.per_row == 2 else ""
        return (
            f"{self.rows:,} rows ({', '.join(dict.fromkeys(self.formats))}), about {self.tokens:,} tokens{looked}; "
            f"tokens of a document{pairs}: {shown}"
        )


@dataclass(frozen=True)
class ModelFacts:
    """adapters: weights of LoRA at LORA_RANK. token_bytes, recomputed_bytes: of one token's activations."""

    name: str
    weights: int
    adapters: int
    vocabulary: int
    width: int
    context: int | None
    engine_context: int | None
    token_bytes: int
    recomputed_bytes: int

    @property
    def sentence(self) -> str:
        context = f"{self.context:,} tokens" if self.context else "any length"
        return f"{self.name}, {self.size}, made for texts of {context}"

    @property
    def size(self) -> str:
        """How many weights it has, for people."""
        return f"{self.weights / 1e6:,.0f} million weights" if self.weights >= 10**7 else f"{self.weights:,} weights"


@dataclass(frozen=True)
class Machine:
    """memory: bytes that are free on one device, or that the user named. speed: FLOP/s of matrix products there, or
    None where it is another machine's memory that was named."""

    name: str
    gpus: int
    memory: int
    size: int
    """Bytes of a weight: 2 on a GPU (bf16), 4 on a CPU (fp32)."""
    speed: float | None

    @property
    def on_gpu(self) -> bool:
        return self.gpus > 0

    @property
    def sentence(self) -> str:
        count = f"{self.gpus} × " if self.gpus > 1 else ""
        return f"{count}{self.name}, {self.memory / 2**30:.1f} GiB free"


def look_at_data(paths: Sequence[str], stage: str, codec: TextCodec) -> DataFacts:
    """Reads all rows. Raises DataError when none can be used, with the file and line of the first."""
    lengths: list[int] = []
    formats, rows, bad, seen, per_row, problem = [], 0, 0, 0, 1, ""
    for path in paths:
        source = open_source(DataSource(path), stage)
        formats.append(source.format)
        for number, item in enumerate(source):
            rows += 1
            if number >= ALL_UP_TO and number % THEN_EACH and isinstance(item, Placed):
                continue
            try:
                if isinstance(item, Placed):
                    found = token_lengths(item.record, codec)
                    lengths, seen, per_row = lengths + found, seen + 1, len(found)
                    continue
            except DataError as error:
                item = Problem(item.raw.place, str(error))
            bad, problem = bad + 1, problem or str(item)
    if not lengths:
        raise DataError(f"No row of {', '.join(paths)} can be used for {stage}. First: {problem or 'there are none'}.")
    return DataFacts(tuple(formats), rows, bad, problem, np.array(lengths), per_row, seen)


def look_at_model(path: str, machine: Machine) -> ModelFacts:
    """Reads the config only: the model is built without memory."""
    config = load_config(path)
    with torch.device("meta"):
        model = from_config(config, dtype=torch.bfloat16 if machine.size == 2 else torch.float32)
    weights = sum(parameter.numel() for parameter in model.parameters())
    sizes = (activation_bytes(model, compiled=machine.on_gpu), recomputed_bytes(model, compiled=machine.on_gpu))
    facts = type(model).__name__, config.vocab_size, config.hidden_size
    convert_to_lora(model, LoraConfig(rank=LORA_RANK))
    adapters = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return ModelFacts(facts[0], weights, adapters, *facts[1:], context_of(config), engine_context(config), *sizes)


def look_at_machine(gpus: int | None = None, memory: int | None = None) -> Machine:
    """This machine's device; `memory` bytes a GPU and `gpus` of them (one, if not said) where another is meant."""
    if memory is not None:
        return Machine(f"a GPU with {memory / 2**30:.0f} GiB", gpus or 1, memory, 2, None)
    if torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())
        count = gpus or torch.cuda.device_count()
        return Machine(torch.cuda.get_device_name(), count, free_memory(device), 2, speed_of(device))
    device = torch.device("cpu")
    return Machine("this machine's CPU", 0, free_memory(device), 4, speed_of(device))


def speed_of(device: torch.device, seconds: float = 0.5) -> float:
    """FLOP/s of matrix products in the precision that training has there."""
    size = 4096 if device.type == "cuda" else 512
    one = torch.randn(size, size, device=device, dtype=torch.bfloat16 if device.type == "cuda" else torch.float32)
    one @ one
    count, started = 0, time.monotonic()
    while time.monotonic() - started < seconds:
        for _ in range(8):
            one @ one
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        count += 8
    return count * 2.0 * size**3 / (time.monotonic() - started)
