"""Models and data by their hub ids, from a mirror that HF_ENDPOINT names."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.training.hub_server import Hub, serve_hub
from tests.training.making import environment, losses, make_model, make_rows, train
from training.hub import hub_refusal

RUN = ["strategy=naive", "log.every=1", "log.tensorboard=false", "train.max_steps=2",
       "train.max_length=64", "train.tokens_per_batch=128"]  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and a data set of two splits, laid out as on the hub."""
    root = tmp_path_factory.mktemp("hub")
    make_model(root / "models" / "acme" / "tiny")
    data = root / "datasets" / "acme" / "rows"
    (data / "data").mkdir(parents=True)
    make_rows(data / "data" / "train-00000.jsonl", "sft", count=24)
    make_rows(data / "data" / "test-00000.jsonl", "sft", count=5, seed=1)
    (data / "README.md").write_text("# rows")
    return root


@pytest.fixture
def hub(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve_hub(root) as hub:
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setenv("NAVARCH_CACHE_DIR", str(tmp_path / "cache"))
        yield hub


def test_a_run_fetches_its_model_and_the_train_split_from_the_mirror(hub: Hub, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    done = train("sft", ["model=hf:acme/tiny", "data=hf:acme/rows", f"run_dir={run_dir}", *RUN])
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(losses(run_dir)) == 2 and "24 rows" in done.stdout
    assert json.loads((run_dir / "model" / "config.json").read_text())["vocab_size"] == 384
    fetched = [asked for asked in hub.asked if asked.startswith("GET ")]
    assert any("/acme/tiny/resolve/" in asked and asked.endswith("model.safetensors") for asked in fetched), fetched
    assert not any("test-00000" in asked for asked in fetched), "the other split was fetched too"


def test_what_the_mirror_does_not_have_is_named_with_the_mirror(hub: Hub, tmp_path: Path) -> None:
    for changed, name in (("model=hf:acme/absent", "acme/absent"), ("data=hf:acme/nothing", "acme/nothing")):
        overrides = ["model=hf:acme/tiny", "data=hf:acme/rows", f"run_dir={tmp_path / 'run'}", *RUN, changed]
        done = train("sft", overrides)
        assert done.returncode in (64, 66), done.stdout + done.stderr
        error = done.stderr.strip().splitlines()[-1]
        assert error.startswith("error: ") and name in error and hub.url in error, error


def test_a_mirror_that_does_not_answer_is_told_from_a_broken_model() -> None:
    """transformers hides the cause behind an error of its own; huggingface_hub tries again for most of a minute."""
    try:
        try:
            raise requests.ConnectionError("refused")
        except requests.ConnectionError as cause:
            raise OSError("We couldn't connect to 'https://huggingface.co'") from cause
    except OSError as error:
        refusal = hub_refusal("hf:acme/tiny", error)
        assert refusal is not None and "it does not answer. Set HF_ENDPOINT" in str(refusal)
        assert hub_refusal("/models/tiny", error) is None
    assert hub_refusal("hf:acme/tiny", ValueError("a broken config")) is None


def test_a_gated_repository_needs_the_token(
    root: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve_hub(root, token="hf_secret") as gated:
        monkeypatch.setenv("HF_ENDPOINT", gated.url)
        overrides = ["model=hf:acme/tiny", "data=hf:acme/rows", f"run_dir={tmp_path / 'run'}", *RUN]
        refused = train("sft", overrides)
        assert refused.returncode in (64, 66) and "HF_TOKEN" in refused.stderr, refused.stdout + refused.stderr
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        done = train("sft", overrides)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("mirror", ["closed", "silent"])
def test_a_dead_mirror_is_told_within_seconds_unless_the_cache_has_everything(
    mirror: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = ["model=hf:acme/tiny", "data=hf:acme/rows", f"run_dir={tmp_path / 'run'}", *RUN]
    if mirror == "closed":
        done = train("sft", overrides)
        assert done.returncode == 0, done.stdout + done.stderr
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it accepts, and never says anything
        port = silent.getsockname()[1] if mirror == "silent" else 9
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
        if mirror == "closed":
            done = train("sft", [*overrides, "resume=none"])
            assert done.returncode == 0, done.stdout + done.stderr
            assert f"http://127.0.0.1:{port} does not answer: only what is cached can be used." in done.stderr
            monkeypatch.setenv("HF_HOME", str(tmp_path / "empty"))
        began = time.monotonic()
        done = train("sft", overrides)
        assert time.monotonic() - began < 40  # ten seconds, imports, and a busy machine; it was a minute
        assert done.returncode == 66, done.stdout + done.stderr
        error = done.stderr.strip().splitlines()[-1]
        assert error.startswith("error: Could not fetch the ") and f"127.0.0.1:{port}" in error, error


def test_a_hub_model_stops_where_its_generation_config_says(root: Path, hub: Hub) -> None:
    chat = make_model(root / "models" / "acme" / "chat")
    settings = json.loads((chat / "tokenizer_config.json").read_text())
    settings["chat_template"] = "{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}"
    (chat / "tokenizer_config.json").write_text(json.dumps(settings))
    (chat / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7, 9]}))
    code = "from training.data.template import TextCodec; print(TextCodec.load('hf:acme/chat').stop_ids)"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(2, 7, 9)"
