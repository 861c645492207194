"""The model server through OpenAI's own client: same tokens as the engine, streams, limits, errors, drain."""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from training.config.generation import GenerationConfig
from training.config.serving import ServeConfig
from training.data.template import TextCodec
from training.errors import TrainingError
from training.rollout import RolloutEngine
from training.rollout.decoder import Decoder
from training.rollout.engine import row_seed
from training.serving.loading import load_served
from training.serving.server import ModelServer, serve_in_thread
from training.serving.spelling import Spelling

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SLOTS, LENGTH = 4, 256


def make_folder(folder: Path, seed: int = 0) -> Path:
    """A tiny LLaMA with a byte-level tokenizer and a ChatML template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {token: i for i, token in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|pad|>", additional_special_tokens=special[1:2]
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.3, bos_token_id=None, eos_token_id=2,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ModelServer]:
    config = ServeConfig(
        model=str(folder),
        host="127.0.0.1",
        port=0,
        max_batch=SLOTS,
        max_length=LENGTH,
        max_queue=100,
        max_new_tokens=64,
    )
    thread, server = serve_in_thread(config, load_served(config))
    yield server
    server.stop()
    thread.join(timeout=30)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def client(server: ModelServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def codec(folder: Path) -> TextCodec:
    return TextCodec.load(folder)


def engine_text(
    server: ModelServer, messages: list[dict[str, str]], seed: int | None = None, **options: Any
) -> tuple[str, int]:
    """What the engine alone says: (text, tokens). A fresh load, so that nothing is shared with the server."""
    codec = server.served.codec
    model = load_served(server.config).model
    engine = RolloutEngine(model, stop_ids=codec.stop_ids, decode=codec.decode, max_batch=1, max_length=LENGTH)
    config = GenerationConfig(**{"temperature": 0, **options})
    seeds = None if seed is None else [row_seed(seed, 0)]
    rollout = engine.generate([codec.encode_prompt(messages)], config, seeds=seeds)
    tokens = rollout.response(0)
    return codec.decode(tokens[:-1] if tokens[-1] in codec.stop_ids else tokens), len(tokens)


def say(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_a_greedy_chat_is_what_the_engine_says(server: ModelServer, client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny", messages=say("Hi there"), temperature=0, max_tokens=40)
    text, count = engine_text(server, say("Hi there"), max_new_tokens=40)
    assert answer.choices[0].message.content == text
    assert answer.usage is not None and answer.usage.completion_tokens == count
    assert answer.usage.prompt_tokens == len(server.served.codec.encode_prompt(say("Hi there")))
    assert answer.choices[0].finish_reason == ("length" if count == 40 else "stop")


def test_64_concurrent_streams_say_what_the_engine_says_alone(server: ModelServer, client: openai.OpenAI) -> None:
    def ask(number: int) -> tuple[str, int]:
        parts, usage = [], None
        stream = client.chat.completions.create(
            model="tiny", messages=say(f"number {number} " * (1 + number % 3)), temperature=0,
            max_tokens=8 + number % 9, stream=True, stream_options={"include_usage": True},
        )  # fmt: skip
        for event in stream:
            parts += [choice.delta.content or "" for choice in event.choices]
            usage = event.usage or usage
        assert usage is not None
        return "".join(parts), usage.completion_tokens

    with concurrent.futures.ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(ask, range(64)))
    codec = server.served.codec
    model = load_served(server.config).model
    engine = RolloutEngine(model, stop_ids=codec.stop_ids, max_batch=1, max_length=LENGTH)
    for number, (text, count) in enumerate(answers):
        prompt = codec.encode_prompt(say(f"number {number} " * (1 + number % 3)))
        tokens = engine.generate([prompt], GenerationConfig(temperature=0, max_new_tokens=8 + number % 9)).response(0)
        shown = tokens[:-1] if tokens[-1] in codec.stop_ids else tokens
        assert (text, count) == (codec.decode(shown), len(tokens)), f"stream {number}"


def test_a_seed_gives_the_same_sample_alone_and_in_a_crowd(server: ModelServer, client: openai.OpenAI) -> None:
    def ask(seed: int) -> str:
        answer = client.chat.completions.create(
            model="tiny", messages=say("Tell me"), temperature=0.9, top_p=0.95, seed=seed, max_tokens=24
        )
        return answer.choices[0].message.content or ""

    alone = ask(7)
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        crowd = list(pool.map(ask, [7, 1, 2, 7, 3, 4, 7, 5, 6, 8, 9, 7]))
    assert [crowd[place] for place in (0, 3, 6, 11)] == [alone] * 4
    assert len(set(crowd)) == 9
    assert alone == engine_text(server, say("Tell me"), seed=7, temperature=0.9, top_p=0.95, max_new_tokens=24)[0]


def test_stop_strings_end_the_text_before_them_streamed_or_not(server: ModelServer, client: openai.OpenAI) -> None:
    text, _ = engine_text(server, say("Stop me"), max_new_tokens=60)
    word = text[20:23]
    at = text.find(word)
    plain = client.chat.completions.create(
        model="tiny", messages=say("Stop me"), temperature=0, max_tokens=60, stop=word
    )
    assert plain.choices[0].message.content == text[:at] and plain.choices[0].finish_reason == "stop"
    events = list(
        client.chat.completions.create(
            model="tiny", messages=say("Stop me"), temperature=0, max_tokens=60, stop=[word, "never"], stream=True
        )
    )
    assert "".join(event.choices[0].delta.content or "" for event in events) == text[:at]
    assert events[-1].choices[0].finish_reason == "stop"


def test_logprobs_are_those_of_the_model(server: ModelServer, client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=say("Numbers"), temperature=0, max_tokens=12, logprobs=True, top_logprobs=3
    )
    found = answer.choices[0].logprobs
    assert found is not None and found.content is not None and answer.usage is not None
    assert len(found.content) == answer.usage.completion_tokens
    prompt = server.served.codec.encode_prompt(say("Numbers"))
    model = load_served(server.config).model
    codec = server.served.codec
    spelling = Spelling(codec)
    tokens = RolloutEngine(model, stop_ids=codec.stop_ids, max_length=LENGTH).generate(
        [prompt], GenerationConfig(temperature=0, max_new_tokens=12)
    ).response(0)  # fmt: skip
    logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
    for place, (token, row) in enumerate(zip(tokens, logits, strict=True)):
        entry = found.content[place]
        assert (bytes(entry.bytes or []), entry.token) == spelling(token)
        assert entry.logprob == pytest.approx(float(row[token]), abs=1e-3)
        assert [top.logprob for top in entry.top_logprobs] == pytest.approx(row.topk(3).values.tolist(), abs=1e-3)


def test_plain_completions_take_texts_tokens_and_several_at_once(server: ModelServer, client: openai.OpenAI) -> None:
    both = client.completions.create(model="tiny", prompt=["one two", "three"], temperature=0, max_tokens=8, logprobs=2)
    ids = server.served.codec.tokenizer("three")["input_ids"]
    again = client.completions.create(model="tiny", prompt=ids, temperature=0, max_tokens=8)
    assert [choice.index for choice in both.choices] == [0, 1]
    assert both.choices[1].text == again.choices[0].text
    assert both.usage is not None and both.usage.prompt_tokens == 7 + 5
    assert both.choices[0].logprobs is not None and len(both.choices[0].logprobs.tokens or []) <= 8


def test_n_gives_different_samples_of_one_prompt(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny", messages=say("Go"), n=5, seed=3, max_tokens=12)
    texts = [choice.message.content for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == list(range(5)) and len(set(texts)) == 5
    stream = client.chat.completions.create(model="tiny", messages=say("Go"), n=5, seed=3, max_tokens=12, stream=True)
    parts = [""] * 5
    for event in stream:
        for choice in event.choices:
            parts[choice.index] += choice.delta.content or ""
    assert parts == texts


def test_what_cannot_be_done_is_an_openai_error(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="'gpt-9' does not exist"):
        client.chat.completions.create(model="gpt-9", messages=say("x"))
    with pytest.raises(openai.BadRequestError, match="context is 256 tokens") as caught:
        client.chat.completions.create(model="tiny", messages=say("x"), max_tokens=1000)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="context is 256 tokens"):
        client.chat.completions.create(model="tiny", messages=say("x" * 300))
    with pytest.raises(openai.BadRequestError, match="temperature") as caught:
        client.chat.completions.create(model="tiny", messages=say("x"), temperature=-1)
    assert caught.value.param == "temperature"
    with pytest.raises(openai.BadRequestError, match="not supported"):
        client.chat.completions.create(model="tiny", messages=say("x"), frequency_penalty=0.5)
    with pytest.raises(openai.BadRequestError, match="outside"):
        client.completions.create(model="tiny", prompt=[5, 100000])
    with pytest.raises(openai.BadRequestError, match="messages"):
        client.chat.completions.create(model="tiny", messages=[])
    with pytest.raises(openai.BadRequestError, match="reward"):
        client.post("/../score", body={"messages": say("x")}, cast_to=object)


def test_models_health_and_metrics(server: ModelServer, client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "navarch"
    base = f"http://127.0.0.1:{server.port}"
    assert httpx.get(f"{base}/health").json()["status"] == "ok"
    client.chat.completions.create(model="tiny", messages=say("count"), max_tokens=5, temperature=0)
    text = httpx.get(f"{base}/metrics").text
    for name in ("ttft_seconds_count", "generated_tokens_total", "requests_total", "waiting", "tokens_per_second"):
        assert f"navarch_serve_{name}" in text
    assert (
        httpx.post(f"{base}/v1/chat/completions", content=b"{nonsense").json()["error"]["type"]
        == "invalid_request_error"
    )


def wait_for_load(server: ModelServer, load: tuple[int, int]) -> None:
    deadline = time.monotonic() + 20
    while True:
        health = httpx.get(f"http://127.0.0.1:{server.port}/health").json()
        if (health["running"], health["waiting"]) == load:
            return
        assert time.monotonic() < deadline, f"load stays at {health}, not {load}"
        time.sleep(0.02)


def test_a_client_that_goes_frees_its_slot(server: ModelServer, client: openai.OpenAI) -> None:
    base = f"http://127.0.0.1:{server.port}"
    body = {"messages": say("Long"), "max_tokens": 200, "temperature": 1.5, "stream": True, "logit_bias": None}
    with httpx.stream("POST", f"{base}/v1/chat/completions", json=body) as answer:
        next(answer.iter_lines())
    wait_for_load(server, (0, 0))
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.05).chat.completions.create(
            model="tiny", messages=say("Long"), max_tokens=200, temperature=1.5, n=64
        )
    wait_for_load(server, (0, 0))


def test_overload_is_refused_with_retry_after(folder: Path) -> None:
    config = ServeConfig(model=str(folder), host="127.0.0.1", port=0, max_batch=2, max_length=LENGTH, max_queue=1)
    thread, server = serve_in_thread(config, load_served(config))
    try:
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="x", max_retries=0)
        with pytest.raises(openai.RateLimitError) as caught:
            client.chat.completions.create(model="tiny", messages=say("x"), n=4, max_tokens=5)
        assert int(caught.value.response.headers["retry-after"]) >= 1
        answer = client.chat.completions.create(model="tiny", messages=say("x"), n=3, max_tokens=5, seed=1)
        assert len(answer.choices) == 3, "two slots and one place in the queue take three"
    finally:
        server.stop()
        thread.join(timeout=30)


def test_a_key_is_asked_for_when_one_is_set(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINY_KEY", "sesame")
    config = ServeConfig(
        model=str(folder), host="127.0.0.1", port=0, max_batch=1, max_length=64, api_key_env="TINY_KEY"
    )
    thread, server = serve_in_thread(config, load_served(config))
    try:
        base = f"http://127.0.0.1:{server.port}/v1"
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=base, api_key="wrong", max_retries=0).models.list()
        assert openai.OpenAI(base_url=base, api_key="sesame", max_retries=0).models.list().data
    finally:
        server.stop()
        thread.join(timeout=30)


def test_a_failing_device_ends_every_request_and_the_server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ServeConfig(model=str(folder), host="127.0.0.1", port=0, max_batch=2, max_length=64)
    server = ModelServer(config, load_served(config))
    ended: list[BaseException] = []

    def run() -> None:
        try:
            server.run(signals=False)
        except TrainingError as error:
            ended.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while not server.ready:
        time.sleep(0.01)

    def fail(*_: object) -> None:
        raise RuntimeError("the device has gone")

    monkeypatch.setattr(Decoder, "steps", fail)
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="x", max_retries=0)
    with pytest.raises(openai.InternalServerError, match="the device has gone"):
        client.chat.completions.create(model="tiny", messages=say("x"), max_tokens=5)
    thread.join(timeout=30)
    assert ended and "the device has gone" in str(ended[0])


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_a_quantized_model_is_served(folder: Path, quantize: Any) -> None:
    config = ServeConfig(
        model=str(folder), host="127.0.0.1", port=0, max_batch=2, max_length=64, quantize=quantize, group=32
    )
    thread, server = serve_in_thread(config, load_served(config))
    try:
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="x", max_retries=0)
        answer = client.chat.completions.create(model="tiny", messages=say("x"), max_tokens=5, temperature=0)
        assert answer.choices[0].message.content == engine_text(server, say("x"), max_new_tokens=5)[0]
    finally:
        server.stop()
        thread.join(timeout=30)
