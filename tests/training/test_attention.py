"""Packed rows give each document what it gets alone, for every architecture, and nothing of its neighbours."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.training.tiny import packed, tiny_config
from training.models.attention import PACKED, Varlen, packed_hidden
from training.models.families import FAMILIES
from training.models.load import from_config

PACKED_ARCHITECTURES = sorted(name for name, row in FAMILIES.items() if row.packed)
FALLBACK = ["gemma", "gpt2", "opt", "bloom", "falcon", "gptj"]


def documents(seed: int, lengths: tuple[int, ...] = (5, 1, 9, 3), vocab: int = 64) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, vocab, (n,), generator=generator).tolist() for n in lengths]


def alone(model: torch.nn.Module, tokens: list[int]) -> torch.Tensor:
    """Reference: transformers' own forward of one unpadded row with its own attention."""
    return model.base_model(input_ids=torch.tensor([tokens]), use_cache=False)[0][0]


@pytest.mark.parametrize("architecture", [*PACKED_ARCHITECTURES, *FALLBACK])
def test_each_document_of_a_packed_row_equals_the_document_alone(architecture: str) -> None:
    config = tiny_config(architecture)
    torch.manual_seed(0)
    model = from_config(config).eval()
    assert (model.config._attn_implementation == PACKED) == (architecture in PACKED_ARCHITECTURES)
    reference = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    reference.load_state_dict(model.state_dict())
    docs = documents(1)
    batch = packed(docs, length=24)
    with torch.no_grad():
        hidden = packed_hidden(model, batch)
        assert hidden.shape[0] == 24 and torch.isfinite(hidden).all()
        start = 0
        for doc in docs:
            torch.testing.assert_close(hidden[start : start + len(doc)], alone(reference, doc), rtol=1e-4, atol=1e-5)
            start += len(doc)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "bloom", "gpt2"])
def test_changing_one_document_changes_no_other(architecture: str) -> None:
    torch.manual_seed(0)
    model = from_config(tiny_config(architecture)).eval()
    docs = documents(2)
    changed = [list(doc) for doc in docs]
    changed[2] = documents(9)[2]
    with torch.no_grad():
        before, after = (packed_hidden(model, packed(d, length=20)) for d in (docs, changed))
    torch.testing.assert_close(before[:6], after[:6], rtol=0, atol=0)
    torch.testing.assert_close(before[15:18], after[15:18], rtol=0, atol=0)
    assert not torch.allclose(before[6:15], after[6:15])


def test_gradients_of_packed_and_single_documents_are_equal() -> None:
    torch.manual_seed(0)
    model = from_config(tiny_config("llama"))
    docs = documents(3)
    packed_hidden(model, packed(docs, length=20))[:18].square().sum().backward()
    together = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for doc in docs:
        packed_hidden(model, packed([doc], length=len(doc))).square().sum().backward()
    for name, p in model.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(together[name], p.grad, rtol=1e-4, atol=1e-4)


def test_a_sliding_window_is_kept_within_documents() -> None:
    config = tiny_config("mistral", sliding_window=4)
    torch.manual_seed(0)
    model = from_config(config).eval()
    reference = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    reference.load_state_dict(model.state_dict())
    docs = documents(4, (9, 6))
    with torch.no_grad():
        hidden = packed_hidden(model, packed(docs, length=15))
        torch.testing.assert_close(hidden[:9], alone(reference, docs[0]), rtol=1e-4, atol=1e-5)


def test_nobody_is_told_that_a_window_which_is_kept_is_not() -> None:
    script = """
from tests.training.tiny import tiny_config
from training.models.load import from_config
from transformers import AutoModelForCausalLM
from transformers.utils import logging
from_config(tiny_config("qwen2", sliding_window=4))
AutoModelForCausalLM.from_config(tiny_config("qwen2", sliding_window=4), attn_implementation="sdpa")
logging.get_logger("transformers.models").warning("a warning of another kind")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert "a warning of another kind" in done.stderr and "Sliding Window" not in done.stderr


@pytest.mark.parametrize(("architecture", "kind"), [("phi3", "longrope"), ("llama", "longrope"), ("llama", "dynamic")])
def test_angles_that_depend_on_the_length_do_so_document_by_document(architecture: str, kind: str) -> None:
    if kind == "longrope":
        factors = {"short_factor": [1.0] * 4, "long_factor": [1.5, 2.0, 4.0, 8.0]}
        config = tiny_config(
            architecture, max_position_embeddings=64, original_max_position_embeddings=8,
            rope_scaling={"rope_type": kind, "factor": 8.0, **factors} if architecture == "llama" else
            {"type": kind, **factors},
        )  # fmt: skip
    else:
        config = tiny_config(architecture, max_position_embeddings=8, rope_scaling={"rope_type": kind, "factor": 4.0})
    torch.manual_seed(0)
    model = from_config(config).eval()
    for docs in (documents(5, (5, 7, 3)), documents(6, (5, 20, 6, 13))):
        with torch.no_grad():
            hidden = packed_hidden(model, packed(docs, length=64))
            start = 0
            for doc in docs:
                reference = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
                reference.load_state_dict(model.state_dict())
                torch.testing.assert_close(
                    hidden[start : start + len(doc)], alone(reference, doc), rtol=1e-4, atol=1e-5
                )
                start += len(doc)


def old(q, k, v, a, b, c, d, is_causal=False, scale=None): ...  # type: ignore[no-untyped-def]
def middle(q, k, v, a, b, c, d, *, scale=None, window_size=(-1, -1)): ...  # type: ignore[no-untyped-def]
def unscaled(q, k, v, a, b, c, d, is_causal=False): ...  # type: ignore[no-untyped-def]
def strange(q, k, v, a, b, c, d, *, mask_kind="full"): ...  # type: ignore[no-untyped-def]


def test_a_variable_length_kernel_is_only_asked_for_what_its_signature_can_say() -> None:
    """A window, or another factor on the scores, is never dropped in silence."""
    assert not Varlen(old).can(4, None, 64) and Varlen(old).can(None, 0.3, 64)
    assert Varlen(middle).can(4, 0.3, 64)
    assert not Varlen(unscaled).can(None, 0.3, 64) and Varlen(unscaled).can(None, 64**-0.5, 64)
    assert not Varlen(strange).can(None, None, 64)
