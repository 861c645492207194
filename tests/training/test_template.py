"""The codec: what is learned, where turns end, one BOS, a pad that is no stop, and the same codec after saving."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer, GPT2Tokenizer

from tests.training.data_making import CHATML, tokenizer_folder
from training.data.template import TextCodec
from training.data.templates import TEMPLATES
from training.errors import ConfigError, DataError, MissingInput

TALK = [
    {"role": "user", "content": "what is the capital"},
    {"role": "assistant", "content": "the stone bridge 你好"},
    {"role": "user", "content": "and the river"},
    {"role": "assistant", "content": "old"},
]


@pytest.fixture(scope="module")
def chatml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tokenizer_folder(tmp_path_factory.mktemp("chatml"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Like GPT-2's: one special token that is all of bos, eos and pad, and no template."""
    return tokenizer_folder(
        tmp_path_factory.mktemp("plain"), template=None, special=["<|endoftext|>"], eos="<|endoftext|>",
        pad="<|endoftext|>", bos="<|endoftext|>",
    )  # fmt: skip


def learned(codec: TextCodec, messages: list[dict[str, str]], **options: Any) -> str:
    encoded = codec.encode_chat(messages, **options)
    return codec.decode(encoded.tokens[encoded.targets], skip_special=False)


def test_all_assistant_turns_and_their_end_tokens_are_learned_and_nothing_else(chatml: Path) -> None:
    codec = TextCodec.load(chatml)
    assert learned(codec, TALK) == "the stone bridge 你好<|im_end|>old<|im_end|>"
    assert learned(codec, TALK, train_on="last") == "old<|im_end|>"


def test_a_conversation_ends_at_its_stop_token(chatml: Path) -> None:
    codec = TextCodec.load(chatml)
    encoded = codec.encode_chat(TALK)
    assert codec.render(TALK).endswith("<|im_end|>\n")  # the template goes on; the document does not
    assert encoded.tokens[-1] == codec.stop_ids[0] and encoded.targets[-1]


@pytest.mark.parametrize("template", ["auto", *TEMPLATES])
def test_the_prompt_is_what_generation_starts_from(chatml: Path, plain: Path, template: str) -> None:
    """Tokens of the prompt alone are the leading tokens of the whole, for every template and each turn."""
    for folder in (chatml, plain):
        codec = TextCodec.load(folder, template=template)
        for count in (2, 4):
            encoded = codec.encode_chat(TALK[:count])
            prompt = codec.encode_prompt(TALK[: count - 1])
            assert encoded.tokens[: encoded.prompt].tolist() == prompt
            assert encoded.targets[encoded.prompt :].all() and not encoded.targets[: len(prompt)].all()
            assert encoded.tokens[-1] in codec.stop_ids


@pytest.mark.parametrize("template", sorted(set(TEMPLATES) - {"llama3"}))  # llama3 needs that tokenizer's own tokens
def test_named_templates_teach_the_answers_and_the_end(plain: Path, template: str) -> None:
    codec = TextCodec.load(plain, template=template)
    end = codec.decode([codec.turn_end_id], skip_special=False)
    assert learned(codec, TALK).replace(" the", "the").replace(" old", "old") == f"the stone bridge 你好{end}old{end}"


def test_a_tokenizer_without_a_template_gets_a_named_one_and_says_so(plain: Path, chatml: Path) -> None:
    codec = TextCodec.load(plain)
    assert codec.template_name == "human" and "has no chat template; using 'human'" in codec.notice
    assert codec.render(TALK[:1], add_generation_prompt=True) == "Human: what is the capital\n\nAssistant:"
    assert TextCodec.load(chatml).notice == ""


def test_pad_is_never_a_stop_token(tmp_path: Path, plain: Path, chatml: Path) -> None:
    same = tokenizer_folder(tmp_path / "same", pad="<|im_end|>")  # as many chat models come
    for folder, name in ((same, "<|endoftext|>"), (chatml, "<|endoftext|>"), (plain, None)):
        codec = TextCodec.load(folder)
        assert codec.pad_id not in codec.stop_ids
        assert codec.tokenizer.pad_token == name
        if name:
            assert codec.tokenizer.convert_tokens_to_ids(name) == codec.pad_id


