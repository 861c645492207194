"""Parts of serving by themselves: text that grows, adapters that merge, reward models that score."""

from __future__ import annotations

import concurrent.futures
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from tests.training.test_serving import make_folder
from training.config.serving import ServeConfig
from training.data.template import TextCodec
from training.errors import ConfigError, MissingInput
from training.models.export import save_reward_model
from training.models.heads import RewardModel
from training.serving.loading import load_served, merge_adapter
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


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_an_adapter_merges_to_the_same_logits_as_peft(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config: Any = (
        LlamaConfig(vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
        if kind == "llama"
        else GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4)
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    plain = AutoModelForCausalLM.from_config(config).eval()
    plain.load_state_dict(model.state_dict())
    targets = ["q_proj", "down_proj"] if kind == "llama" else ["c_attn"]
    adapted = get_peft_model(
        model,
        LoraConfig(r=4, lora_alpha=12, target_modules=targets, fan_in_fan_out=kind == "gpt2", init_lora_weights=False),
    ).eval()
    adapted.save_pretrained(str(tmp_path / "adapter"))
    ids = torch.arange(20)[None]
    expected = adapted(ids).logits
    assert (plain(ids).logits - expected).abs().max() > 1e-3
    assert merge_adapter(plain, tmp_path / "adapter") == (4 if kind == "llama" else 2)
    torch.testing.assert_close(plain(ids).logits, expected, atol=1e-4, rtol=1e-4)


def test_an_adapter_that_is_not_there_or_does_not_fit_is_named(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_config(GPT2Config(vocab_size=50, n_embd=32, n_layer=1, n_head=4))
    with pytest.raises(MissingInput, match="no LoRA adapter"):
        merge_adapter(model, tmp_path)
    other = AutoModelForCausalLM.from_config(GPT2Config(vocab_size=50, n_embd=32, n_layer=3, n_head=4))
    get_peft_model(other, LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True)).save_pretrained(
        str(tmp_path)
    )
    with pytest.raises(ConfigError, match=r"h\.1\.attn\.c_attn"):
        merge_adapter(model, tmp_path)


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
