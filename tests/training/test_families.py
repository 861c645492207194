"""Every architecture that loads: its loss is transformers' own, packed or not, and the same after an export."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from tests.training.tiny import packed, tiny_config
from training.errors import ConfigError
from training.models.agreement import check_hidden, check_loss
from training.models.attention import PACKED, packed_hidden
from training.models.blocks import trunk_of
from training.models.families import FAMILIES, Family, context_of, engine_refusal, logits_of, names, takes_packed_rows
from training.models.heads import LanguageModelLoss
from training.models.load import from_config, load_causal_lm
from training.rollout.families import READERS

TRAINED = sorted(name for name, row in FAMILIES.items() if not row.refused)


def documents(seed: int, lengths: tuple[int, ...] = (7, 2, 11, 4), vocab: int = 64) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, vocab, (n,), generator=generator).tolist() for n in lengths]


def tensors(docs: list[list[int]]) -> list[torch.Tensor]:
    return [torch.tensor(doc) for doc in docs]


def lively(model: Any) -> Any:
    """Larger weights than fresh ones have: caps, windows and scales then matter."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=0.4)
    return model.eval()


def own_losses(config: Any, state: dict[str, torch.Tensor], docs: list[list[int]]) -> list[float]:
    """Summed next-token losses by transformers' eager forward, document by document."""
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    model.load_state_dict(state)
    found = []
    with torch.no_grad():
        for doc in docs:
            tokens = torch.tensor([doc])
            logits = model(input_ids=tokens, use_cache=False).logits[0, :-1].float()
            found.append(float(F.cross_entropy(logits, tokens[0, 1:], reduction="sum")))
    return found


@pytest.mark.parametrize("architecture", TRAINED)
def test_the_loss_is_transformers_own_packed_and_unpacked_and_after_export(architecture: str, tmp_path: Path) -> None:
    config = tiny_config(architecture)
    model = lively(from_config(config))
    assert (model.config._attn_implementation == PACKED) == takes_packed_rows(config)
    docs = documents(1)
    wanted = own_losses(config, model.state_dict(), docs)
    loss = LanguageModelLoss(model)
    with torch.no_grad():
        assert float(loss(packed(docs, length=32))) == pytest.approx(sum(wanted), rel=1e-4)
        for doc, own in zip(docs, wanted, strict=True):
            assert float(loss(packed([doc]))) == pytest.approx(own, rel=1e-4, abs=1e-4)
        assert check_loss(model, tensors(docs)) < 1e-4
        assert check_hidden(trunk_of(model), tensors(docs)) < 1e-3
        model.save_pretrained(tmp_path)
        again = LanguageModelLoss(load_causal_lm(str(tmp_path)).eval())
        assert float(again(packed(docs, length=32))) == pytest.approx(sum(wanted), rel=1e-4)


def test_the_engine_reads_the_families_that_the_table_says() -> None:
    assert names(engine=True) == sorted(READERS)


def test_a_family_with_another_loss_than_transformers_is_refused_with_both_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = lively(from_config(tiny_config("gemma2")))
    docs = documents(1)
    compared = [*docs[:3], docs[0][:3]]
    wanted = sum(own_losses(model.config, model.state_dict(), compared)) / sum(len(doc) - 1 for doc in compared)
    monkeypatch.setitem(FAMILIES, "gemma2", Family())  # as if nobody knew of its caps
    with pytest.raises(ConfigError) as refused:
        check_loss(model, tensors(docs))
    found = re.search(r"loss of ([\d.]+) a token here, but ([\d.]+) in transformers' own", str(refused.value))
    assert found and float(found[2]) == pytest.approx(wanted, rel=1e-3) and float(found[1]) > wanted + 1


def test_a_model_that_looks_ahead_is_refused() -> None:
    model = lively(from_config(tiny_config("bert")))
    with pytest.raises(ConfigError, match="trained wrongly"):
        check_loss(model, tensors(documents(1)))


def test_a_state_that_transformers_keeps_is_dropped_between_texts() -> None:
    model = lively(from_config(tiny_config("recurrent_gemma")))
    docs = packed(documents(2))
    with torch.no_grad():
        first = packed_hidden(model, docs)
        torch.testing.assert_close(packed_hidden(model, docs), first)


def test_facts_are_read_from_the_config_through_the_row() -> None:
    assert context_of(tiny_config("gpt2")) == 128 and context_of(tiny_config("bloom")) is None
    assert context_of(tiny_config("llama", max_position_embeddings=32, rope_scaling={
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32})) == 128  # fmt: skip
    assert logits_of(tiny_config("granite")).scale == 0.25 and logits_of(tiny_config("gemma2")).cap == 2.0
    assert logits_of(tiny_config("mpt")).scale == 1.0  # its config has a logit_scale, which its forward never reads
    assert "longrope" in str(engine_refusal(tiny_config("llama", rope_scaling={
        "rope_type": "longrope", "factor": 2.0, "short_factor": [1.0] * 4, "long_factor": [1.0] * 4})))  # fmt: skip
    assert "'olmo'" in str(engine_refusal(tiny_config("olmo"))) and engine_refusal(tiny_config("qwen2")) is None
    assert "rotates 0.75 of each head" in str(engine_refusal(tiny_config("phi3", partial_rotary_factor=0.75)))
