"""Optimizer state on disk: flat fp32 pieces by parameter name, one file per rank, readable by any number of ranks.

A parameter's `master`, `exp_avg` and `exp_avg_sq` are flattened; each rank writes the piece that it holds, and the
pieces in rank order make the whole (padding at the end is cut). Every strategy that shards along flattened parameters
(or not at all) uses this one format, so a run may be resumed by another number of ranks, or by another strategy.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from training.errors import MissingInput

KEYS = ("master", "exp_avg", "exp_avg_sq")
FORMAT = 1


def write_pieces(
    directory: Path, pieces: Mapping[str, Mapping[str, Tensor]], *, rank: int, ranks: int, facts: Mapping[str, Any]
) -> None:
    """Writes this rank's `pieces` ({name: {key: flat tensor}}); rank 0 also writes `facts` as state.json."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{name}/{key}": tensor.detach().to(device="cpu", dtype=torch.float32).reshape(-1).contiguous()
        for name, entry in pieces.items()
        for key, tensor in entry.items()
    }
    save_file(tensors, directory / f"state-{rank:05d}-of-{ranks:05d}.safetensors")
    if rank == 0:
        facts = {"format": FORMAT, "ranks": ranks, **facts}
        (directory / "state.json").write_text(json.dumps(facts, indent=1) + "\n")


def read_facts(directory: Path) -> dict[str, Any]:
    path = directory / "state.json"
    if not path.exists():
        raise MissingInput(f"{directory} holds no optimizer state (no state.json); it can't be resumed from")
    facts: dict[str, Any] = json.loads(path.read_text())
    if facts.get("format") != FORMAT:
        raise MissingInput(f"{path} has format {facts.get('format')}; this version reads {FORMAT}")
    return facts


class PieceReader:
    """Reads any range of any parameter's state, whatever number of ranks wrote it. Use as a context manager."""

    def __init__(self, directory: Path) -> None:
        self.facts = read_facts(directory)
        ranks = self.facts["ranks"]
        self.paths = [directory / f"state-{rank:05d}-of-{ranks:05d}.safetensors" for rank in range(ranks)]
        missing = [path.name for path in self.paths if not path.exists()]
        if missing:
            raise MissingInput(f"{directory} was written by {ranks} ranks and lacks {', '.join(missing)}")

    def __enter__(self) -> PieceReader:
        self._stack = ExitStack()
        self._files = [self._stack.enter_context(safe_open(path, framework="pt")) for path in self.paths]
        self._names = [set(file.keys()) for file in self._files]
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def read(self, name: str, key: str, start: int, stop: int) -> Tensor:
        """Elements [start, stop) of the flattened state, fp32 on the host."""
        full, found, offset = f"{name}/{key}", [], 0
        for file, names in zip(self._files, self._names, strict=True):
            if full not in names:
                continue
            piece = file.get_slice(full)
            length = piece.get_shape()[0]
            low, high = max(start - offset, 0), min(stop - offset, length)
            if low < high:
                found.append(piece[low:high])
            offset += length
        read = sum(tensor.numel() for tensor in found)
        if read != stop - start:
            what = "is not in the checkpoint" if offset == 0 else f"has {offset} elements there, {stop} are needed"
            raise MissingInput(
                f"state of '{name}' {what} ({self.paths[0].parent}); resume with that run's model and LoRA settings"
            )
        return found[0] if len(found) == 1 else torch.cat(found)


def rng_state() -> dict[str, Any]:
    """Python's, numpy's, torch's and this process's GPU's generators."""
    kind, keys, position, has_gauss, cached = numpy.random.get_state()
    version, internal, gauss = random.getstate()
    tensors = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    plain = {
        "numpy": [str(kind), [int(key) for key in keys], int(position), int(has_gauss), float(cached)],
        "python": [version, list(internal), gauss],
    }
    return {"tensors": tensors, "plain": plain}


def write_rng(directory: Path, rank: int) -> None:
    state = rng_state()
    save_file(
        state["tensors"], directory / f"rng-{rank:05d}.safetensors", metadata={"plain": json.dumps(state["plain"])}
    )


def read_rng(directory: Path, rank: int) -> bool:
    """Restores this rank's generators; False when the checkpoint was written by fewer ranks (they keep their seeds)."""
    path = directory / f"rng-{rank:05d}.safetensors"
    if not path.exists():
        return False
    with safe_open(path, framework="pt") as file:
        plain = json.loads(file.metadata()["plain"])
        torch.set_rng_state(file.get_tensor("torch"))
        if "cuda" in file.keys() and torch.cuda.is_available():  # noqa: SIM118 - a safetensors file is no dict
            torch.cuda.set_rng_state(file.get_tensor("cuda"))
    kind, keys, position, has_gauss, cached = plain["numpy"]
    numpy.random.set_state((kind, numpy.array(keys, dtype=numpy.uint32), position, has_gauss, cached))
    version, internal, gauss = plain["python"]
    random.setstate((version, tuple(internal), gauss))
    return True
