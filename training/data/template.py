"""Turns conversations into tokens and back: tokenizer, template and stop tokens as one object, saved with every model.

A conversation is a sequence of {"role": "system" | "user" | "assistant", "content": str}. Its text comes from the
template alone (tokenised without further special tokens: no second BOS) and stops at the stop token of its last turn.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from training.data.templates import DEFAULT_TEMPLATE, TEMPLATES
from training.errors import ConfigError, DataError, MissingInput
from training.hub import hub_refusal, reach_hub

CODEC_FILE = "navarch_codec.json"
HUB_PREFIX = "hf:"
Messages = Sequence[Mapping[str, str]]
_PROBE = "navarchprobe"
_PAD_NAMES = ("<|pad|>", "<pad>", "[PAD]", "<|finetune_right_pad_id|>", "<|endoftext|>", "<unk>", "[UNK]")


@dataclass(frozen=True)
class Encoded:
    """One document. tokens: int32 [n]; targets: bool [n], True on the tokens to be learned; prompt: leading tokens
    before the last assistant turn (0 for plain text)."""

    tokens: np.ndarray
    targets: np.ndarray
    prompt: int

    def __len__(self) -> int:
        return len(self.tokens)


class TextCodec:
    """See the module. Make one with `TextCodec.load`.

    stop_ids: what ends a turn, the template's own first; eos_id ends plain documents. pad_id only fills arrays and
    is never a stop token. notice: a sentence for the log when a default template is used, else "".
    """

    def __init__(
        self, tokenizer: Any, template: str, template_name: str, *, system: str = "", more_stop_ids: Sequence[int] = ()
    ) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.template_name = template_name
        self.system = system
        self.notice = ""
        self._compiled = _compile(template, template_name)
        self._tokens = {
            "bos_token": tokenizer.bos_token or "",
            "eos_token": tokenizer.eos_token or "",
        }
        if getattr(tokenizer, "is_fast", False):
            tokenizer.backend_tokenizer.no_truncation()
            tokenizer.backend_tokenizer.no_padding()
        self._takes_system = self._try_system()
        end_of_turn = self._find_end_of_turn()
        found = [end_of_turn, tokenizer.eos_token_id, *more_stop_ids]
        self.stop_ids: tuple[int, ...] = tuple(dict.fromkeys(int(i) for i in found if i is not None))
        if not self.stop_ids:
            raise ConfigError(
                f"The tokenizer has no end token and the template {template_name!r} ends turns with no special token: "
                "a model trained with them could never stop. Set eos_token in tokenizer_config.json."
            )
        self.eos_id: int = int(tokenizer.eos_token_id) if tokenizer.eos_token_id is not None else self.stop_ids[0]
        self.turn_end_id: int = end_of_turn if end_of_turn is not None else self.eos_id
        self._adds_end = end_of_turn is None
        self.pad_id = self._choose_pad()

    # -- making and keeping -------------------------------------------------------------------------------------------

    @classmethod
    def load(cls, model: str | os.PathLike[str], template: str = "auto", system: str = "") -> Self:
        """From a model folder or `hf:org/name`. template: auto, a name of TEMPLATES, or a path to a .jinja file."""
        source = str(model)
        if source.startswith(HUB_PREFIX):
            reach_hub()
            source = source[len(HUB_PREFIX) :]
        tokenizer = _load_tokenizer(source, str(model))
        saved = _read_json(Path(source) / CODEC_FILE) if Path(source).is_dir() else {}
        own = _own_template(tokenizer)
        notice = ""
        if template == "auto" and own:
            text, name = own, str(saved.get("template", "tokenizer"))
        elif template == "auto":
            text, name = TEMPLATES[DEFAULT_TEMPLATE], DEFAULT_TEMPLATE
            notice = (
                f"The tokenizer of {model} has no chat template; using {name!r} (Human: … Assistant: …). "
                f"Choose another with data.template: {', '.join(TEMPLATES)} or a .jinja file."
            )
        else:
            text, name = named_template(template)
        generation = _read_json(Path(source) / "generation_config.json") if Path(source).is_dir() else {}
        stops = generation.get("eos_token_id") or []
        more = [*([stops] if isinstance(stops, int) else stops), *saved.get("stop_ids", [])]
        own_template = template == "auto" and bool(own)
        codec = cls(
            tokenizer, text, name, system=system or saved.get("system", ""), more_stop_ids=more if own_template else []
        )
        codec.notice = notice
        return codec

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes the tokenizer's files with the template in them, and what `load` needs to the same codec again."""
        self.tokenizer.chat_template = self.template
        self.tokenizer.save_pretrained(str(folder))
        facts = {
            "template": self.template_name,
            "system": self.system,
            "stop_ids": list(self.stop_ids),
            "pad_id": self.pad_id,
        }
        (Path(folder) / CODEC_FILE).write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def __reduce__(self) -> tuple[Any, ...]:
        parts = (self.tokenizer, self.template, self.template_name, self.system, self.stop_ids)
        return _rebuild, (type(self), *parts)

    # -- identity -----------------------------------------------------------------------------------------------------

    @cached_property
    def vocabulary_digest(self) -> str:
        """Equal for two tokenizers that give every id the same token."""
        digest = hashlib.blake2b(digest_size=16)
        for token, number in sorted(self.tokenizer.get_vocab().items(), key=lambda item: item[1]):
            digest.update(f"{number}\0{token}\0".encode("utf-8", "surrogatepass"))
        return digest.hexdigest()

    @cached_property
    def fingerprint(self) -> str:
        """Equal when every conversation becomes the same tokens and stops at the same ids."""
        digest = hashlib.blake2b(self.vocabulary_digest.encode(), digest_size=16)
        if getattr(self.tokenizer, "is_fast", False):
            digest.update(self.tokenizer.backend_tokenizer.to_str().encode("utf-8", "surrogatepass"))
        facts = [self.template, self.system, self.stop_ids, self._tokens["bos_token"], self._tokens["eos_token"]]
        digest.update(json.dumps(facts, ensure_ascii=False).encode("utf-8", "surrogatepass"))
        return digest.hexdigest()

    @property
    def special_words(self) -> tuple[str, ...]:
        """The special tokens as they are written: in a row's own text they would act as such."""
        return tuple(token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special)

    def check_vocabulary(self, model_vocabulary: int) -> None:
        """Raises ConfigError when the tokenizer makes ids that the model has no embedding for."""
        top = max(self.tokenizer.get_vocab().values(), default=-1)
        if top >= model_vocabulary:
            raise ConfigError(
                f"The tokenizer has tokens up to id {top}, the model embeds only {model_vocabulary}: they don't belong "
                "together. Use the tokenizer that the model came with, or resize the model's embeddings."
            )

    # -- text ---------------------------------------------------------------------------------------------------------

    def render(self, messages: Messages, *, add_generation_prompt: bool = False) -> str:
        """The conversation as the template writes it."""
        turns = self._with_system(messages)
        try:
            return str(
                self._compiled.render(
                    messages=turns,
                    tools=None,
                    documents=None,
                    add_generation_prompt=add_generation_prompt,
                    **self._tokens,
                )
            )
        except Exception as error:  # Jinja raises whatever the template's own code raises
            raise DataError(f"The chat template {self.template_name!r} refuses this conversation: {error}") from error

    def decode(self, ids: Sequence[int] | np.ndarray, *, skip_special: bool = True) -> str:
        return str(
            self.tokenizer.decode(
                [int(i) for i in ids], skip_special_tokens=skip_special, clean_up_tokenization_spaces=False
            )
        )

    # -- tokens -------------------------------------------------------------------------------------------------------

    def encode_prompt(self, messages: Messages) -> list[int]:
        """Tokens of a conversation up to where the assistant is to speak."""
        return self.encode_prompts([messages])[0]

    def encode_prompts(self, conversations: Sequence[Messages]) -> list[list[int]]:
        texts = [self.render(messages, add_generation_prompt=True) for messages in conversations]
        return [ids.tolist() for ids, _ in self._tokenise(texts, special=False)]

    def encode_chat(self, messages: Messages, *, train_on: str = "assistant") -> Encoded:
        return self.encode_chats([messages], train_on=train_on)[0]

    def encode_chats(self, conversations: Sequence[Messages], *, train_on: str = "assistant") -> list[Encoded]:
        """Each conversation with its targets: the assistant's turns (or the last one only) with their end tokens.

        Raises DataError for a conversation that the template refuses or whose turns can't be told apart in its text.
        """
        texts, spans = [], []
        for messages in conversations:
            text, turns = self._spans(messages)
            texts.append(text)
            spans.append(turns)
        stops = np.array(self.stop_ids)
        result = []
        for (tokens, starts), turns in zip(self._tokenise(texts, special=False), spans, strict=True):
            bounds = np.searchsorted(starts, np.array(turns, dtype=np.int64).reshape(-1))
            targets = np.zeros(len(tokens), dtype=bool)
            first = end = len(tokens)
            for number, (first, end) in enumerate(bounds.reshape(-1, 2).tolist()):
                last = number == len(turns) - 1
                ends = np.flatnonzero(np.isin(tokens[first:end], stops))
                if len(ends):  # what the template writes after the end token is never generated, so never learned
                    end = first + int(ends[-1]) + 1
                if train_on == "assistant" or last:
                    targets[first:end] = True
            tokens, targets = tokens[:end], targets[:end]
            if self._adds_end and turns and (end == 0 or tokens[-1] not in self.stop_ids):
                tokens = np.append(tokens, np.int32(self.turn_end_id))
                targets = np.append(targets, True)
            result.append(Encoded(tokens, targets, int(first)))
        return result

    def encode_text(self, text: str) -> Encoded:
        return self.encode_texts([text])[0]

    def encode_texts(self, texts: Sequence[str]) -> list[Encoded]:
        """Plain documents: the tokenizer's own beginning (BOS or nothing), the text, eos; everything is a target."""
        result = []
        for tokens, _ in self._tokenise(texts, special=True):
            if not len(tokens) or tokens[-1] != self.eos_id:
                tokens = np.append(tokens, np.int32(self.eos_id))
            result.append(Encoded(tokens, np.ones(len(tokens), dtype=bool), 0))
        return result

    # -- inside -------------------------------------------------------------------------------------------------------

    def _tokenise(self, texts: Sequence[str], *, special: bool) -> list[tuple[np.ndarray, np.ndarray]]:
        """(token ids int32, first character of each token int64) of each text."""
        if getattr(self.tokenizer, "is_fast", False):
            encodings = self.tokenizer.backend_tokenizer.encode_batch(list(texts), add_special_tokens=special)
            return [
                (
                    np.array(e.ids, dtype=np.int32),
                    np.fromiter((start for start, _ in e.offsets), np.int64, len(e))
                    if not special
                    else np.empty(0, np.int64),
                )
                for e in encodings
            ]
        return [self._tokenise_slowly(text, special) for text in texts]

    def _tokenise_slowly(self, text: str, special: bool) -> tuple[np.ndarray, np.ndarray]:
        """For tokenizers without offsets: the beginning of each token is found by decoding what comes before it."""
        ids = self.tokenizer.encode(text, add_special_tokens=special)
        if special:
            return np.array(ids, dtype=np.int32), np.empty(0, np.int64)
        starts = [
            len(self.tokenizer.decode(ids[:i], skip_special_tokens=False, clean_up_tokenization_spaces=False))
            for i in range(len(ids))
        ]
        return np.array(ids, dtype=np.int32), np.maximum.accumulate(np.array(starts, dtype=np.int64))

    def _spans(self, messages: Messages) -> tuple[str, list[tuple[int, int]]]:
        """The text, and where each assistant turn begins (after the generation prompt) and ends, in characters."""
        text = self.render(messages)
        turns: list[tuple[int, int]] = []
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            last = i == len(messages) - 1
            through = text if last else self.render(messages[: i + 1])
            if not last and not text.startswith(through):
                through = _common_prefix(text, through)
                if not through.rstrip().endswith(message["content"].strip()[-20:]):
                    continue  # the template rewrites earlier turns (drops their reasoning, say): not learned
            before = self.render(messages[:i], add_generation_prompt=True)
            start = len(before) if through.startswith(before) else len(_common_prefix(before, through))
            turns.append((start, len(through)))
        if not turns and any(message["role"] == "assistant" for message in messages):
            raise DataError(f"The chat template {self.template_name!r} leaves no assistant turn as it was written.")
        return text, turns

    def _with_system(self, messages: Messages) -> list[dict[str, str]]:
        turns = [dict(message) for message in messages]
        if self.system and turns and turns[0]["role"] != "system":
            turns.insert(0, {"role": "system", "content": self.system})
        if turns and turns[0]["role"] == "system" and not self._takes_system and len(turns) > 1:
            system, first, *rest = turns
            turns = [{**first, "content": f"{system['content']}\n\n{first['content']}"}, *rest]
        return turns

    def _try_system(self) -> bool:
        self._takes_system = True
        try:
            text = self.render([{"role": "system", "content": _PROBE}, {"role": "user", "content": "x"}])
        except DataError:
            return False
        return _PROBE in text

    def _find_end_of_turn(self) -> int | None:
        """The first special token that the template writes after an assistant's words."""
        text = self.render([{"role": "user", "content": "x"}, {"role": "assistant", "content": _PROBE}])
        tail = text.rpartition(_PROBE)[2]
        special = set(self.tokenizer.all_special_ids) | {
            number for number, token in self.tokenizer.added_tokens_decoder.items() if token.special
        }
        for number in self.tokenizer.encode(tail, add_special_tokens=False):
            if number in special:
                return int(number)
        return None

    def _choose_pad(self) -> int:
        """A token that fills arrays and isn't a stop token; the saved tokenizer only ever names a special one."""
        current = self.tokenizer.pad_token_id
        if current is not None and current not in self.stop_ids:
            return int(current)
        vocabulary = self.tokenizer.get_vocab()
        special = {token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special}
        for name in _PAD_NAMES:
            if name in special and vocabulary.get(name) not in (None, *self.stop_ids):
                self.tokenizer.pad_token = name
                return int(vocabulary[name])
        self.tokenizer.pad_token = None
        return next(i for i in range(len(vocabulary) + 1) if i not in self.stop_ids)


