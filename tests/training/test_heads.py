"""Heads: a packed batch has its documents' own loss, scores ignore padding and company, exports load elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from tests.training.making import make_model
from tests.training.tiny import packed, tiny_config
from training.config.stages import DPOLossConfig, LoraConfig, RewardLossConfig
from training.data.template import TextCodec
from training.errors import MissingInput, TrainingError
from training.losses import dpo_loss, orpo_loss
from training.models.export import check_export, load_reward_model, save_model, save_reward_model
from training.models.heads import (
    HeadOptions,
    LanguageModelLoss,
    NoisyEmbedding,
    PreferenceLoss,
    RewardLoss,
    RewardModel,
    document_logprobs,
    wins,
)
from training.models.load import from_config, load_causal_lm
from training.models.lora import convert_to_lora, lora_layers

DOCS = [[5, 9, 12, 7, 33], [3, 4, 8, 8, 20, 31, 2], [40, 41], [6, 6, 6, 13]]
ARCHITECTURES = ["llama", "gpt2", "bloom", "opt", "cohere", "granite"]


def plain_loss(model: torch.nn.Module, docs: list[list[int]]) -> torch.Tensor:
    """transformers' own logits, one unpadded document at a time."""
    total = torch.zeros(())
    for doc in docs:
        logits = model(input_ids=torch.tensor([doc]), use_cache=False).logits[0].float()
        total = total + F.cross_entropy(logits[:-1], torch.tensor(doc[1:]), reduction="sum")
    return total


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("tied", [True, False])
def test_the_loss_and_gradients_are_those_of_the_documents_alone(architecture: str, tied: bool) -> None:
    torch.manual_seed(0)
    extra = {"logits_scaling": 2.0} if architecture == "granite" else {}
    model = from_config(tiny_config(architecture, tie_word_embeddings=tied, **extra))
    loss = LanguageModelLoss(model)(packed(DOCS, length=32))
    loss.backward()
    got = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    expected = plain_loss(model, DOCS)
    expected.backward()
    torch.testing.assert_close(loss, expected)
    assert got.keys() == {name for name, p in model.named_parameters() if p.grad is not None}
    for name, p in model.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(got[name], p.grad, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_a_models_own_forward_on_padded_rows_gives_the_same_loss() -> None:
    """The path of tensor parallelism."""
    torch.manual_seed(0)
    model = from_config(tiny_config())
    batch = packed(DOCS, length=32)
    own = LanguageModelLoss(model, HeadOptions(own_forward=True))(batch)
    torch.testing.assert_close(own, LanguageModelLoss(model)(batch))


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bloom"])
def test_a_reward_depends_on_its_document_only(architecture: str) -> None:
    torch.manual_seed(0)
    model = RewardModel(from_config(tiny_config(architecture)).base_model).eval()
    with torch.no_grad():
        together = model.scores(packed(DOCS, length=32))
        alone = torch.cat([model.scores(packed([doc])) for doc in DOCS])
        reversed_company = model.scores(packed(DOCS[::-1], length=40)).flip(0)
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(together, reversed_company, rtol=1e-4, atol=1e-5)
        ends_in_pad = [[*DOCS[0], 0], DOCS[1]]  # a last token that is the pad id is still the last token
        torch.testing.assert_close(
            model.scores(packed(ends_in_pad, length=16))[0], model.scores(packed([ends_in_pad[0]]))[0]
        )


def test_reward_loss_uses_rows_margins_first_and_centering() -> None:
    torch.manual_seed(0)
    model = RewardModel(from_config(tiny_config()).base_model)
    batch = packed(DOCS, length=32, pairs=[(0, 1), (2, 3)], margins=[0.0, 0.7])
    result = RewardLoss(model, RewardLossConfig(margin=0.2, centering=0.05))(batch)
    scores = model.scores(batch).detach()
    difference = scores[[0, 2]] - scores[[1, 3]]
    expected = -F.logsigmoid(difference - torch.tensor([0.2, 0.7])) + 0.05 * (scores[[0, 2]] + scores[[1, 3]]) ** 2
    torch.testing.assert_close(result["loss"], expected.sum())
    assert result["accuracy"].item() == (difference > 0).sum().item()


def test_a_zero_head_scores_zero_and_a_normal_one_has_its_variance() -> None:
    trunk = from_config(tiny_config(hidden_size=256, num_attention_heads=4)).base_model
    assert RewardModel(trunk, head_init="zero").scores(packed(DOCS)).abs().max() == 0
    spread = torch.stack([RewardModel(trunk).score.weight.detach() for _ in range(40)]).var()
    assert spread.item() == pytest.approx(1 / 257, rel=0.1)


def test_dpo_reads_the_answers_of_each_pair_and_the_reference_is_the_adapter_off_model() -> None:
    torch.manual_seed(0)
    model = from_config(tiny_config())
    convert_to_lora(model, LoraConfig(rank=4))
    labels = [[-100, 12, 7, 33, -100], [-100, 8, 8, 20, 31, 2, -100], [41, -100], [-100, 6, 13, -100]]
    batch = packed(DOCS, length=32, labels=labels, pairs=[(0, 1), (2, 3)])
    module = PreferenceLoss(model, DPOLossConfig(beta=0.5))
    before = document_logprobs(model, batch, HeadOptions()).detach()
    assert module(batch)["loss"].item() == pytest.approx(2 * 0.693147, rel=1e-4)
    for layer in lora_layers(model).values():
        torch.nn.init.normal_(layer.lora_B, std=0.3)
    policy = document_logprobs(model, batch, HeadOptions())
    torch.testing.assert_close(module.reference(batch), before)
    expected, _ = dpo_loss(policy[[0, 2]], policy[[1, 3]], before[[0, 2]], before[[1, 3]], beta=0.5)
    torch.testing.assert_close(module(batch)["loss"], expected.sum())
    logits = model(input_ids=torch.tensor([DOCS[1]]), use_cache=False).logits[0].log_softmax(-1)
    wanted = sum(logits[i, t] for i, t in enumerate(labels[1]) if t != -100)
    torch.testing.assert_close(policy[1], wanted, rtol=1e-4, atol=1e-4)


def test_orpo_takes_each_answers_mean_and_needs_no_reference() -> None:
    model = from_config(tiny_config())
    labels = [[-100, 12, 7, 33, -100], [-100, 8, 8, 20, 31, 2, -100], [41, -100], [-100, 6, 13, -100]]
    batch = packed(DOCS, length=32, labels=labels, pairs=[(0, 1), (2, 3)])
    policy = document_logprobs(model, batch, HeadOptions())
    tokens = torch.tensor([3.0, 5, 1, 2])
    expected, _ = orpo_loss(policy[[0, 2]], policy[[1, 3]], tokens[[0, 2]], tokens[[1, 3]], beta=0.1)
    found = PreferenceLoss(model, DPOLossConfig(loss="orpo"))(batch)
    torch.testing.assert_close(found["loss"], expected.sum())


@pytest.mark.parametrize("architecture", ["llama", "bloom"])
def test_neftune_adds_noise_of_the_documents_size_while_training_only(architecture: str) -> None:
    model = from_config(tiny_config(architecture))
    noise = NoisyEmbedding(model, alpha=5.0)
    module, batch = LanguageModelLoss(model), packed(DOCS)
    quiet = module(batch).item()
    with noise.noise_for(batch):
        assert module(batch).item() != quiet
        model.eval()
        assert module(batch).item() == quiet
        model.train()
    assert module(batch).item() == quiet
    llama = from_config(tiny_config())
    noise, seen = NoisyEmbedding(llama, alpha=5.0), []
    llama.get_input_embeddings().register_forward_hook(lambda m, i, out: seen.append(out.detach()))
    with noise.noise_for(batch):
        LanguageModelLoss(llama)(batch)
    LanguageModelLoss(llama)(batch)
    added = (seen[0] - seen[1])[0].split([len(doc) for doc in DOCS])
    for doc, part in zip(DOCS, added, strict=True):
        limit = 5.0 / (len(doc) * 32) ** 0.5
        assert part.abs().max() <= limit * 1.0001 and part.abs().max() > 0.5 * limit


def test_a_reward_model_comes_back_and_plain_transformers_scores_alike(tmp_path: Path) -> None:
    base = make_model(tmp_path / "base")
    codec = TextCodec.load(base)
    model = RewardModel(load_causal_lm(str(base)).base_model).eval()
    save_reward_model(tmp_path / "rm", model, model.state_dict(), codec, {"kind": "reward_model"})
    again = load_reward_model(str(tmp_path / "rm")).eval()
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm").eval()
    with torch.no_grad():
        scores = model.scores(packed(DOCS))
        torch.testing.assert_close(again.scores(packed(DOCS)), scores, rtol=0, atol=0)
        torch.testing.assert_close(
            plain(input_ids=torch.tensor([DOCS[1]])).logits[0, 0], scores[1], rtol=1e-4, atol=1e-5
        )
    with pytest.raises(MissingInput, match="no reward model"):
        load_reward_model(str(base))


def test_an_export_that_is_not_the_trained_model_is_refused(tmp_path: Path) -> None:
    """The failure that users of other stacks meet: a merged model that is the base."""
    base = make_model(tmp_path / "base")
    model = load_causal_lm(str(base))
    untrained = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    tokens = torch.tensor(DOCS[1])
    expected = model.eval()(input_ids=tokens[None]).logits[0].detach()
    save_model(tmp_path / "good", model, model.state_dict(), TextCodec.load(base), {})
    assert check_export(tmp_path / "good", expected, tokens, tolerance=1e-3) < 1e-4
    save_model(tmp_path / "bad", model, untrained, TextCodec.load(base), {})
    with pytest.raises(TrainingError, match="differs from the trained one"):
        check_export(tmp_path / "bad", expected, tokens, tolerance=1e-3)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "good").config.use_cache


def test_a_tie_counts_as_half_a_win() -> None:
    assert wins(torch.tensor([2.0, 1.0, -1.0]), torch.tensor([1.0, 1.0, 3.0])).item() == 1.5