def test_no_second_bos(tmp_path: Path) -> None:
    template = "{{ bos_token }}" + CHATML
    special = ["<s>", "<|im_start|>", "<|im_end|>"]
    folder = tokenizer_folder(tmp_path, template=template, special=special, bos="<s>", adds_bos=True)
    codec = TextCodec.load(folder)
    bos = codec.tokenizer.bos_token_id
    assert codec.encode_chat(TALK).tokens.tolist().count(bos) == 1
    assert codec.encode_prompt(TALK[:1]).count(bos) == 1
    assert codec.encode_text("the river").tokens.tolist().count(bos) == 1  # plain text: the tokenizer's own


def test_chat_tokens_are_those_of_transformers(chatml: Path) -> None:
    codec, other = TextCodec.load(chatml), AutoTokenizer.from_pretrained(chatml)
    expected = other.apply_chat_template(TALK, tokenize=True)
    ours = codec.encode_chat(TALK).tokens.tolist()
    assert ours == expected[: len(ours)] and other.decode(expected[len(ours) :]) == "\n"
    assert codec.encode_prompt(TALK[:1]) == other.apply_chat_template(TALK[:1], add_generation_prompt=True)


def test_text_documents_end_with_eos_and_are_learned_whole(chatml: Path) -> None:
    codec = TextCodec.load(chatml)
    encoded = codec.encode_text("the stone bridge")
    assert encoded.tokens[-1] == codec.eos_id and encoded.targets.all()
    assert codec.decode(encoded.tokens) == "the stone bridge"


def test_the_systems_words(chatml: Path, tmp_path: Path) -> None:
    codec = TextCodec.load(chatml, system="be kind")
    assert codec.render(TALK[:1]).startswith("<|im_start|>system\nbe kind<|im_end|>")
    own = [{"role": "system", "content": "be short"}, *TALK[:1]]
    assert "be kind" not in codec.render(own) and "be short" in codec.render(own)
    refuses = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHATML
    )
    folded = TextCodec.load(tokenizer_folder(tmp_path, template=refuses), system="be kind")
    assert folded.render(TALK[:1]) == "<|im_start|>user\nbe kind\n\nwhat is the capital<|im_end|>\n"


def test_a_template_that_drops_earlier_reasoning_teaches_what_stays(tmp_path: Path) -> None:
    """Some templates strip the thinking of all but the last answer: such earlier turns are not learned."""
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
        "{% if m['role'] == 'assistant' and not loop.last %}{{ m['content'].split('=')[-1] }}"
        "{% else %}{{ m['content'] }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    codec = TextCodec.load(tokenizer_folder(tmp_path, template=template))
    talk = [TALK[0], {"role": "assistant", "content": "hidden=river"}, TALK[2], {"role": "assistant", "content": "a=b"}]
    assert learned(codec, talk) == "a=b<|im_end|>"
    assert learned(codec, talk[:2]) == "hidden=river<|im_end|>"


def test_generation_tags_do_not_change_the_text(tmp_path: Path) -> None:
    template = CHATML.replace("m['content']", "'' }}{% generation %}{{ m['content'] }}{% endgeneration %}{{ ''")
    codec = TextCodec.load(tokenizer_folder(tmp_path, template=template))
    assert learned(codec, TALK) == "the stone bridge 你好<|im_end|>old<|im_end|>"


