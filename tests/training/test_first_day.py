"""A template that writes the date writes the run's first day, so that a run goes on tomorrow as if it were today."""

from __future__ import annotations

import datetime as calendar
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.training import test_ppo_stage as small_ppo
from tests.training.making import losses, make_model, make_rows, settings
from training import cli
from training.config.load import load_config
from training.data.template import TextCodec
from training.loop import run as loop_run
from training.stages import ppo

DATED = "{{ strftime_now('%d%b') | lower }} {% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}"


class Yesterday(calendar.datetime):
    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return calendar.datetime(2024, 7, 26, 23, 59)


def dated(folder: Path, template: str) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


def test_sft_goes_on_the_next_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = dated(make_model(tmp_path / "model"), DATED), make_rows(tmp_path / "rows.jsonl", "sft", 40)

    def options(name: str, *more: str) -> list[str]:
        return ["sft", *settings("sft", model, rows, tmp_path / name, max_steps=4, tokens_per_batch=128), *more]

    with monkeypatch.context() as patch:
        patch.setattr(loop_run, "datetime", Yesterday)
        assert cli.main(options("whole", "checkpoint.every=2")) == 0
    whole = losses(tmp_path / "whole")
    again = options("half", f"resume={tmp_path / 'whole' / 'checkpoints' / 'step-2'}")
    assert cli.main(again) == 0  # today, in a run folder of its own
    assert losses(tmp_path / "half") == whole[2:]
    assert (tmp_path / "half" / "first_day").read_text() == "2024-07-26\n"
    assert cli.main(options("other", "data.date=2024-07-26")) == 0
    assert losses(tmp_path / "other") == whole
    assert cli.main(options("today")) == 0
    assert losses(tmp_path / "today") != whole


def test_ppo_goes_on_the_next_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_ppo.write_files(tmp_path)
    letters = "abcdefgh0123456789"
    template = "{{ strftime_now('%d') }}" + small_ppo.TEMPLATE
    model = dated(small_ppo.make_model(tmp_path / "actor", letters=letters), template)
    tree = small_ppo.settings(model, tmp_path, checkpoint={"every": 1}, train={"max_steps": 2})
    with monkeypatch.context() as patch:
        patch.setattr(loop_run, "datetime", Yesterday)
        ppo.run(
            load_config("ppo", {**tree, "train": {**tree["train"], "max_steps": 1}, "checkpoint": {"at_end": True}})
        )
    ppo.run(load_config("ppo", {**tree, "resume": "auto"}))
    assert len(small_ppo.metrics(small_ppo.events(tmp_path / "run"), "loss")) == 2
    codec = TextCodec.load(model, today=calendar.datetime(2024, 7, 26))
    assert codec.render([{"role": "user", "content": "a"}]) == "26a"


def test_a_day_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sft", "--check", "model=m", "data.sources=[a.jsonl]", "data.date=tomorrow"]) == 64
    assert "date is 'tomorrow': write it as 2024-07-26" in capsys.readouterr().err


def test_chatml_is_given_to_a_base_model_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The embeddings grow, the tokens are learned, and what is exported is a chat model with them."""
    from training.models.load import load_causal_lm

    model, rows = make_model(tmp_path / "model"), make_rows(tmp_path / "rows.jsonl", "sft", 8)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_tokens([f"<filler {n}>" for n in range(384 - len(tokenizer))])  # no spare embeddings are left
    tokenizer.save_pretrained(model)
    options = ["sft", *settings("sft", model, rows, tmp_path / "run", max_steps=2), "data.template=chatml"]
    assert cli.main(options) == 64
    assert "chatml uses <|im_start|> <|im_end|>, which the tokenizer of" in capsys.readouterr().err
    assert cli.main([*options, "data.add_special_tokens=true", "lora=4"]) == 64
    assert "remove lora" in capsys.readouterr().err
    assert cli.main([*options, "data.add_special_tokens=true"]) == 0
    assert "added to the tokenizer: <|im_start|> <|im_end|>" in capsys.readouterr().out
    codec = TextCodec.load(tmp_path / "run" / "model")
    assert codec.tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"]) == [384, 385]
    assert load_causal_lm(str(tmp_path / "run" / "model")).get_input_embeddings().num_embeddings == 386
    assert codec.stop_ids[0] == 385 and codec.encode_prompt([{"role": "user", "content": "red"}]).count(384) == 2
