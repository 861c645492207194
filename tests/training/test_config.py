"""Configuration files: every mistake is named with its path and, where there is one, the nearest right word."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from training.config.load import load_config
from training.config.stages import TrainConfig
from training.config.tree import config_dict
from training.errors import ConfigError, MissingInput
from training.loop.schedule import learning_rate_schedule, total_steps

BASE: dict[str, Any] = {"model": "m", "data": ["rows.json"]}


def test_defaults_and_shorthands() -> None:
    config = load_config("sft", {**BASE, "strategy": "colossalai_zero2", "lora": 8, "samples": ["Hello?"]})
    assert config.strategy.name == "colossalai_zero2"
    assert config.data.sources[0].path == "rows.json"
    assert (config.lora.rank, config.lora.scale) == (8, 2.0)
    assert config.samples.prompts == ("Hello?",)
    assert load_config("rm", BASE).train.lr != load_config("dpo", BASE).train.lr


def test_numbers_that_yaml_reads_as_text_become_numbers(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("model: m\ndata: rows.json\ntrain: {lr: 2e-5, betas: [0.9, '0.95'], max_steps: 1e3}\n")
    train = load_config("sft", path).train
    assert (train.lr, train.betas, train.max_steps) == (2e-5, (0.9, 0.95), 1000)


def test_overrides_win_reach_into_lists_and_set_whole_sections() -> None:
    config = load_config(
        "sft",
        {**BASE, "train": {"lr": 1e-3, "lora": {"rank": 4}}, "data": [{"path": "a"}]},
        [
            "train.lr=1e-5",
            "data.0.path=b",
            "lora.targets=[q_proj, v_proj]",
            "strategy={name: naive}",
            "train.compile=off",
        ],
    )
    assert (config.train.lr, config.data.sources[0].path, config.strategy.name) == (1e-5, "b", "naive")
    assert (config.lora.rank, config.lora.targets, config.train.compile) == (4, ("q_proj", "v_proj"), "off")


@pytest.mark.parametrize("data", ["a", ["a"], [{"path": "a"}], {"sources": ["a"]}])
def test_overrides_reach_into_what_was_given_in_short(data: object) -> None:
    given = {**BASE, "data": data, "strategy": "colossalai_zero2"}
    config = load_config("sft", given, ["data.eval_fraction=0.1", "strategy.bucket_mb=32", "data.sources.0=b"])
    assert (config.data.eval_fraction, config.data.sources[0].path) == (0.1, "b")
    assert (config.strategy.name, config.strategy.bucket_mb) == ("colossalai_zero2", 32)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"trian": {}}, "Unknown key trian. Did you mean train?"),
        ({"train": {"learning_rat": 1}}, "Unknown key train.learning_rat."),
        ({"train": {"epoch": 1}}, "Unknown key train.epoch. Did you mean epochs?"),
        ({"train": {"lr": "fast"}}, "train.lr must be a number, not 'fast'"),
        ({"train": {"max_steps": 1.5}}, "train.max_steps must be a whole number"),
        ({"train": {"packing": "maybe"}}, "train.packing must be true or false"),
        ({"train": {"precision": "bf61"}}, "Did you mean bf16?"),
        ({"train": {"lr": -1}}, "train.lr must not be negative"),
        ({"train": {"head_chunk": 0}}, "train.head_chunk must be at least 1, is 0"),
        ({"train": {"tokens_per_batch": 100}}, "a document is never split over micro-batches"),
        ({"train": []}, "train must be a mapping"),
        ({"strategy": {"name": "ddp", "tpp": 2}}, "Unknown key strategy.tpp"),
        ({"lora": {"rank": 0}}, "lora.rank must be at least 1"),
        ({"lora": {"rank": 4}, "train": {"lora": {"rank": 4}}}, "lora is given twice"),
        ({"data": [{"path": "a", "wieght": 2}]}, "Did you mean weight?"),
        ({"model": None}, "model must be text"),
        ({"type": "rm"}, "This file describes a rm run"),
    ],
)
def test_a_mistake_is_named(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("sft", {**BASE, **change})
    assert said in str(caught.value)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ConfigError, match="model is missing"):
        load_config("sft", {"data": ["a"]})
    with pytest.raises(MissingInput, match="There is no configuration file"):
        load_config("sft", "/nonexistent/run.yaml")
    with pytest.raises(ConfigError, match="adapter_off needs a lora section"):
        load_config("dpo", {**BASE, "dpo": {"reference": "adapter_off"}})


def test_broken_yaml_is_placed(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("model: m\ntrain: {lr: 1\n")
    with pytest.raises(ConfigError, match=r"run\.yaml, line \d+"):
        load_config("sft", path)


@pytest.mark.parametrize("override", ["train.lr", "=3", "data.7.path=x", "model.name=x"])
def test_a_bad_override_is_refused(override: str) -> None:
    with pytest.raises(ConfigError):
        load_config("sft", BASE, [override])


def test_a_config_survives_the_way_through_a_manifest() -> None:
    config = load_config("sft", {**BASE, "lora": {"rank": 4, "targets": ["q_proj"]}})
    assert load_config("sft", config_dict(config)) == config


def test_schedules_against_their_formulas() -> None:
    cosine = learning_rate_schedule(TrainConfig(lr=1.0, warmup=2, min_lr=0.1), 12)
    assert [cosine(0), cosine(1), cosine(2)] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert cosine(7) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 0.5)))
    assert cosine(12) == pytest.approx(0.1)
    linear = learning_rate_schedule(TrainConfig(lr=1.0, warmup=0.0, lr_schedule="linear"), 10)
    assert [linear(0), linear(5), linear(9)] == pytest.approx([1.0, 0.5, 0.1])
    constant = learning_rate_schedule(TrainConfig(lr=1.0, warmup=0.5, lr_schedule="constant"), 4)
    assert [constant(step) for step in range(4)] == pytest.approx([1 / 3, 2 / 3, 1.0, 1.0])


def test_steps_come_from_max_steps_or_epochs() -> None:
    assert total_steps(TrainConfig(max_steps=7), 3) == 7
    assert total_steps(TrainConfig(epochs=2.5), 4) == 10
    assert total_steps(TrainConfig(epochs=0.01), 4) == 1


def test_the_loss_takes_smaller_chunks_where_memory_counts() -> None:
    assert TrainConfig().loss_chunk == 8192
    assert TrainConfig(activation_checkpointing="full").loss_chunk == 4096
    assert TrainConfig(activation_checkpointing="full", head_chunk=8192).loss_chunk == 8192
