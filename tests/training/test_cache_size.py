"""The cache is as large as asked for, or as the device has memory for; what was chosen is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from tests.training.tiny import tiny_config
from training.config.generation import GenerationConfig
from training.errors import OutOfMemory
from training.models.load import from_config
from training.rollout import RolloutEngine, memory
from training.rollout.families import family_of
from training.rollout.memory import FEWEST_SLOTS, GIB, plan_cache, scratch_bytes, slot_bytes
from training.rollout.slots import SlotTable

CPU = torch.device("cpu")


@pytest.fixture
def llama_7b() -> Any:
    """The engine's view of a 7B model with as many key/value heads as heads; no memory is taken."""
    config = LlamaConfig(
        vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
        max_position_embeddings=4096, torch_dtype=torch.bfloat16,
    )  # fmt: skip
    with torch.device("meta"):
        return family_of(AutoModelForCausalLM.from_config(config, torch_dtype=torch.bfloat16))


def with_free(monkeypatch: pytest.MonkeyPatch, size: float) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda device: int(size))


def test_a_slot_takes_what_the_table_allocates() -> None:
    family = family_of(from_config(tiny_config("llama")))
    tables = [SlotTable(family, slots, 64, family.dtype, CPU) for slots in (4, 5)]
    for table in tables:
        table.keep_top()
    grown = tables[1].nbytes() - tables[0].nbytes()
    assert 0 < grown - slot_bytes(family, 64) < 0.1 * grown  # the rest is options of a request


def test_a_7b_model_on_an_80_gib_card_gets_what_fits(llama_7b: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 64 * slot_bytes(llama_7b, 4096) > 120 * GIB  # what serve asked for by default
    with_free(monkeypatch, 65 * GIB)
    plan = plan_cache(llama_7b, CPU, slots=64, max_length=4096, share=0.9, may_shorten=True)
    assert plan.max_length == 4096 and 24 <= plan.slots <= 29 and plan.size < 0.9 * 65 * GIB
    assert plan.sentence.endswith("of 64 slots of 4096 tokens that is what fits into the 65.0 GiB that are free")
    with_free(monkeypatch, 400 * GIB)
    plan = plan_cache(llama_7b, CPU, slots=64, max_length=4096, share=0.9, may_shorten=True)
    assert (plan.slots, plan.max_length) == (64, 4096) and "fits" not in plan.sentence


def test_texts_get_shorter_before_hardly_a_slot_is_left_where_they_may(
    llama_7b: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_free(monkeypatch, 12 * GIB)
    plan = plan_cache(llama_7b, CPU, slots=64, max_length=4096, share=0.9, may_shorten=True)
    assert plan.max_length == 2048 and plan.slots >= FEWEST_SLOTS
    asked = plan_cache(llama_7b, CPU, slots=64, max_length=4096, share=0.9)
    assert asked.max_length == 4096 and 1 <= asked.slots < FEWEST_SLOTS
    with_free(monkeypatch, 2 * GIB)
    with pytest.raises(OutOfMemory, match=r"One text of 4096 tokens takes .*serve: max_length"):
        plan_cache(llama_7b, CPU, slots=64, max_length=4096, share=0.9)


def test_a_rollout_with_little_memory_is_the_same_in_more_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = from_config(tiny_config("llama")).eval()
    prompts, wanted = [[3, 4, 5], [6, 7], [8, 9, 10, 11], [12]], GenerationConfig(max_new_tokens=8)
    whole = RolloutEngine(model, max_batch=4, max_length=32).generate(prompts, wanted, seeds=[1, 2, 3, 4])
    family = family_of(model)
    with_free(monkeypatch, (3.5 * slot_bytes(family, 32) + scratch_bytes(family, 4)) / 0.25 + 1)
    said: list[str] = []
    engine = RolloutEngine(model, max_batch=4, max_length=32, memory_share=0.25, note=said.append)
    some = engine.generate(prompts, wanted, seeds=[1, 2, 3, 4])
    assert engine.max_batch < 4 and said and said[0].startswith(f"rollouts: {engine.max_batch} slots of 32 tokens")
    torch.testing.assert_close(some.tokens, whole.tokens, rtol=0, atol=0)


@pytest.mark.parametrize(
    "files",
    [
        {"memory.max": "1000\n", "memory.current": "400\n"},
        {"memory/memory.limit_in_bytes": "1000", "memory/memory.usage_in_bytes": "400"},
    ],
)
def test_a_container_counts_its_own_limit(files: dict[str, str], tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert memory._container_limit(tmp_path) == 600
    (tmp_path / next(iter(files))).write_text("max")
    assert memory._container_limit(tmp_path) > 1 << 60
