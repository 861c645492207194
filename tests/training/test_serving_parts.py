"""Parts of serving by themselves: text that grows, reward models that score."""

from __future__ import annotations

import concurrent.futures
from pathlib import Path

import httpx
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.training.test_serving import make_folder
from training.config.serving import ServeConfig
from training.data.template import TextCodec
from training.errors import ConfigError, MissingInput
from training.models.export import save_reward_model
from training.models.heads import RewardModel
from training.serving.loading import load_served
from training.serving.server import serve_in_thread
from training.serving.streaming_text import TextStream


def decode(ids: list[int]) -> str:
    return bytes(ids).decode("utf-8", "replace")


def feed(text: str, stop: tuple[str, ...] = (), size: int = 1) -> tuple[list[str], TextStream]:
    stream = TextStream(decode, stop)
    data = list(text.encode())
    pieces = [stream.add(data[i : i + size], last=i + size >= len(data)) for i in range(0, len(data), size)]
    return pieces, stream


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_pieces_join_to_the_text_and_never_split_a_character(size: int) -> None:
    text = "Grüße, 世界! 🙂 done"
    pieces, stream = feed(text, size=size)
    assert "".join(pieces) == stream.text == text
    assert not any("�" in piece for piece in pieces)


@pytest.mark.parametrize("size", [1, 2, 5, 50])
def test_nothing_of_a_stop_string_is_ever_shown(size: int) -> None:
    pieces, stream = feed("one STO two STOP three", ("STOP",), size)
    assert "".join(pieces) == stream.text == "one STO two "
    assert stream.stopped and stream.count == len("one STO two STOP")


def test_a_beginning_of_a_stop_string_is_shown_when_the_text_ends() -> None:
    pieces, stream = feed("say STO", ("STOP",))
    assert "".join(pieces) == "say STO" and not stream.stopped and pieces[-1] == "STO"


def score_of(base: str, turns: list[dict[str, str]]) -> float:
    return float(httpx.post(f"{base}/score", json={"messages": turns}).json()["data"][0]["score"])


def test_a_reward_model_scores_as_it_does_alone(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "base")
    codec = TextCodec.load(folder)
    trunk = AutoModelForCausalLM.from_pretrained(folder).base_model
    model = RewardModel(trunk, pad_id=codec.pad_id)
    save_reward_model(tmp_path / "rm", model, model.state_dict(), codec, {})
    conversations = [
        [{"role": "user", "content": "Hi" * n}, {"role": "assistant", "content": "Hello" * (5 - n)}]
        for n in range(1, 5)
    ]
    expected = []
    for turns in conversations:
        tokens = torch.from_numpy(codec.encode_chat(turns).tokens)[None].long()
        hidden = trunk(input_ids=tokens).last_hidden_state[0, -1]
        expected.append((hidden @ model.score.weight[0]).item())
    config = ServeConfig(model=str(tmp_path / "rm"), host="127.0.0.1", port=0)
    thread, server = serve_in_thread(config, load_served(config))
    try:
        base = f"http://127.0.0.1:{server.port}"
        answer = httpx.post(f"{base}/score", json={"conversations": conversations}).json()
        assert [entry["score"] for entry in answer["data"]] == pytest.approx(expected, abs=1e-4)
        single = httpx.post(f"{base}/score", json={"messages": conversations[2]}).json()
        assert single["data"][0]["score"] == pytest.approx(expected[2], abs=1e-4)
        with concurrent.futures.ThreadPoolExecutor(8) as pool:  # these share passes
            crowd = list(pool.map(lambda i: score_of(base, conversations[i % 4]), range(24)))
        assert crowd == pytest.approx(expected * 6, abs=1e-4)
        refused = httpx.post(f"{base}/v1/chat/completions", json={"messages": conversations[0]})
        assert refused.status_code == 400 and "reward model" in refused.json()["error"]["message"]
        assert httpx.post(f"{base}/score", json={}).status_code == 400
    finally:
        server.stop()
        thread.join(timeout=30)


def test_a_model_that_cannot_be_served_is_refused_with_what_to_do(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "tiny")
    for config, words in (
        (ServeConfig(model=""), "needs a model"),
        (ServeConfig(model=str(folder), max_length=9999), "context of 512"),
    ):
        with pytest.raises(ConfigError, match=words):
            load_served(config)
    with pytest.raises(MissingInput, match="nowhere"):
        load_served(ServeConfig(model=str(tmp_path / "nowhere")))
