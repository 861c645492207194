"""What a request may say: every field is used or refused by name; log-probs are the model's, bytes are the text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from tests.training.data_making import tokenizer_folder
from tests.training.test_serving import LENGTH, SLOTS, make_folder, say
from training.config.serving import ServeConfig
from training.data.template import TextCodec
from training.serving.loading import load_served
from training.serving.server import ModelServer, serve_in_thread
from training.serving.spelling import Speller, Spelling
from training.serving.streaming_text import TextStream


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ModelServer]:
    config = ServeConfig(model=str(folder), host="127.0.0.1", port=0, max_batch=SLOTS, max_length=LENGTH)
    thread, server = serve_in_thread(config, load_served(config))
    yield server
    server.stop()
    thread.join(timeout=30)


def post(server: ModelServer, route: str = "chat/completions", **body: Any) -> httpx.Response:
    asked = {"messages": say("Hi"), "max_tokens": 6} if route == "chat/completions" else {"prompt": "Hi"}
    return httpx.post(f"http://127.0.0.1:{server.port}/v1/{route}", json={**asked, **body}, timeout=60)


def refusal(answer: httpx.Response) -> tuple[str | None, str]:
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    return error["param"], error["message"]


@pytest.mark.parametrize(
    ("field", "hint"),
    [
        ({"temprature": 0.2}, "Did you mean temperature?"),
        ({"maxtokens": 1}, "Did you mean max_tokens?"),
        ({"repitition_penalty": 1.3}, "Did you mean repetition_penalty?"),
        ({"stop_token_ids": [5]}, ""),
        ({"guided_choice": ["yes", "no"]}, ""),
        ({"guided_json": {"type": "object"}}, ""),
        ({"chat_template_kwargs": {"enable_thinking": False}}, ""),
        ({"continue_final_message": True}, ""),
        ({"bad_words": ["a"]}, ""),
        ({"reasoning_effort": "high"}, ""),
    ],
)
def test_a_field_that_nobody_knows_is_refused_by_name(server: ModelServer, field: dict[str, Any], hint: str) -> None:
    for route in ("chat/completions", "completions"):
        param, message = refusal(post(server, route, **field))
        assert param == next(iter(field)) and message.startswith(f"unknown field {param}.") and hint in message


def test_fields_within_fields_are_looked_at_too(server: ModelServer) -> None:
    param, message = refusal(post(server, messages=[{"role": "user", "content": "x", "cache_control": 1}]))
    assert (param, message) == ("messages.0.cache_control", "unknown field messages.0.cache_control")
    assert refusal(post(server, stream_options={"usage": True}))[0] == "stream_options.usage"


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"response_format": {"type": "json_object"}}, "response_format", "not supported"),
        ({"tools": [{"type": "function"}]}, "tools", "not supported"),
        ({"tool_choice": "required"}, "tool_choice", "not supported"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "not supported"),
        ({"top_logprobs": 2}, "top_logprobs", "needs logprobs"),
        ({"min_p": 2}, "min_p", "less than or equal to 1"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages",
            "the text of messages[0] has a part of type 'image_url'; only text parts are possible",
        ),
        ({"messages": [{"role": "user", "content": None}]}, "messages", "messages[0] lacks its text"),
        ({"max_tokens": 5000}, "messages", "context is 256 tokens"),
    ],
)
def test_what_cannot_be_done_is_refused(server: ModelServer, body: dict[str, Any], param: str, words: str) -> None:
    assert refusal(post(server, **body))[0] == param and words in refusal(post(server, **body))[1]


def test_plain_completions_name_their_own_fields(server: ModelServer) -> None:
    assert refusal(post(server, "completions", max_tokens=5000))[0] == "prompt"
    assert refusal(post(server, "completions", prompt="x" * 300))[0] == "prompt"
    assert refusal(post(server, "completions", best_of=3))[0] == "best_of"
    assert refusal(post(server, "completions", echo=True))[0] == "echo"
    assert refusal(post(server, "completions", messages=[]))[0] == "messages"
    assert post(server, "completions", best_of=1, echo=False, suffix=None, n=1).status_code == 200


def test_what_changes_nothing_is_taken(server: ModelServer) -> None:
    plain = post(server, temperature=0).json()["choices"]
    told = post(
        server, temperature=0, response_format={"type": "text"}, tools=[], tool_choice="none", user="me", store=False,
        metadata={"a": "b"}, presence_penalty=0, logit_bias={}, modalities=["text"], parallel_tool_calls=True,
        service_tier="auto", stop=None, n=None, min_p=0,
    )  # fmt: skip
    assert told.status_code == 200 and told.json()["choices"] == plain


def test_a_conversation_with_tools_is_taken(server: ModelServer) -> None:
    """Null content and the tool's answer; this template shows no calls, so one is refused."""
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    asked = [
        *say("Rain?"),
        {"role": "assistant", "content": None},
        {"role": "tool", "tool_call_id": "c1", "content": "no"},
    ]
    answer = post(server, messages=asked)
    assert answer.status_code == 200, answer.text
    codec = server.served.codec
    empty = [asked[0], {"role": "assistant", "content": ""}, {"role": "tool", "content": "no"}]
    assert answer.json()["usage"]["prompt_tokens"] == len(codec.encode_prompt(empty))
    called = [asked[0], {"role": "assistant", "content": None, "tool_calls": [call]}, asked[2]]
    assert "has no place for tool calls (turn 2)" in refusal(post(server, messages=called))[1]