@pytest.mark.parametrize("template", ["auto", "human", "alpaca"])
def test_the_same_codec_after_saving(chatml: Path, plain: Path, tmp_path: Path, template: str) -> None:
    for number, folder in enumerate((chatml, plain)):
        codec = TextCodec.load(folder, template=template, system="be kind")
        codec.save(tmp_path / str(number))
        again = TextCodec.load(tmp_path / str(number))
        assert again.fingerprint == codec.fingerprint and again.notice == ""
        assert again.stop_ids == codec.stop_ids and again.pad_id == codec.pad_id
        assert again.template_name == codec.template_name
        assert again.encode_chat(TALK).tokens.tolist() == codec.encode_chat(TALK).tokens.tolist()
        transformers = AutoTokenizer.from_pretrained(tmp_path / str(number))
        assert transformers.chat_template == codec.template
        assert transformers.pad_token_id != transformers.eos_token_id


def test_fingerprints_tell_codecs_apart(chatml: Path, plain: Path) -> None:
    codecs = [
        TextCodec.load(chatml),
        TextCodec.load(chatml, template="human"),
        TextCodec.load(chatml, system="x"),
        TextCodec.load(plain),
    ]
    assert len({codec.fingerprint for codec in codecs}) == 4
    assert codecs[0].vocabulary_digest == codecs[1].vocabulary_digest != codecs[3].vocabulary_digest


def test_a_codec_travels_to_another_process(chatml: Path) -> None:
    codec = TextCodec.load(chatml)
    assert pickle.loads(pickle.dumps(codec)).fingerprint == codec.fingerprint


def test_stop_tokens_of_the_generation_config_count_too(tmp_path: Path) -> None:
    folder = tokenizer_folder(tmp_path)
    codec = TextCodec.load(folder)
    end, other = codec.stop_ids[0], codec.tokenizer.convert_tokens_to_ids("<|endoftext|>")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [other, end]}))
    assert set(TextCodec.load(folder).stop_ids) == {end, other}


def test_a_slow_tokenizer_gives_the_same_masks(tmp_path: Path) -> None:
    """Tokenizers without offsets: a GPT-2 in Python with the same vocabulary."""
    folder = tokenizer_folder(tmp_path / "fast", special=["<|endoftext|>"], eos="<|endoftext|>", template=None)
    facts = json.loads((folder / "tokenizer.json").read_text())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(facts["vocab"]))
    merges = [m if isinstance(m, str) else " ".join(m) for m in facts["merges"]]
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    slow = GPT2Tokenizer(tmp_path / "vocab.json", tmp_path / "merges.txt")
    codec = TextCodec(slow, TEMPLATES["human"], "human")
    fast = TextCodec.load(folder, template="human")
    talk = [{**message, "content": message["content"].replace(" 你好", "")} for message in TALK]
    ours, theirs = codec.encode_chat(talk), fast.encode_chat(talk)
    assert np.array_equal(ours.tokens, theirs.tokens) and np.array_equal(ours.targets, theirs.targets)


def test_bad_codecs_are_refused_in_words(chatml: Path, tmp_path: Path) -> None:
    codec = TextCodec.load(chatml)
    codec.check_vocabulary(len(codec.tokenizer))
    with pytest.raises(ConfigError, match="the model embeds only 5"):
        codec.check_vocabulary(5)
    with pytest.raises(ConfigError, match="not one of human, alpaca"):
        TextCodec.load(chatml, template="chatlm")
    with pytest.raises(MissingInput, match="does not exist"):
        TextCodec.load(chatml, template=str(tmp_path / "none.jinja"))
    with pytest.raises(MissingInput, match="is not a folder"):
        TextCodec.load(tmp_path / "none")
    with pytest.raises(MissingInput, match="No usable tokenizer"):
        TextCodec.load(tmp_path)
    (tmp_path / "bad.jinja").write_text("{% for %}")
    with pytest.raises(ConfigError, match=r"bad\.jinja' is not valid: line 1"):
        TextCodec.load(chatml, template=str(tmp_path / "bad.jinja"))
    (tmp_path / "picky.jinja").write_text(
        "{% if messages | length > 2 %}{{ raise_exception('too many turns') }}{% endif %}" + CHATML
    )
    with pytest.raises(DataError, match="refuses this conversation: too many turns"):
        TextCodec.load(chatml, template=str(tmp_path / "picky.jinja")).encode_chat(TALK)
