"""Keeps tokenised documents on disk as memory-mapped shards: written once, under a lock, and shared by all ranks.

A store is a folder: `tokens-00000.bin` (uint16 or int32), `targets-00000.bin` (a byte per token), `documents.npy` (one
record per document, see DOCUMENT) and `meta.json`. It is written beside its final name and renamed, so it is whole or
absent. Both documents of a pair stand next to each other, chosen first.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

SHARD_TOKENS = 1 << 28
META = "meta.json"
DOCUMENT = np.dtype(
    [
        ("start", np.int64),  # first token within its shard
        ("row", np.int64),  # index of the row in its file
        ("line", np.int64),  # line of the row in its file, 0 = none
        ("key", np.uint64),  # hash of what was asked: decides the held-out part
        ("shard", np.int32),
        ("length", np.int32),
        ("prompt", np.int32),  # leading tokens that are prompt
        ("targets", np.int32),  # labels that count: targets without the document's first token
        ("file", np.int32),
        ("margin", np.float32),
    ]
)


@dataclass(frozen=True)
class TokenStore:
    """A store opened for reading; nothing is loaded before it is asked for."""

    folder: Path

    @cached_property
    def meta(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / META).read_text(encoding="utf-8")))

    @cached_property
    def documents(self) -> np.ndarray:
        """[documents] of DOCUMENT."""
        documents: np.ndarray = np.load(self.folder / "documents.npy", mmap_mode="r")
        return documents

    @cached_property
    def tokens(self) -> list[np.ndarray]:
        return self._map("tokens", np.dtype(self.meta["dtype"]))

    @cached_property
    def targets(self) -> list[np.ndarray]:
        return self._map("targets", np.dtype(np.bool_))

    def _map(self, name: str, dtype: np.dtype[Any]) -> list[np.ndarray]:
        paths = [self.folder / f"{name}-{number:05d}.bin" for number in range(self.meta["shards"])]
        return [np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.empty(0, dtype) for path in paths]

    def row_id(self, document: np.void) -> str:
        """ "file.json:12", or "file.parquet row 12" where rows have no line."""
        name = self.meta["files"][document["file"]]
        line = int(document["line"])
        return f"{name}:{line}" if line else f"{name} row {int(document['row']) + 1}"


class StoreWriter:
    """Appends documents to a store that is being made."""

    def __init__(self, folder: Path, vocabulary: int, shard_tokens: int = SHARD_TOKENS) -> None:
        self.folder = folder
        self.dtype = np.dtype(np.uint16 if vocabulary <= 1 << 16 else np.int32)
        self._shard_tokens = shard_tokens
        self._records: list[np.ndarray] = []
        self._shard = -1
        self._filled = 0
        self._files: list[Any] = []
        self._next_shard()

    def append(self, documents: np.ndarray, tokens: np.ndarray, targets: np.ndarray) -> None:
        """documents: [n] of DOCUMENT with `length` set, in the order of tokens and targets [sum of lengths]."""
        if not len(documents):
            return
        if self._filled and self._filled + len(tokens) > self._shard_tokens:
            self._next_shard()
        ends = np.cumsum(documents["length"], dtype=np.int64)
        documents["start"] = self._filled + ends - documents["length"]
        documents["shard"] = self._shard
        self._files[0].write(tokens.astype(self.dtype, copy=False).tobytes())
        self._files[1].write(targets.astype(np.bool_, copy=False).tobytes())
        self._filled += len(tokens)
        self._records.append(documents)

    def finish(self, meta: dict[str, Any]) -> None:
        self._close()
        documents = np.concatenate(self._records) if self._records else np.empty(0, DOCUMENT)
        np.save(self.folder / "documents.npy", documents)
        facts = {**meta, "dtype": self.dtype.name, "shards": self._shard + 1, "documents": len(documents)}
        (self.folder / META).write_text(json.dumps(facts, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

    def _next_shard(self) -> None:
        self._close()
        self._shard += 1
        self._filled = 0
        self._files = [(self.folder / f"{name}-{self._shard:05d}.bin").open("wb") for name in ("tokens", "targets")]

    def _close(self) -> None:
        for file in self._files:
            file.close()
        self._files = []


def open_store(cache: Path, key: str, build: Callable[[Path], None]) -> TokenStore:
    """The store `key` of a cache folder, built by whichever process comes first while the others wait."""
    final = cache / key
    if not (final / META).is_file():
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(cache / f"{key}.lock"):
            if not (final / META).is_file():
                part = cache / f".{key}.{os.getpid()}.part"
                shutil.rmtree(part, ignore_errors=True)
                shutil.rmtree(final, ignore_errors=True)
                part.mkdir()
                try:
                    build(part)
                    part.rename(final)
                finally:
                    shutil.rmtree(part, ignore_errors=True)
    return TokenStore(final)


def cache_folder(asked: str = "") -> Path:
    """Where stores are kept: as asked, else $NAVARCH_CACHE_DIR, else ~/.cache/navarch, else the temporary folder."""
    named = asked or os.environ.get("NAVARCH_CACHE_DIR", "")
    if named:
        return Path(named).expanduser() / "data"
    home = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    try:
        (home / "navarch" / "data").mkdir(parents=True, exist_ok=True)
        return home / "navarch" / "data"
    except OSError:
        return Path(tempfile.gettempdir()) / f"navarch-{os.getuid()}" / "data"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Held by one process of the machine; freed by the kernel when that process dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)


def concatenate(parts: Sequence[np.ndarray], dtype: Any) -> np.ndarray:
    return np.concatenate(parts) if parts else np.empty(0, dtype)