def test_min_p_leaves_out_what_is_unlikely(server: ModelServer) -> None:
    greedy = post(server, temperature=0, max_tokens=20).json()["choices"][0]["message"]["content"]
    hot = {"temperature": 5.0, "seed": 1, "max_tokens": 20}
    assert post(server, **hot, min_p=1.0).json()["choices"][0]["message"]["content"] == greedy
    assert post(server, **hot).json()["choices"][0]["message"]["content"] != greedy


@pytest.mark.parametrize("temperature", [0, 0.3, 2.0])
def test_log_probs_are_the_models_own(server: ModelServer, folder: Path, temperature: float) -> None:
    answer = post(server, temperature=temperature, seed=5, max_tokens=12, logprobs=True, top_logprobs=3).json()
    content = answer["choices"][0]["logprobs"]["content"]
    assert len(content) == answer["usage"]["completion_tokens"] - (answer["choices"][0]["finish_reason"] == "stop")
    codec = server.served.codec
    spelling = Spelling(codec)
    letters = {spelling(i).shown: i for i in range(len(codec.tokenizer))}
    prompt = codec.encode_prompt(say("Hi"))
    ids = [letters[entry["token"]] for entry in content]
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        whole = model(torch.tensor([prompt + ids])).logits[0].log_softmax(-1)[len(prompt) - 1 : -1]
    expected = [whole[place, token].item() for place, token in enumerate(ids)]
    assert [entry["logprob"] for entry in content] == pytest.approx(expected, abs=1e-4)
    best = whole.topk(3).values.tolist()
    for entry, scores in zip(content, best, strict=True):
        assert [other["logprob"] for other in entry["top_logprobs"]] == pytest.approx(scores, abs=1e-4)


def rebuilt(entries: list[dict[str, Any]]) -> str:
    return b"".join(bytes(entry["bytes"]) for entry in entries).decode("utf-8", "replace")


def test_bytes_rebuild_the_text(server: ModelServer) -> None:
    """Byte tokens at a high temperature: broken characters of every kind; streamed too. No end token is listed."""
    for seed in range(8):
        body = {"temperature": 3.0, "seed": seed, "max_tokens": 40, "logprobs": True}
        choice = post(server, **body).json()["choices"][0]
        assert rebuilt(choice["logprobs"]["content"]) == choice["message"]["content"]
        assert "<|im_end|>" not in rebuilt(choice["logprobs"]["content"])
        entries: list[dict[str, Any]] = []
        text = ""
        for line in post(server, **body, stream=True).text.splitlines():
            if line.startswith("data: {"):
                part = json.loads(line[6:])["choices"][0]
                text += part["delta"].get("content") or ""
                entries += (part["logprobs"] or {}).get("content", [])
        assert (text, entries) == (choice["message"]["content"], choice["logprobs"]["content"])


def test_offsets_of_plain_completions_are_places_in_the_text(server: ModelServer) -> None:
    body = {"prompt": "Hi", "temperature": 3.0, "seed": 4, "max_tokens": 40, "logprobs": 2}
    choice = post(server, "completions", **body).json()["choices"][0]
    told, text = choice["logprobs"], choice["text"]
    for token, offset in zip(told["tokens"], told["text_offset"], strict=True):
        if not token.startswith("bytes:"):
            assert text[offset : offset + len(token)] == token


# -- spelling ---------------------------------------------------------------------------------------------------------


def sentencepiece(folder: Path) -> Path:
    """In the manner of Llama 2: words with ▁, bytes as <0x..>, the first space of a text dropped."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁The", "▁lamp", "a", "▁", "é", "▁船"]
    tokenizer = Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, [], byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def codecs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TextCodec]:
    return {
        "bytes": TextCodec.load(tokenizer_folder(tmp_path_factory.mktemp("bytes"))),
        "words": TextCodec.load(sentencepiece(tmp_path_factory.mktemp("words"))),
    }


@pytest.mark.parametrize("name", ["bytes", "words"])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_tokens_spelled_one_after_another_are_the_text(codecs: dict[str, TextCodec], name: str, data: Any) -> None:
    codec = codecs[name]
    plain = list(range(len(codec.tokenizer)))
    if name == "words":  # its decoder writes one mark for each byte of a broken character, Python one for several
        plain = [i for i in plain if not 0x80 <= i - 3 < 0x100]
    ids = data.draw(st.lists(st.sampled_from(plain), max_size=12))
    speller = Speller(Spelling(codec))
    spelled = b"".join(speller.add(token, [])[0].raw for token in ids)
    stream = TextStream(codec.decode)
    text = "".join(stream.add([token]) for token in ids) + stream.add([], last=True)
    assert spelled.decode("utf-8", "replace") == text == codec.decode(ids)


def test_words_of_several_bytes_are_spelled(codecs: dict[str, TextCodec]) -> None:
    codec = codecs["words"]
    spelling = Spelling(codec)
    ids = codec.tokenizer.convert_tokens_to_ids
    assert spelling(ids("▁The")).raw == b" The" and spelling(ids("▁The"), first=True) == (b"The", "The")
    assert spelling(ids("<0xE8>")) == (b"\xe8", "bytes:\\xe8") and spelling(ids("▁船")).raw == " 船".encode()
    assert spelling(2) == (b"", "</s>") and spelling(10**6) == (b"", "")