def named_template(template: str) -> tuple[str, str]:
    """(text, name) of a template that was asked for by name or by path."""
    if template in TEMPLATES:
        return TEMPLATES[template], template
    path = Path(template)
    if path.suffix in (".jinja", ".j2") or "/" in template:
        if not path.is_file():
            raise MissingInput(f"data.template: {template} does not exist.")
        return path.read_text(encoding="utf-8"), path.name
    raise ConfigError(f"data.template: {template!r} is not one of {', '.join(TEMPLATES)}, nor a path to a .jinja file.")


def _rebuild(kind: type[TextCodec], tokenizer: Any, template: str, name: str, system: str, stops: Sequence[int]) -> Any:
    return kind(tokenizer, template, name, system=system, more_stop_ids=stops)


def _load_tokenizer(source: str, asked: str) -> Any:
    from transformers import AutoTokenizer

    if ("/" not in source or source.startswith((".", "/", "~"))) and not Path(source).is_dir():
        raise MissingInput(f"{asked} is not a folder. Name a Hugging Face model folder or hf:org/name.")
    try:
        return AutoTokenizer.from_pretrained(source)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, TypeError and bare Exceptions here
        if refusal := hub_refusal(asked, error):
            raise refusal from error
        first = str(error).strip().split("\n")[0]
        raise MissingInput(
            f"No usable tokenizer in {asked}: {first} It needs tokenizer.json or the older files."
        ) from error


def _own_template(tokenizer: Any) -> str:
    own = tokenizer.chat_template
    if isinstance(own, dict):
        own = own.get("default") or next(iter(own.values()), "")
    return own or ""


def _compile(template: str, name: str) -> Any:
    """Compiled as transformers does: sandboxed, blocks trimmed, loop controls, the few functions templates call."""
    from datetime import datetime

    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %} … {% endgeneration %}` marks what the model says; the text is unchanged by it."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(body, lineno=line)

    def refuse(message: str) -> None:
        raise jinja2.exceptions.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(template)
    except jinja2.TemplateSyntaxError as error:
        raise ConfigError(f"The chat template {name!r} is not valid: line {error.lineno}: {error.message}") from error


def _common_prefix(one: str, other: str) -> str:
    length = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return one[:length]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
