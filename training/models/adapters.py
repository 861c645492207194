"""Merges an adapter that anybody trained into its base, by PEFT itself; refuses by name what can't be merged.

PEFT knows DoRA, rank and alpha patterns, saved modules, biases and GPT-2's transposed layers. What is left to us: files
of a newer PEFT, weights that belong to another model, tied embeddings, and a look at the result.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from training.errors import ConfigError, MissingInput

WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
PROBE = 16
"""Tokens on which the merged model is compared with PEFT's own forward."""
HARMLESS = {"peft_version", "auto_mapping", "qalora_group_size", "arrow_config", "eva_config", "corda_config"}
"""Settings of a newer PEFT that change nothing of what a trained adapter computes."""
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 2e-2}
"""Allowed difference of logits there, as a share of their spread: what rounding the merged weights explains."""


@torch.no_grad()
def merge_adapter(model: Any, folder: Path) -> Any:
    """`model`, the adapter's base, with the adapter's weights in its own; in place where PEFT does so.

    Raises MissingInput for a folder without an adapter, ConfigError for one that doesn't fit or can't be merged.
    """
    from peft import PeftModel
    from peft.utils import get_peft_model_state_dict

    config = _config(folder)
    if config.is_prompt_learning:
        raise ConfigError(f"The adapter in {folder} is {config.peft_type}: it adds tokens, and has nothing to merge.")
    was_training, embeddings = model.training, model.get_input_embeddings()
    ids = torch.arange(PROBE, device=embeddings.weight.device)[None] % embeddings.num_embeddings
    _untie(model, config)
    try:
        adapted = PeftModel.from_pretrained(model, str(folder), config=config).eval()
    except (ValueError, RuntimeError, KeyError, NotImplementedError) as error:
        raise ConfigError(f"The adapter in {folder} does not fit this model: {_first_lines(error)}") from error
    strange = _tensor_names(folder) ^ set(get_peft_model_state_dict(adapted))
    if strange:
        raise ConfigError(
            f"The adapter in {folder} was made for another model: {len(strange)} tensors are only in one of them, like "
            f"{min(strange)}."
        )
    wanted: Tensor = adapted(input_ids=ids, use_cache=False).logits.float()
    _refuse_lost_biases(adapted, config, folder)
    if not hasattr(adapted.base_model, "merge_and_unload"):
        raise ConfigError(f"The adapter in {folder} is {config.peft_type}, which can't be merged into weights.")
    try:
        merged = adapted.merge_and_unload(safe_merge=True)
    except (ValueError, NotImplementedError) as error:
        raise ConfigError(f"The adapter in {folder} can't be merged: {_first_lines(error)}") from error
    got = merged(input_ids=ids, use_cache=False).logits.float()
    difference = float((got - wanted).square().mean().sqrt() / wanted.std().clamp(min=1e-6))
    if not difference <= TOLERANCE[_precision(model)]:
        raise ConfigError(
            f"The adapter in {folder} can't be merged: the logits of the merged model differ from those of PEFT's own "
            f"forward by {difference:.2g} of their spread."
        )
    merged.requires_grad_(True)
    merged.train(was_training)
    return merged


def _precision(model: nn.Module) -> torch.dtype:
    return next(p.dtype for p in model.parameters() if p.is_floating_point())


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / "adapter_config.json"
    if not path.is_file() or not any((folder / name).is_file() for name in WEIGHTS):
        raise MissingInput(f"{folder} holds no adapter (adapter_config.json and {WEIGHTS[0]}).")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is no JSON file: {error}") from error
    if not isinstance(settings, dict) or "peft_type" not in settings:
        raise ConfigError(f"{path} does not say what kind of adapter it is (peft_type).")
    return settings


def _config(folder: Path) -> Any:
    """PEFT's config, also from a newer PEFT's file as long as what is new there isn't used."""
    import peft
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    settings = _settings(folder)
    kind = PEFT_TYPE_TO_CONFIG_MAPPING.get(settings["peft_type"])
    if kind is None:
        raise ConfigError(f"The adapter in {folder} is {settings['peft_type']}, which PEFT {peft.__version__} lacks.")
    known = set(inspect.signature(kind).parameters)
    used = sorted(name for name, value in settings.items() if name not in known and _matters(name, value))
    if used:
        raise ConfigError(
            f"The adapter in {folder} uses {', '.join(used)}, which PEFT {peft.__version__} does not know: merge it "
            "with the PEFT that made it, and give the merged model."
        )
    config = kind(**{name: value for name, value in settings.items() if name in known})
    config.inference_mode = True
    return config


def _matters(name: str, value: Any) -> bool:
    """Whether a setting that this PEFT doesn't know changes what the adapter computes."""
    return name not in ("peft_version", "auto_mapping", "qalora_group_size", "arrow_config", "eva_config") and bool(
        value
    )


def _untie(model: Any, config: Any) -> None:
    """Give head and embeddings weights of their own where the adapter changes one of two that are the same."""
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or head.weight is not embeddings.weight:
        return
    names = {name.rpartition(".")[2]: name for name, part in model.named_modules() if part in (head, embeddings)}
    targets = getattr(config, "target_modules", None) or ()
    named = {targets} if isinstance(targets, str) else set(targets)
    touched = {entry.rpartition(".")[2] for entry in (*named, *(getattr(config, "modules_to_save", None) or ()))}
    if touched & set(names):
        head.weight = nn.Parameter(head.weight.detach().clone())
        model.config.tie_word_embeddings = False


def _refuse_lost_biases(adapted: nn.Module, config: Any, folder: Path) -> None:
    """PEFT trains the biases of adapted layers with `bias: lora_only`, and some of its versions save none of them."""
    if getattr(config, "bias", "none") != "lora_only" or any(name.endswith("bias") for name in _tensor_names(folder)):
        return
    if any(getattr(getattr(part, "base_layer", None), "bias", None) is not None for part in adapted.modules()):
        raise ConfigError(
            f"The adapter in {folder} was trained with bias: lora_only, and its file has no biases (PEFT did not save "
            "them): what was trained can't be had from it."
        )


def _tensor_names(folder: Path) -> set[str]:
    path = folder / WEIGHTS[0]
    if path.is_file():
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            return set(file.keys())
    return set(torch.load(folder / WEIGHTS[1], map_location="cpu", weights_only=True))


def _first_lines(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:400] or type(error).__name__
