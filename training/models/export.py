"""Writes what training made as ordinary Hugging Face folders with a manifest, and checks an export by its logits."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
)
from transformers.modeling_utils import PreTrainedModel

import training
from training.atomic import atomic_directory, write_atomically
from training.data.template import TextCodec
from training.errors import ConfigError, MissingInput, TrainingError, as_training_error
from training.models.blocks import trunk_name
from training.models.heads import RewardModel
from training.models.load import attention_for, default_attention, load_config, resolve_model

MANIFEST = "navarch.json"


def manifest(
    kind: str, *, stage: str, base: str, step: int, metrics: Mapping[str, float], config: Any
) -> dict[str, Any]:
    """Where a model came from: kept beside its weights and passed on from stage to stage."""
    history = []
    previous = Path(base) / MANIFEST
    if previous.is_file():
        known = json.loads(previous.read_text(encoding="utf-8"))
        history = [*known.get("history", []), {key: known.get(key) for key in ("stage", "base", "step", "metrics")}]
    return {
        "format": 1, "kind": kind, "stage": stage, "base": base, "step": step, "metrics": dict(metrics),
        "history": history, "config": config, "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": {"navarch": getattr(training, "__version__", "0.1.0"), "torch": torch.__version__},
    }  # fmt: skip


def save_model(
    target: Path, model: PreTrainedModel, state: Mapping[str, Tensor], codec: TextCodec, facts: Mapping[str, Any]
) -> None:
    """`state` (the plain model's names) as safetensors with config, generation config, tokenizer, manifest.

    Raises TrainingError saying where the bare weights were left when that fails.
    """
    with _kept_anyway(target, state), atomic_directory(target) as folder:
        write_weights(folder, model, state, codec)
        write_manifest(folder, facts)


def write_manifest(folder: Path, facts: Mapping[str, Any]) -> None:
    write_atomically(folder / MANIFEST, json.dumps(facts, indent=1, ensure_ascii=False) + "\n")


@contextmanager
def _kept_anyway(target: Path, state: Mapping[str, Tensor]) -> Iterator[None]:
    """When what is inside fails, the weights are written without all the rest, and the error says where."""
    try:
        yield
    except Exception as error:
        known, place = as_training_error(error), target.with_name(f"{target.name}-weights.safetensors")
        try:
            once = {tensor.data_ptr(): name for name, tensor in reversed(state.items())}
            save_file({name: state[name].detach().contiguous() for name in once.values()}, place)
        except Exception as second:
            raise type(known)(f"{known} The bare weights could not be written either: {second}") from error
        raise type(known)(f"{target} could not be written: {known} The trained weights are in {place}.") from error


def write_weights(folder: Path, model: PreTrainedModel, state: Mapping[str, Tensor], codec: TextCodec) -> None:
    """A Hugging Face folder's files, without a rename."""
    shown = copy.copy(model.config)
    dtypes = {tensor.dtype for tensor in state.values() if tensor.is_floating_point()}
    shown.torch_dtype = next(iter(dtypes)) if len(dtypes) == 1 else torch.float32
    shown.use_cache = True
    original, model.config = model.config, shown
    try:
        if model.generation_config is not None:
            model.generation_config.eos_token_id = list(codec.stop_ids)
            model.generation_config.pad_token_id = codec.pad_id
        model.save_pretrained(folder, state_dict=dict(state), safe_serialization=True)
    finally:
        model.config = original
    codec.save(folder)


@torch.no_grad()
def check_export(folder: Path, expected: Tensor, tokens: Tensor, *, tolerance: float) -> float:
    """Root mean square difference of logits between the trained model (`expected` [s, V] for `tokens` [s]) and `folder`
    as plain transformers loads it (in the files' own precision, on the CPU), relative to the logits' own spread.

    Raises TrainingError when it exceeds `tolerance`: the export isn't the model that was trained.
    """
    attention = default_attention(load_config(str(folder)))
    plain = AutoModelForCausalLM.from_pretrained(
        folder, torch_dtype="auto", attn_implementation=attention, low_cpu_mem_usage=True
    ).eval()
    got = plain(input_ids=tokens[None].cpu()).logits[0].float()
    wanted = expected.float().cpu()
    error = float((got - wanted).square().mean().sqrt() / wanted.std().clamp(min=1e-6))
    if not error <= tolerance:
        raise TrainingError(
            f"The exported model in {folder} differs from the trained one: its logits are off by {error:.3g} of their "
            f"spread (allowed {tolerance:g}). Its files hold the trained weights; please report this."
        )
    return error


def save_reward_model(
    target: Path, model: RewardModel, state: Mapping[str, Tensor], codec: TextCodec, facts: Mapping[str, Any]
) -> None:
    """`reward_weights` with a manifest, at once; as `save_model` when that fails."""
    with _kept_anyway(target, state), atomic_directory(target) as folder:
        reward_weights(folder, model, state, codec)
        write_manifest(folder, facts)


def reward_weights(folder: Path, model: RewardModel, state: Mapping[str, Tensor], codec: TextCodec) -> None:
    """Trunk and score in one folder, as transformers' AutoModelForSequenceClassification (one label) reads it.

    `state` has RewardModel's names (trunk.*, score.weight). Raises ConfigError where transformers has no such class.
    """
    config = copy.deepcopy(model.trunk.config)
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise ConfigError(
            f"transformers has no sequence classifier for {config.model_type}: take another architecture."
        )
    config.num_labels, config.pad_token_id, config.torch_dtype = 1, codec.pad_id, state["score.weight"].dtype
    config._attn_implementation = None
    with torch.device("meta"):
        shell = AutoModelForSequenceClassification.from_config(config)
    prefix = trunk_name(shell)
    renamed = {f"{prefix}.{n.removeprefix('trunk.')}": t for n, t in state.items() if n.startswith("trunk.")}
    shell.config.torch_dtype = state["score.weight"].dtype
    shell.save_pretrained(
        folder, state_dict={**renamed, "score.weight": state["score.weight"]}, safe_serialization=True
    )
    codec.save(folder)


def load_reward_model(path: str, *, dtype: torch.dtype | str = "auto", pad_id: int = 0) -> RewardModel:
    """A reward model that `save_reward_model` wrote. Raises MissingInput when the folder has no score head."""
    source, config = resolve_model(path), load_config(path)
    if getattr(config, "num_labels", None) != 1:
        raise MissingInput(f"{path} is no reward model: its config has {config.num_labels} labels, not 1.")
    whole, report = AutoModelForSequenceClassification.from_pretrained(
        source, config=config, torch_dtype=dtype, attn_implementation=attention_for(config), output_loading_info=True
    )
    if any("score" in name for name in report["missing_keys"]):
        raise MissingInput(f"{path} is no reward model: its weights have no score head.")
    model = RewardModel(getattr(whole, trunk_name(whole)), pad_id=pad_id, head_init="zero")
    model.trunk.config.use_cache = False
    with torch.no_grad():
        model.score.weight.copy_(whole.score.weight)
    return model


__all__ = [
    "check_export",
    "load_reward_model",
    "manifest",
    "reward_weights",
    "save_model",
    "save_reward_model",
    "write_manifest",
]
