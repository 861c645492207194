"""Templates in the manner of well-known families (own wording): every answer is learned, with its end, as generated."""

from __future__ import annotations

from typing import Any

import pytest

from tests.training.data_making import CHATML, tokenizer_folder
from training.data.template import TextCodec

SYSTEM = {"role": "system", "content": "be brief"}
TALK = [
    {"role": "user", "content": "what is the capital"},
    {"role": "assistant", "content": "the stone bridge"},
    {"role": "user", "content": "and the river"},
    {"role": "assistant", "content": "old"},
]
THOUGHTFUL = [
    TALK[0],
    {"role": "assistant", "content": "<think>\nit is small\n</think>\n\nthe stone bridge"},
    TALK[2],
    {"role": "assistant", "content": "<think>\nit is green\n</think>\n\nold"},
]
# The reasoning of earlier turns is dropped, and the last turn has a think block even when it is empty.
QWEN3 = (
    "{%- set ns = namespace(last=0) %}{%- for m in messages %}{%- if m.role == 'user' %}"
    "{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}"
    "{%- for m in messages %}{%- if m.role == 'assistant' %}{%- set c = m.content %}"
    "{%- set r = '' %}{%- if '</think>' in c %}{%- set r = c.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{%- set c = c.split('</think>')[-1].lstrip('\n') %}{%- endif %}{%- if loop.index0 > ns.last %}"
    "{{- '<|im_start|>assistant\n<think>\n' + r + '\n</think>\n\n' + c + '<|im_end|>\n' }}"
    "{%- else %}{{- '<|im_start|>assistant\n' + c + '<|im_end|>\n' }}{%- endif %}"
    "{%- else %}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
# Every rendering that asks for nothing ends with eos.
PHI3 = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
# No end of an answer: the next turn's first token ends it.
GLM4 = (
    "{{ '[gMASK]<sop>' }}{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
# The system message goes into the last user turn.
MISTRAL = (
    "{%- if messages[0]['role'] == 'system' %}{%- set sys = messages[0]['content'] %}{%- set rest = messages[1:] %}"
    "{%- else %}{%- set rest = messages %}{%- endif %}"
    "{%- set users = rest | selectattr('role', 'equalto', 'user') | list %}"
    "{{- bos_token }}{%- for m in rest %}{%- if m['role'] == 'user' %}{%- if sys is defined and m == users[-1] %}"
    "{{- '[INST] ' + sys + '\n\n' + m['content'] + '[/INST]' }}{%- else %}{{- '[INST] ' + m['content'] + '[/INST]' }}"
    "{%- endif %}{%- else %}{{- ' ' + m['content'] + eos_token }}{%- endif %}{%- endfor %}"
)
# All before </think> is cut from every answer, and the generation prompt opens the reasoning.
R1 = (
    "{{ bos_token }}{%- for m in messages %}{%- if m['role'] == 'system' %}{{ m['content'] }}"
    "{%- elif m['role'] == 'user' %}{{ '<|User|>' + m['content'] }}{%- else %}{%- set c = m['content'] %}"
    "{%- if '</think>' in c %}{%- set c = c.split('</think>')[-1] %}{%- endif %}{{ '<|Assistant|>' + c + eos_token }}"
    "{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{%- endif %}"
)
LLAMA3 = (
    "{{- bos_token }}{%- for m in messages %}"
    "{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
FAMILIES: dict[str, tuple[str, list[str], str, str | None, list[str]]] = {  # template, special, eos, bos, more stops
    "qwen3": (QWEN3, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "<|im_end|>", None, []),
    "phi3": (PHI3, ["<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"], "<|endoftext|>", None, []),
    "glm4": (GLM4, ["<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "[gMASK]", "<sop>"], "<|endoftext|>",
             None, ["<|endoftext|>", "<|user|>"]),
    "mistral": (MISTRAL, ["<s>", "</s>", "[INST]", "[/INST]"], "</s>", "<s>", []),
    "r1": (R1, ["<s>", "</s>", "<|User|>", "<|Assistant|>"], "</s>", "<s>", []),
    "llama3": (LLAMA3, ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], "<|eot_id|>",
               "<|begin_of_text|>", []),
    "gemma": (GEMMA, ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"], "<eos>", "<bos>", []),
    "chatml": (CHATML, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "<|im_end|>", None, []),
}  # fmt: skip
ENDS = {"qwen3": "<|im_end|>", "phi3": "<|end|>", "glm4": "<|user|>", "mistral": "</s>", "r1": "</s>",
        "llama3": "<|eot_id|>", "gemma": "<end_of_turn>", "chatml": "<|im_end|>"}  # fmt: skip


@pytest.fixture(scope="module")
def codecs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TextCodec]:
    made = {}
    for name, (template, special, eos, bos, stops) in FAMILIES.items():
        folder = tokenizer_folder(
            tmp_path_factory.mktemp(name),
            template=template,
            special=special,
            eos=eos,
            bos=bos,
            adds_bos=bos is not None,
        )
        if stops:
            ids = TextCodec.load(folder).tokenizer.convert_tokens_to_ids(stops)
            (folder / "generation_config.json").write_text(f'{{"eos_token_id": {ids}}}')
        made[name] = TextCodec.load(folder)
    return made


def learned(codec: TextCodec, messages: list[dict[str, Any]]) -> str:
    encoded = codec.encode_chat(messages)
    assert len(encoded.answers) == sum(message["role"] == "assistant" for message in messages)
    return codec.decode(encoded.tokens[encoded.targets], skip_special=False)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("system", [False, True])
def test_every_answer_is_learned_with_its_end(codecs: dict[str, TextCodec], name: str, system: bool) -> None:
    codec, end = codecs[name], ENDS[name]
    talk = [SYSTEM, *TALK] if system else TALK
    said = learned(codec, talk)
    empty = "<think>\n\n</think>\n\n" if name == "qwen3" else ""
    assert said.replace(" the", "the").replace(" old", "old") == f"{empty}the stone bridge{end}{empty}old{end}"
    assert codec.turn_end_id == codec.stop_ids[0] == codec.tokenizer.convert_tokens_to_ids(end)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("talk", [TALK, THOUGHTFUL, [SYSTEM, *TALK], [SYSTEM, *THOUGHTFUL]])
def test_the_first_answer_follows_what_inference_gives(
    codecs: dict[str, TextCodec], name: str, talk: list[dict[str, Any]]
) -> None:
    """Tokens before the first learned one are the generation prompt's; those of every single answer, too."""
    codec = codecs[name]
    asked = next(number for number, message in enumerate(talk) if message["role"] == "assistant")
    prompt = codec.encode_prompt(talk[:asked])
    if name == "r1" and talk[asked] is TALK[1]:
        prompt = prompt[: len(prompt) - len(codec.tokenizer("<think>\n", add_special_tokens=False)["input_ids"])]
    for conversation in (talk, talk[: asked + 1]):
        encoded = codec.encode_chat(conversation)
        assert encoded.answers[0] == len(prompt)
        assert encoded.tokens[: len(prompt)].tolist() == prompt


@pytest.mark.parametrize("name", FAMILIES)
def test_reasoning_is_learned_in_every_turn(codecs: dict[str, TextCodec], name: str) -> None:
    codec, end = codecs[name], ENDS[name]
    opened = "" if name == "r1" else "<think>\n"  # there the prompt has it
    said = learned(codec, THOUGHTFUL).replace(" <think>", "<think>")
    first = f"{opened}it is small\n</think>\n\nthe stone bridge{end}"
    assert said == first + f"{opened}it is green\n</think>\n\nold{end}"
    assert learned(codec, THOUGHTFUL[:2]).replace(" <think>", "<think>") == first


def test_mistral_moves_the_system_message_with_the_question(codecs: dict[str, TextCodec]) -> None:
    codec = codecs["mistral"]
    text = codec.decode(codec.encode_chat([SYSTEM, *TALK]).tokens, skip_special=False)
    assert text == (
        "<s>[INST] be brief\n\nwhat is the capital[/INST] the stone bridge</s>"
        "[INST] be brief\n\nand the river[/INST] old</s>"
    )


def test_reasoning_in_other_shapes_of_white_space(codecs: dict[str, TextCodec]) -> None:
    talk = [TALK[0], {"role": "assistant", "content": "<think>it is small</think>old"}]
    assert learned(codecs["qwen3"], talk) == "<think>\nit is small\n</think>\n\nold<|im_end|>"
    assert learned(codecs["r1"], talk) == "it is small</think>old</s>"
