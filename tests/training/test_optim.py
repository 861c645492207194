"""The master-weight AdamW against torch's own, and what must never reach the weights."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

import training.optimizer.adamw as optim
from tests.training.tiny import tiny_config
from training.config.strategies import OptimizerConfig
from training.models.load import from_config
from training.optimizer.adamw import LossScale, MasterAdamW, clip_divisor, global_norm, undecayed


def named(dtype: torch.dtype) -> list[tuple[str, nn.Parameter]]:
    generator = torch.Generator().manual_seed(3)
    shapes = {"a": (7, 5), "bias": (5,), "b": (33, 9), "norm": (9,)}
    return [(name, nn.Parameter(torch.randn(shape, generator=generator).to(dtype))) for name, shape in shapes.items()]


def gradients(step: int, like: list[tuple[str, nn.Parameter]]) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    for _, parameter in like:
        yield torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


def feed(members: list[tuple[str, nn.Parameter]], step: int, scale: float = 1.0) -> None:
    for (_, parameter), gradient in zip(members, gradients(step, members), strict=True):
        parameter.grad = gradient * scale


CONFIG = OptimizerConfig(lr=1e-2, weight_decay=0.1, max_grad_norm=3.0)


def flat(members: list[tuple[str, nn.Parameter]]) -> set[str]:
    """Names of what has no two dimensions, which doesn't decay."""
    return {name for name, p in members if p.ndim < 2}


def reference(steps: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """torch.optim.AdamW in fp32 with torch's own clipping, fed the same gradients."""
    members = [(name, nn.Parameter(p.detach().float())) for name, p in named(dtype)]
    groups = [
        {"params": [p for _, p in members if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for _, p in members if p.ndim < 2], "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(groups, lr=CONFIG.lr, betas=CONFIG.betas, eps=CONFIG.eps)
    for step in range(steps):
        for (_, parameter), gradient in zip(members, gradients(step, named(dtype)), strict=True):
            parameter.grad = gradient.float()
        torch.nn.utils.clip_grad_norm_([p for _, p in members], 3.0)
        adam.step()
    return {name: p.detach() for name, p in members}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk", [40, optim.CHUNK_ELEMENTS])
def test_equals_torch_adamw_with_clipping(dtype: torch.dtype, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optim, "CHUNK_ELEMENTS", chunk)
    monkeypatch.setattr(optim.FlatAdam.__init__, "__kwdefaults__", {"masters": True, "chunk_elements": chunk})
    members = named(dtype)
    adam = MasterAdamW(members, CONFIG, flat(members))
    for step in range(5):
        feed(members, step)
        expected = torch.linalg.vector_norm(torch.cat([p.grad.float().flatten() for _, p in members]))
        assert adam.step(CONFIG.lr) == pytest.approx(float(expected), rel=1e-5)
    for name, weight in reference(5, dtype).items():
        master = adam.state()[name]["master"].view(weight.shape)
        torch.testing.assert_close(master, weight, rtol=2e-5, atol=2e-6)
        torch.testing.assert_close(dict(members)[name].detach(), master.to(dtype), rtol=0, atol=0)


def test_steps_too_small_for_bf16_still_add_up() -> None:
    weight = nn.Parameter(torch.ones(4, 4, dtype=torch.bfloat16))
    adam = MasterAdamW([("w", weight)], OptimizerConfig(lr=1e-5, max_grad_norm=0.0), ())
    for _ in range(1000):
        weight.grad = torch.ones_like(weight)
        adam.step(1e-5)
    assert float(weight.detach()[0, 0]) == pytest.approx(0.99, abs=0.004)


def test_a_step_that_is_not_finite_changes_nothing() -> None:
    members = named(torch.bfloat16)
    adam = MasterAdamW(members, CONFIG, flat(members))
    feed(members, 0)
    adam.step(CONFIG.lr)
    before = {name: {key: value.clone() for key, value in entry.items()} for name, entry in adam.state().items()}
    feed(members, 1)
    members[2][1].grad[0, 0] = float("nan")
    assert not torch.isfinite(adam.step(CONFIG.lr))
    for name, entry in adam.state().items():
        for key, value in entry.items():
            assert torch.equal(value, before[name][key]), (name, key)
    assert float(adam.step_count) == 1
    assert all(p.grad is None for _, p in members)


def test_loss_scale_halves_on_overflow_and_doesnt_change_the_update() -> None:
    plain, scaled = named(torch.float32), named(torch.float32)
    one, two = MasterAdamW(plain, CONFIG, flat(plain)), MasterAdamW(scaled, CONFIG, flat(scaled))
    scale = LossScale(torch.device("cpu"), initial=8.0, interval=2)
    for step in range(2):
        feed(plain, step)
        feed(scaled, step, scale=float(scale.scale))
        assert float(one.step(CONFIG.lr)) == pytest.approx(float(two.step(CONFIG.lr, loss_scale=scale)), rel=1e-5)
    for (_, a), (_, b) in zip(plain, scaled, strict=True):
        torch.testing.assert_close(a, b)
    assert float(scale.scale) == 16.0
    feed(scaled, 3, scale=float("inf"))
    two.step(CONFIG.lr, loss_scale=scale)
    assert float(scale.scale) == 8.0


def test_norm_and_divisor() -> None:
    parts = [torch.full((2, 2), 2.0, dtype=torch.bfloat16), torch.tensor([3.0])]
    assert float(global_norm(parts)) == pytest.approx(5.0)
    assert float(clip_divisor(torch.tensor(5.0), 2.5)) == 2.0
    assert float(clip_divisor(torch.tensor(1.0), 2.5)) == 1.0
    assert float(clip_divisor(torch.tensor(9.0), 0.0)) == 1.0


def test_nothing_to_train_is_said() -> None:
    weight = nn.Parameter(torch.ones(2), requires_grad=False)
    with pytest.raises(ValueError, match="nothing to train"):
        MasterAdamW([("w", weight)], CONFIG, ())


@pytest.mark.parametrize("tied", [False, True])
def test_only_the_matrices_decay_not_biases_norms_and_embeddings(tied: bool) -> None:
    model = from_config(tiny_config("qwen2", tie_word_embeddings=tied))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    adam = MasterAdamW(model.named_parameters(), OptimizerConfig(lr=0.1, weight_decay=0.5), undecayed(model))
    adam.step(0.1)  # no gradients: only decay moves anything
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    blocks = {name for name in before if ".layers." in name and name.endswith("proj.weight")}
    assert moved == blocks | (set() if tied else {"lm_head.weight"})
