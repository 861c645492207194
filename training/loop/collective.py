"""Tries an all-reduce when it is told to, before a gang starts: one line of JSON in, one out (images/gang/check.py)."""

from __future__ import annotations

import json
import sys
import time
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

TIMEOUT_S = 15.0
ELEMENTS = 4 << 20
"""Of float32: 16 MiB."""
ROUNDS = 3


def main() -> None:
    said = {"torch": str(torch.__version__)}
    if torch.cuda.is_available():
        said["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
    _say(said)
    for line in sys.stdin:
        _say(tried(json.loads(line)))


def tried(task: dict[str, Any]) -> dict[str, Any]:
    """{"gb_s": bus bandwidth} or {"error": …} of one all-reduce among `size` members that meet at an address."""
    try:
        dist.init_process_group(
            task["backend"],
            init_method=f"tcp://{task['address']}:{task['port']}",
            rank=task["rank"],
            world_size=task["size"],
            timeout=timedelta(seconds=TIMEOUT_S),
        )
        return {"gb_s": all_reduce(task["rank"], task["size"], "cuda" if task["backend"] == "nccl" else "cpu")}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:300] if str(error) else ''}"}
    finally:
        with suppress(Exception):
            dist.destroy_process_group()


def all_reduce(rank: int, size: int, device: str) -> float:
    """GB/s over the wire. Raises ValueError when a sum is wrong."""
    best = 0.0
    for _ in range(ROUNDS):
        values = torch.full((ELEMENTS,), float(rank + 1), device=device)
        if device == "cuda":
            torch.cuda.synchronize()
        begun = time.perf_counter()
        dist.all_reduce(values)
        if device == "cuda":
            torch.cuda.synchronize()
        took = time.perf_counter() - begun
        if not bool((values == size * (size + 1) / 2).all()):
            raise ValueError(f"the sum is wrong: {values.min().item()} to {values.max().item()}")
        best = max(best, 2 * (size - 1) / size * values.numel() * values.element_size() / took / 1e9)
    return best


def _say(content: dict[str, Any]) -> None:
    print(json.dumps(content), flush=True)


if __name__ == "__main__":
    main()
