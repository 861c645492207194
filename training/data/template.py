"""Turns conversations into tokens and back: tokenizer, template and stop tokens as one object, saved with every model.

A conversation is a sequence of messages (see messages.py). Its text comes from the template alone (tokenised without
further special tokens: no second BOS) and stops at the stop token of its last turn.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from training.data.rendering import ChatTemplate, Messages
from training.data.templates import DEFAULT_TEMPLATE, TEMPLATES
from training.data.tokenise import Splitter
from training.data.tokenizers import begins_with_bos, give_tokens, load_tokenizer, named_template, own_template
from training.data.turns import Turn, check_written, takes_tools, write
from training.errors import ConfigError, DataError
from training.hub import model_file, reach_hub

CODEC_FILE = "navarch_codec.json"
HUB_PREFIX = "hf:"
_PROBE = "navarchprobe"
_PAD_NAMES = ("<|pad|>", "<pad>", "[PAD]", "<|finetune_right_pad_id|>", "<|endoftext|>", "<unk>", "[UNK]")
Tools = Sequence[Any]


@dataclass(frozen=True)
class Encoded:
    """One document. tokens: int32 [n]; targets: bool [n], True on the tokens to be learned; prompt: leading tokens
    before the last assistant turn (0 for plain text). answers: where each answer that is to be learned begins;
    unmarked: such answers that the template leaves without a mark."""

    tokens: np.ndarray
    targets: np.ndarray
    prompt: int
    answers: tuple[int, ...] = ()
    unmarked: int = 0

    def __len__(self) -> int:
        return len(self.tokens)


class TextCodec:
    """See the module. Make one with `TextCodec.load`.

    stop_ids: what ends a turn, the template's own first; eos_id ends plain documents. pad_id only fills arrays and
    is never a stop token. notice: sentences for the log about what was chosen for the user, else "". added: tokens
    that the tokenizer did not have. today: the date that templates write.
    """

    def __init__(
        self, tokenizer: Any, template: str, template_name: str, *, system: str = "",
        more_stop_ids: Sequence[int] = (), today: datetime | None = None,
    ) -> None:  # fmt: skip
        self.tokenizer = tokenizer
        self.template = template
        self.template_name = template_name
        self.system = system
        self.notice = ""
        self.added: tuple[str, ...] = ()
        self.today = today or datetime.now()
        self._tokens = {
            "bos_token": tokenizer.bos_token or "",
            "eos_token": tokenizer.eos_token or "",
        }
        special = {number: token for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._special_ids = {*special, *tokenizer.all_special_ids}
        self.special_words: tuple[str, ...] = tuple(token.content for token in special.values())
        self._template = ChatTemplate(template, template_name, self._tokens, self.special_words, self.today)
        self._split = Splitter(tokenizer, self._template)
        self._takes_system = self._try_system()
        end_of_turn = self._find_end_of_turn(more_stop_ids)
        found = [end_of_turn, tokenizer.eos_token_id, *more_stop_ids]
        self.stop_ids: tuple[int, ...] = tuple(dict.fromkeys(int(i) for i in found if i is not None))
        if not self.stop_ids:
            raise ConfigError(
                f"The tokenizer has no end token and the template {template_name!r} ends turns with no special token: "
                "a model trained with them could never stop. Set eos_token in tokenizer_config.json."
            )
        self.eos_id: int = int(tokenizer.eos_token_id) if tokenizer.eos_token_id is not None else self.stop_ids[0]
        self.turn_end_id: int = end_of_turn if end_of_turn is not None else self.eos_id
        self.pad_id = self._choose_pad()

    # -- making and keeping -------------------------------------------------------------------------------------------

    @classmethod
    def load(
        cls, model: str | os.PathLike[str], template: str = "auto", system: str = "", *,
        add_special_tokens: bool = False, today: datetime | None = None,
    ) -> Self:  # fmt: skip
        """From a model folder or `hf:org/name`. template: auto, a name of TEMPLATES, or a path to a .jinja file.

        add_special_tokens: give the tokenizer those that a named template needs, instead of refusing it.
        """
        source = str(model)
        if source.startswith(HUB_PREFIX):
            reach_hub()
            source = source[len(HUB_PREFIX) :]
        tokenizer = load_tokenizer(source, str(model))
        saved = _read_json(source, CODEC_FILE)
        own = own_template(tokenizer)
        notices: list[str] = []
        added: tuple[str, ...] = ()
        is_own = template == "auto" and bool(own)
        if is_own:
            text, name = own, str(saved.get("template", "tokenizer"))
        elif template == "auto":
            text, name = TEMPLATES[DEFAULT_TEMPLATE], DEFAULT_TEMPLATE
            notices.append(
                f"The tokenizer of {model} has no chat template; using {name!r} (Human: … Assistant: …). "
                f"Choose another with data.template: {', '.join(TEMPLATES)} or a .jinja file."
            )
        else:
            text, name = named_template(template)
        bos = tokenizer.bos_token if begins_with_bos(tokenizer) else ""
        if name in TEMPLATES and not is_own:
            if bos and "bos_token" not in text:  # what the base model has seen at the beginning of every text
                text = "{{- bos_token -}}" + text
            added = give_tokens(tokenizer, text, name, str(model), add=add_special_tokens)
        generation = _read_json(source, "generation_config.json")
        stops = generation.get("eos_token_id") or []
        more = [*([stops] if isinstance(stops, int) else stops), *saved.get("stop_ids", [])]
        codec = cls(
            tokenizer, text, name, system=system or saved.get("system", ""),
            more_stop_ids=more if is_own else [], today=today,
        )  # fmt: skip
        codec.added = added
        if bos and not codec.render([{"role": "user", "content": "x"}]).startswith(bos):
            notices.append(f"The tokenizer begins texts with {bos}, the chat template {name!r} does not.")
        codec.notice = " ".join(notices)
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
        parts = (self.tokenizer, self.template, self.template_name, self.system, self.stop_ids, self.today)
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
    def cache_key(self) -> str:
        """Equal when every conversation becomes the same tokens: the date counts where a template says it."""
        return f"{self.fingerprint} {self.today:%Y-%m-%d}" if self._template.says_date else self.fingerprint

    def check_vocabulary(self, model_vocabulary: int) -> None:
        """Raises ConfigError when the tokenizer makes ids that the model has no embedding for."""
        top = max(self.tokenizer.get_vocab().values(), default=-1)
        if top >= model_vocabulary:
            raise ConfigError(
                f"The tokenizer has tokens up to id {top}, the model embeds only {model_vocabulary}: they don't belong "
                "together. Use the tokenizer that the model came with, or resize the model's embeddings."
            )

    # -- text ---------------------------------------------------------------------------------------------------------

    def render(self, messages: Messages, tools: Tools = (), *, add_generation_prompt: bool = False) -> str:
        """The conversation as the template writes it."""
        turns = self._with_system(messages)
        return self._template.own_words(
            self._template.render(turns, tools, add_generation_prompt=add_generation_prompt)
        )

    def decode(self, ids: Sequence[int] | np.ndarray, *, skip_special: bool = True) -> str:
        return str(
            self.tokenizer.decode(
                [int(i) for i in ids], skip_special_tokens=skip_special, clean_up_tokenization_spaces=False
            )
        )

    # -- tokens -------------------------------------------------------------------------------------------------------

    def encode_prompt(self, messages: Messages, tools: Tools = ()) -> list[int]:
        """Tokens of a conversation up to where the assistant is to speak."""
        return self.encode_prompts([messages], [tools])[0]

    def encode_prompts(self, conversations: Sequence[Messages], tools: Sequence[Tools] = ()) -> list[list[int]]:
        """Raises DataError for a conversation that the template refuses or of which it leaves something out."""
        texts = []
        for number, messages in enumerate(conversations):
            functions = self._usable(tools[number] if tools else ())
            turns = self._with_system(messages)
            texts.append(self._template.render(turns, functions, add_generation_prompt=True))
            check_written(self._template, turns, texts[-1])
        return [ids.tolist() for ids, _ in self._split(texts, special=False)]

    def encode_chat(self, messages: Messages, *, train_on: str = "assistant") -> Encoded:
        return self.encode_chats([messages], train_on=train_on)[0]

    def encode_chats(
        self, conversations: Sequence[Messages], tools: Sequence[Tools] = (), *, train_on: str = "assistant"
    ) -> list[Encoded]:
        """Each conversation with its targets: the assistant's turns (or the last one only) with their end tokens.

        Raises DataError for a conversation that the template refuses or of which it leaves something out.
        """
        end_text = str(self.tokenizer.convert_ids_to_tokens(self.turn_end_id))
        written = [
            write(
                self._template, self._with_system(messages), self._usable(tools[i] if tools else ()), end_text=end_text
            )
            for i, messages in enumerate(conversations)
        ]
        tokenised = self._split([each.text for each in written], special=False)
        return [
            self._learned(
                tokens, starts, each.text, each.turns[-1:] if train_on == "last" else each.turns, each.unmarked
            )
            for (tokens, starts), each in zip(tokenised, written, strict=True)
        ]

    def _learned(
        self, tokens: np.ndarray, starts: np.ndarray, text: str, turns: Sequence[Turn], unmarked: int
    ) -> Encoded:
        """Targets from each turn's first token to its end token, which directly follows its words."""
        stops = np.flatnonzero(np.isin(tokens, np.array(self.stop_ids)))
        targets = np.zeros(len(tokens), dtype=bool)
        answers = []
        first = end = len(tokens)
        ended = True
        for turn in turns:
            first, end = np.searchsorted(starts, (turn.start, turn.words_end)).tolist()
            stop = int(stops[at]) if (at := int(np.searchsorted(stops, first))) < len(stops) else None
            ended = stop is not None and not text[turn.words_end : int(starts[stop])].strip()
            if ended and stop is not None:  # what the template writes after it is never generated, so never learned
                end = stop + 1
            if turn.learn:
                targets[first:end] = True
                answers.append(first)
        tokens, targets = tokens[:end], targets[:end]
        if turns and not ended:
            tokens = np.append(tokens, np.int32(self.turn_end_id))
            targets = np.append(targets, turns[-1].learn)
        return Encoded(tokens, targets, int(first), tuple(answers), unmarked)

    def encode_text(self, text: str) -> Encoded:
        return self.encode_texts([text])[0]

    def encode_texts(self, texts: Sequence[str]) -> list[Encoded]:
        """Plain documents: the tokenizer's own beginning (BOS or nothing), the text, eos; everything is a target."""
        result = []
        bos = self.tokenizer.bos_token_id
        for tokens, _ in self._split(texts, special=True):
            if len(tokens) > 1 and tokens[0] == tokens[1] == bos != self.eos_id:
                tokens = tokens[1:]  # the text brings its own
            if not len(tokens) or tokens[-1] != self.eos_id:
                tokens = np.append(tokens, np.int32(self.eos_id))
            result.append(Encoded(tokens, np.ones(len(tokens), dtype=bool), 0))
        return result

    # -- inside -------------------------------------------------------------------------------------------------------

    def _usable(self, tools: Tools) -> Tools:
        """The tools, if the template has a place for them."""
        if tools and not self._takes_tools:
            raise DataError(
                f"The chat template {self.template_name!r} has no place for tools. Choose a data.template that has, or "
                "leave them out on purpose with ignore: [tools]."
            )
        return tools

    @cached_property
    def _takes_tools(self) -> bool:
        return takes_tools(self._template)

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

    def _find_end_of_turn(self, stops: Sequence[int]) -> int | None:
        """The first special token that the template writes after an assistant's words; where it writes none, the one
        that begins the next turn if generation is to stop at it (GLM-4)."""
        talk = [{"role": "user", "content": "x"}, {"role": "assistant", "content": _PROBE}]
        found = self._first_special(self.render(talk).rpartition(_PROBE)[2])
        if found is None:
            tail = self.render([*talk, {"role": "user", "content": "x"}]).rpartition(_PROBE)[2]
            found = self._first_special(tail)
            found = found if found in stops else None
        return found

    def _first_special(self, text: str) -> int | None:
        tokens = self.tokenizer.encode(text, add_special_tokens=False)
        return next((int(number) for number in tokens if number in self._special_ids), None)

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


def _rebuild(kind: type[TextCodec], tokenizer: Any, template: str, name: str, system: str, *rest: Any) -> Any:
    stops, today = rest
    return kind(tokenizer, template, name, system=system, more_stop_ids=stops, today=today)


def _read_json(source: str, name: str) -> dict[str, Any]:
    """A JSON file of a model's folder or hub repository; {} where it has none."""
    path = model_file(source, name)
    try:
        value = json.loads(path.read_text(encoding="utf-8")) if path is not None else {}
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
