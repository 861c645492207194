"""Options of `navarch-train serve` (imports no torch)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ServeConfig:
    """One model behind an OpenAI-compatible API. A reward model is found by its manifest and serves /score instead."""

    model: str = ""
    """Model folder, artifact:NAME or hf:org/name."""
    adapter: str | None = None
    """LoRA adapter folder, merged into the model at load."""
    name: str | None = None
    """Model id shown by /v1/models (default: the folder's name)."""
    host: str = "0.0.0.0"
    """Address to listen on."""
    port: int = 8000
    """Port to listen on."""
    dtype: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """auto: bf16 on a GPU, fp32 elsewhere."""
    quantize: Literal["none", "int8", "int4"] = "none"
    """Weight-only quantization at load; a model quantized ahead needs none."""
    group: int = 128
    """Weights that share a scale in int4 (32, 64 or 128)."""
    max_batch: int = 64
    """Requests decoded together at most, fewer where memory is short; more wait in the queue."""
    max_length: int | None = None
    """Tokens of prompt + completion; null: the model's context, at most 4096, less where memory is short."""
    max_queue: int = 256
    """Requests that may wait; beyond it, 429 with Retry-After."""
    max_new_tokens: int = 1024
    """Completion length when a request gives none."""
    http_processes: int = 0
    """Processes that speak HTTP, beside the one that decodes (0: by the cores, 1 to 4)."""
    drain_s: float = 30.0
    """Seconds that running requests get after SIGTERM."""
    seed: int = 0
    """Seed of requests that give none."""
    api_key_env: str | None = None
    """Environment variable that holds the key clients must send as bearer token."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port is {self.port}: give 1 to 65535, or 0 for any free one")
        if self.group not in (32, 64, 128):
            raise ValueError(f"group is {self.group}: give 32, 64 or 128")
        for name in ("max_batch", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: give at least 1")
        if self.max_length is not None and self.max_length < 2:
            raise ValueError(
                f"max_length is {self.max_length}: give at least 2 tokens, or null for the model's context"
            )
        if not 0 <= self.http_processes <= 64:
            raise ValueError(f"http_processes is {self.http_processes}: give 1 to 64, or 0 to choose by the cores")
        if self.max_queue < 0:
            raise ValueError(f"max_queue is {self.max_queue}: give 0 (refuse when all slots are taken) or more")
