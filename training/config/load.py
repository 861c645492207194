"""Reads a run's configuration: a YAML file or a mapping, overrides on top, checked as a whole (no torch)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training.config.foreign import FOREIGN
from training.config.help import keys_of
from training.config.stages import config_class
from training.config.tree import UnknownKey, build, set_path
from training.errors import ConfigError, MissingInput

JOB_KEYS = ("type", "name", "image")
"""Keys of a job document that a run's own file may also carry."""


def load_config(stage: str, source: Mapping[str, Any] | str | Path, overrides: Sequence[str] = ()) -> Any:
    """The stage's config from a mapping or a YAML file, with `key.path=value` overrides on top.

    Raises ConfigError for anything unknown or of the wrong type, MissingInput when the file isn't there.
    """
    tree = copy.deepcopy(dict(source)) if isinstance(source, Mapping) else read_yaml(Path(source))
    for key in JOB_KEYS:
        value = tree.pop(key, None)
        if key == "type" and value not in (None, stage):
            raise ConfigError(f"This file describes a {value} run (type: {value}), not {stage}.")
    train = tree.get("train")
    if isinstance(train, dict) and "lora" in train:  # `train: {lora: …}` reads well too
        if tree.get("lora") is not None:
            raise ConfigError("lora is given twice, at the top and under train: remove one.")
        tree["lora"] = train.pop("lora")
    for override in overrides:
        key, found, text = override.partition("=")
        if not found or not key:
            raise ConfigError(f"{override!r} is not an override: write key=value, for example train.lr=1e-5.")
        set_path(tree, key.strip(), parse_yaml(text, f"the value of {key}"))
    try:
        return build(config_class(stage), tree)
    except UnknownKey as error:
        own = own_name(error.key, stage)
        raise ConfigError(f"Unknown key {error.where}. {own}" if own else str(error)) from None


def own_name(key: str, stage: str) -> str:
    """A sentence that says what `key`, a name of another tool's or from another section, is called here; or ""."""
    paths = [found.path for found in keys_of(config_class(stage))]
    sections = {path.rpartition(".")[0] for path in paths}
    theirs = FOREIGN.get(key.lower().replace("-", "_"), "")
    named = theirs.split(":")[0].split(" ")[0]
    if theirs.startswith("nothing") or (theirs and (named in sections or named in paths)):
        return f"Here it is {theirs}."
    same = [path for path in paths if path.endswith(f".{key}")]
    return f"It belongs to a section: {' or '.join(same[:3])}." if same else ""


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML (or JSON) file."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise MissingInput(f"There is no configuration file {path}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} can't be read: {error}.") from error
    tree = parse_yaml(text, str(path))
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold a mapping of keys, not {type(tree).__name__}.")
    return tree


def parse_yaml(text: str, where: str) -> Any:
    """YAML text as values; ConfigError with line and column when it isn't YAML."""
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{where}{place} is not valid YAML: {getattr(error, 'problem', error)}.") from error
