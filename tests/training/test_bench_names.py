"""What benchmarks import of the project is there: most of them run only where a GPU is."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

from tests.bench.gpu_train import measure

ROOT = Path(__file__).resolve().parents[2]
BENCHES = sorted((ROOT / "tests/bench").glob("*.py"))
OURS = ("training", "jobs", "images", "service", "tests")
GPU_ONLY = {"triton"}


@pytest.mark.parametrize("file", BENCHES, ids=lambda file: file.stem)
def test_every_name_that_a_benchmark_imports_exists(file: Path) -> None:
    missing = []
    for node in ast.walk(ast.parse(file.read_text())):
        if not isinstance(node, ast.ImportFrom) or (node.module or "").partition(".")[0] not in OURS:
            continue
        try:
            module = importlib.import_module(node.module or "")
        except ModuleNotFoundError as error:
            if error.name not in GPU_ONLY:
                missing.append(f"{node.module}: {error}")
            continue
        for alias in node.names:
            if not hasattr(module, alias.name) and not _is_module(f"{node.module}.{alias.name}"):
                missing.append(f"{node.module}.{alias.name}")
    assert missing == []


def test_the_benchmark_of_training_runs_through_the_stages_own_opening() -> None:
    """What it gives a run as its model must pass what every run checks."""
    figures = measure("sft:tiny:naive:steps=4,warmup=1,tokens=4096")
    assert figures["tokens_per_second"] > 0 and figures["loss"] > 0


def _is_module(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        return error.name in GPU_ONLY
    return True
