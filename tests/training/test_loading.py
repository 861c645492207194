"""Loading a model takes no memory of its own: its files are mapped, and ranks of one machine share what they read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from tests.training.making import environment
from tests.training.tiny import tiny_config

MEASURE = """
import sys, psutil
from training.models.load import load_causal_lm
load_causal_lm(sys.argv[1])  # what is imported on the way isn't the model's
before = psutil.Process().memory_full_info().uss
model = load_causal_lm(sys.argv[2])
print(psutil.Process().memory_full_info().uss - before, sum(p.numel() * p.element_size() for p in model.parameters()))
"""


def test_a_rank_holds_no_copy_of_the_weights_that_it_loads(tmp_path: Path) -> None:
    for name, width in (("small", 32), ("large", 512)):
        config = tiny_config(hidden_size=width, intermediate_size=4 * width, num_hidden_layers=8, num_attention_heads=8)
        AutoModelForCausalLM.from_config(config, torch_dtype=torch.bfloat16).save_pretrained(tmp_path / name)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "small"), str(tmp_path / "large")], env=environment(),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    taken, size = map(int, done.stdout.split())
    assert size > 60e6 and taken < 0.2 * size
