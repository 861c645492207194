"""Measures the data path on one core: tokens a second that are packed and laid into batches, and how full the rows are.

    python -m tests.bench.data_pipeline [--documents 50000] [--seconds 5]

Documents have log-normal lengths of 32–2048 tokens (mean about 340), as in the training benchmark. Prints JSON lines.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np

from training.data.documents import join_stores
from training.data.loader import Loader, layout_of, most_units
from training.data.packing import PackingRule, epoch_bins, epoch_order
from training.data.store import DOCUMENT, StoreWriter, TokenStore


def make_store(folder: Path, count: int) -> TokenStore:
    generator = np.random.default_rng(0)
    lengths = np.clip(generator.lognormal(5.45, 0.9, count), 32, 2048).astype(np.int32)
    writer = StoreWriter(folder, 50_000)
    for chunk in np.array_split(lengths, max(count // 256, 1)):
        entries = np.zeros(len(chunk), DOCUMENT)
        entries["length"], entries["line"] = chunk, np.arange(len(chunk)) + 1
        entries["targets"] = chunk - chunk // 2
        total = int(chunk.sum())
        writer.append(entries, generator.integers(0, 49_152, total), generator.random(total) < 0.5)
    writer.finish({"files": ["made.jsonl"], "kind": "chat"})
    return TokenStore(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=50_000)
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        documents = join_stores([make_store(Path(folder), options.documents)], [1.0], [])
        real = int(documents.length.sum())
        for capacity in (2048, 8192, 32768):
            rule = PackingRule(True, capacity, 1, most_units(documents.length, capacity))
            start = time.process_time()
            bins = epoch_bins(documents.length, epoch_order(len(documents), None, rule, 0), rule, 0)
            planned = time.process_time() - start
            loader = Loader(documents, rule, layout_of(rule, 2048, 1, 0))
            tokens, start, end = 0, time.process_time(), time.monotonic() + options.seconds
            for step in loader:
                tokens += step.num_tokens
                if time.monotonic() > end:
                    break
            spent = time.process_time() - start
            facts = {
                "capacity": capacity,
                "fill": round(real / (len(bins) * capacity), 4),
                "plan_tokens_per_second": round(real / planned),
                "loader_tokens_per_second": round(tokens / spent),
                "most_documents": max(len(units) for units in bins),
                "mean_length": round(real / len(documents)),
            }
            print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    main()
