"""A PPO run through its front door: it learns, resumes bit for bit, and stops with a sentence on bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from training.config.load import load_config
from training.errors import ConfigError, DataError, MissingInput, NanLoss, Stopped, TrainingError
from training.models.load import from_config
from training.ppo.rewards import RewardFailed
from training.stages import ppo

LETTERS = "abcdefgh"
TEMPLATE = "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
REWARDS = '''
import math

calls = []

def letter(prompts, completions, rows, letter="a"):
    """Fraction of a letter."""
    return [text.count(letter) / max(len(text), 1) for text in completions]

def fails_later(prompts, completions, rows):
    calls.append(1)
    return [math.nan if len(calls) == 3 and i == 2 else 0.5 for i in range(len(rows))]

def raises(prompts, completions, rows):
    raise KeyError("no such field")
'''


def make_model(folder: Path, *, letters: str = LETTERS, seed: int = 0, context: int = 64) -> Path:
    """A folder with a tiny random LLaMA and a tokenizer of single letters."""
    words = {word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", *letters])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    )
    wrapped.chat_template = TEMPLATE
    wrapped.save_pretrained(folder)
    torch.manual_seed(seed)
    model = from_config(
        LlamaConfig(
            vocab_size=len(words), hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=context, eos_token_id=1, pad_token_id=0,
        )
    )  # fmt: skip
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("actor"))


def write_files(folder: Path) -> None:
    prompts = [{"prompt": LETTERS[i % 8] * (1 + i % 3), "answer": i} for i in range(40)]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    (folder / "my_rewards.py").write_text(REWARDS)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    write_files(tmp_path)
    return tmp_path


def settings(model: Path, files: Path, **changes: Any) -> dict[str, Any]:
    """A small run's YAML as a mapping; `changes` are merged in, section by section."""
    tree: dict[str, Any] = {
        "model": str(model),
        "data": [{"path": str(files / "prompts.jsonl"), "format": "prompt"}],
        "strategy": "naive",
        "run_dir": str(files / "run"),
        "reward": {"function": f"{files}/my_rewards.py:letter"},
        "generation": {"max_new_tokens": 6},
        "train": {"max_steps": 3, "rollout_batch_size": 8, "minibatch_size": 4, "max_prompt_length": 8, "lr": 1e-3},
        "log": {"every": 1, "tensorboard": False},
    }
    for section, value in changes.items():
        old = tree.get(section)
        tree[section] = {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
    return tree


def start(*args: Any, **kwargs: Any) -> list[dict[str, Any]]:
    """Run; the events that it told."""
    tree = settings(*args, **kwargs)
    ppo.run(load_config("ppo", tree))
    return events(Path(tree["run_dir"]))


def events(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]


def metrics(told: list[dict[str, Any]], name: str) -> list[float]:
    """The values of one name, of the steps that told it."""
    return [event["values"][name] for event in told if event["event"] == "metrics" and name in event["values"]]


def test_a_synthetic_reward_is_learned(model: Path, files: Path) -> None:
    told = start(
        model, files,
        train={
            "max_steps": 40, "epochs": 100, "rollout_batch_size": 64, "minibatch_size": 32, "ppo_epochs": 2, "lr": 1e-2,
        },
        critic={"lr": 1e-2}, kl={"coef": 0.01},
    )  # fmt: skip
    rewards = metrics(told, "reward")
    assert sum(rewards[:3]) / 3 < 0.3
    assert sum(rewards[-3:]) / 3 > 0.85
    for name in ("kl", "entropy", "clip_fraction", "explained_variance", "value_clip_fraction", "response_length",
                 "eos_fraction", "reward_std", "generate_seconds", "score_seconds", "train_seconds", "ratio_max", "lr",
                 "kl_coef", "policy_loss", "value_loss", "samples_per_second", "reward_minus_kl"):  # fmt: skip
        assert len(metrics(told, name)) == 40, name
    assert metrics(told, "kl")[0] == pytest.approx(0, abs=1e-4)  # the actor starts as the reference
    tables = [event for event in told if event["event"] == "sample"]
    assert [table["title"] for table in tables] == ["step 1", "step 10", "step 20", "step 30", "step 40"]
    kept = [json.loads(line) for line in (files / "run" / "samples.jsonl").read_text().splitlines()]
    assert len(kept) == 20 and set(kept[-1]["completion"]) <= {"a"}
    assert (files / "run" / "model" / "model.safetensors").exists()
    assert (files / "run" / "critic" / "config.json").exists()


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(run_dir / "model" / "model.safetensors")


@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_resume_is_bitwise(model: Path, files: Path, lora: dict[str, int] | None) -> None:
    common: dict[str, Any] = {
        "kl": {"controller": "adaptive", "target": 0.1, "horizon": 50},
        "reward": {"normalize": "running"},
        "ptx": {"data": [str(files / "text.jsonl")], "coef": 0.1, "batch_size": 2},
        "lora": lora,
    }
    rows = [{"messages": [{"role": "user", "content": a}, {"role": "assistant", "content": a * 3}]} for a in LETTERS]
    (files / "text.jsonl").write_text("\n".join(map(json.dumps, rows)))
    steps = {"max_steps": 5, "epochs": 10, "lr_schedule": "constant"}
    whole = start(model, files, run_dir=str(files / "whole"), train=steps, **common)
    cut = str(files / "cut")
    start(model, files, run_dir=cut, train={**steps, "max_steps": 2}, checkpoint={"at_end": True}, **common)
    resumed = start(model, files, run_dir=cut, train=steps, resume="auto", **common)
    for name in ("reward", "kl", "policy_loss", "value_loss", "kl_coef", "entropy", "shaped_reward", "ptx_loss"):
        assert metrics(resumed, name)[-3:] == metrics(whole, name)[-3:], name
    one, other = weights(files / "whole"), weights(files / "cut")
    assert all(torch.equal(one[name], other[name]) for name in one)
    if lora:
        assert (files / "cut" / "adapter" / "adapter_config.json").exists()


def test_engine_log_probs_pass_their_check_and_ratio_starts_at_one(model: Path, files: Path, capsys: Any) -> None:
    told = start(model, files, train={"max_steps": 1, "minibatch_size": 8})
    assert "they are used as they are" in capsys.readouterr().out
    assert metrics(told, "ratio_max")[0] == pytest.approx(1, abs=1e-4)
    assert metrics(told, "clip_fraction")[0] == 0
    told = start(model, files, run_dir=str(files / "strict"), train={"max_steps": 1, "logprob_tolerance": 1e-12})
    assert "scored again by the trainer" in capsys.readouterr().out


def test_several_completions_of_one_prompt_are_different_draws(model: Path, files: Path) -> None:
    start(
        model, files,
        train={
            "max_steps": 1, "rollout_batch_size": 12, "minibatch_size": 12, "samples_per_prompt": 3, "sample_rows": 12,
        },
    )  # fmt: skip
    rows = [json.loads(line) for line in (files / "run" / "samples.jsonl").read_text().splitlines()]
    assert [row["row"] for row in rows[::3]] == [row["row"] for row in rows[1::3]]
    assert len({row["row"] for row in rows}) == 4
    assert len({row["completion"] for row in rows}) > 6


def test_the_critic_may_learn_alone_at_first(model: Path, files: Path) -> None:
    told = start(model, files, train={"critic_warmup_steps": 2, "max_steps": 4, "lr": 1e-2})
    kl = metrics(told, "kl")
    assert kl[:3] == pytest.approx([0, 0, 0], abs=1e-5)
    assert abs(kl[3]) > 1e-4
    assert len(metrics(told, "value_loss")) == 4


def test_a_loss_that_is_no_number_ends_the_run_by_name(model: Path, files: Path) -> None:
    with pytest.raises(NanLoss, match=r"step 1.*Lower train\.lr"):
        start(model, files, train={"lr": 1e30})


@pytest.mark.parametrize(("verb", "done"), [("report", 1), ("roll_out", 0)])
def test_a_stop_saves_what_a_resume_needs(
    model: Path, files: Path, monkeypatch: pytest.MonkeyPatch, verb: str, done: int
) -> None:
    """Asked after a step or in the middle of one: the resumed run ends as one that was never stopped."""
    whole = start(model, files, run_dir=str(files / "whole"))
    original = getattr(ppo.PPO, verb)

    def then_ask(self: ppo.PPO, *args: Any) -> Any:
        result = original(self, *args)
        self.run.stop.set()  # what the signal handler does
        return result

    with monkeypatch.context() as patch:
        patch.setattr(ppo.PPO, verb, then_ask)
        with pytest.raises(Stopped, match=f"step {done} of 3"):
            start(model, files)
    told = start(model, files, resume="auto")
    for name in ("reward", "policy_loss", "value_loss"):
        assert metrics(told, name) == metrics(whole, name), name


def test_a_reward_that_is_no_number_names_the_row_and_saves_what_was_done(model: Path, files: Path) -> None:
    with pytest.raises(RewardFailed, match=r"prompts\.jsonl:\d+.*not a finite number"):
        start(model, files, reward={"function": f"{files}/my_rewards.py:fails_later"})
    assert (files / "run" / "checkpoints" / "step-2" / "trainer" / "state.json").exists()
    told = start(model, files, resume="auto")  # with a function that works
    assert [event["step"] for event in told if event["event"] == "metrics"] == [1, 2, 3]


def test_a_reward_that_raises_is_told_with_its_row(model: Path, files: Path) -> None:
    with pytest.raises(RewardFailed, match=r"Row prompts\.jsonl:\d+ .*KeyError.*no such field"):
        start(model, files, reward={"function": f"{files}/my_rewards.py:raises"})


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"generation": {"max_new_tokens": 64}}, ConfigError, "reads 64 tokens in all"),
        ({"generation": {"top_k": 5}}, ConfigError, "top_k"),
        ({"generation": {"temperature": 0}}, ConfigError, "temperature above 0"),
        ({"train": {"max_prompt_length": 2}}, DataError, "prompts.jsonl:3"),
        ({"reward": {"function": None}}, ConfigError, "reward needs"),
        ({"strategy": "colossalai_3d"}, ConfigError, "PPO generates"),
    ],
)
def test_what_cannot_work_is_refused_in_words(
    model: Path, files: Path, changes: dict[str, Any], error: type[TrainingError], words: str
) -> None:
    with pytest.raises(error, match=words):
        start(model, files, **changes)


def test_long_prompts_are_left_out_when_told_to(model: Path, files: Path) -> None:
    data = {"sources": [str(files / "prompts.jsonl")], "max_left_out": 0.5}
    start(model, files, data=data, train={"max_prompt_length": 2, "long_prompts": "drop", "max_steps": 1})


def test_a_causal_model_is_no_reward_model(model: Path, files: Path) -> None:
    with pytest.raises(MissingInput, match="no reward model"):
        start(model, files, reward={"function": None, "model": str(model)})
