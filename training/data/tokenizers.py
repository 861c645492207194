"""Opens a model's tokenizer and its chat template, or the template that a user asked for instead."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from training.data.templates import TEMPLATES
from training.errors import ConfigError, MissingInput
from training.hub import hub_refusal

_CONTROL = re.compile(r"<\|[^|<>\s]+\|>")


def load_tokenizer(source: str, asked: str) -> Any:
    """`source`: a folder or hub id; `asked`: the same as the user wrote it. Raises MissingInput saying what is wrong.

    transformers 5 names classes that 4 doesn't have and lists extra special tokens; its tokenizer.json says all that
    such a class needs, so it is read as it is. It is also where the class that transformers takes for the architecture
    would cut texts otherwise than the file says (transformers 5 goes by the architecture).
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if ("/" not in source or source.startswith((".", "/", "~"))) and not Path(source).is_dir():
        raise MissingInput(f"{asked} is not a folder. Name a Hugging Face model folder or hf:org/name.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        if _as_its_file(tokenizer, source):
            return tokenizer
        with _no_warnings():
            return PreTrainedTokenizerFast.from_pretrained(source, **_settings(source))
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, TypeError and bare Exceptions here
        if refusal := hub_refusal(asked, error):
            raise refusal from error
        try:
            with _no_warnings():  # it warns that the class in the file is another one, which is the point
                return PreTrainedTokenizerFast.from_pretrained(source, **_settings(source))
        except Exception as second:
            first = str(error).strip().split("\n")[0]
            raise MissingInput(f"No usable tokenizer in {asked}: {first}. {_missing(source, second)}") from error


def own_template(tokenizer: Any) -> str:
    """The chat template that comes with a tokenizer, or ""."""
    own = tokenizer.chat_template
    if isinstance(own, dict):
        own = own.get("default") or next(iter(own.values()), "")
    return own or ""


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


def begins_with_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer puts its BOS before a text."""
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("x")["input_ids"][:1] == [bos]


def give_tokens(tokenizer: Any, template: str, name: str, model: str, *, add: bool) -> tuple[str, ...]:
    """The control tokens of a named template that the tokenizer lacks: added on request, else refused."""
    known = tokenizer.get_vocab()
    missing = tuple(dict.fromkeys(word for word in _CONTROL.findall(template) if word not in known))
    if missing and not add:
        raise ConfigError(
            f"data.template: {name} uses {' '.join(missing)}, which the tokenizer of {model} does not have: they would "
            "be cut to pieces. Choose human or alpaca, or add them as tokens with data.add_special_tokens: true."
        )
    if missing:
        more = {"additional_special_tokens": list(missing)}
        tokenizer.add_special_tokens(more, replace_additional_special_tokens=False)
    return missing


def _as_its_file(tokenizer: Any, source: str) -> bool:
    """Whether it cuts texts as the folder's tokenizer.json says; True where there is none."""
    file = Path(source) / "tokenizer.json"
    if not file.is_file() or not getattr(tokenizer, "is_fast", False):
        return True
    written, made = json.loads(file.read_text("utf-8")), json.loads(tokenizer.backend_tokenizer.to_str())
    return all(written.get(part) == made.get(part) for part in ("normalizer", "pre_tokenizer"))


@contextmanager
def _no_warnings() -> Iterator[None]:
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _settings(source: str) -> dict[str, Any]:
    """What of tokenizer_config.json transformers 4 takes in another form."""
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    extra = get_tokenizer_config(source).get("extra_special_tokens")
    return {"extra_special_tokens": {}, "additional_special_tokens": extra} if isinstance(extra, list) else {}


def _missing(source: str, error: Exception) -> str:
    if (Path(source) / "tokenizer.json").is_file():
        return f"Its tokenizer.json can't be read either: {str(error).strip().splitlines()[0]}"
    return "It needs tokenizer.json or the older files."
