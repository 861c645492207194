"""Loads any Hugging Face causal language model from a folder or the hub, with attention on packed rows where it can."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM
from transformers.modeling_utils import PreTrainedModel

from training.errors import ConfigError, MissingInput
from training.hub import hub_refusal, reach_hub
from training.models import attention as _registered  # noqa: F401 - makes "navarch_packed" known to transformers
from training.models.config_file import read_config
from training.models.families import only_eager, takes_packed_rows

HUB_PREFIX = "hf:"


def resolve_model(path: str) -> str:
    """What transformers is given: a folder that holds a config.json, or a hub id from `hf:org/name`.

    Raises MissingInput saying what is wrong with the folder.
    """
    if path.startswith(HUB_PREFIX):
        reach_hub()
        return path[len(HUB_PREFIX) :]
    folder = Path(path).expanduser()
    if not folder.exists():
        raise MissingInput(f"There is no model folder {path}. For a model of the Hugging Face hub write hf:org/name.")
    if not folder.is_dir():
        hint = " Import it first: navarch-train import-gguf." if folder.suffix == ".gguf" else ""
        raise MissingInput(f"{path} is a file; a model is a Hugging Face folder with config.json and weights.{hint}")
    if (folder / "adapter_config.json").exists() and not (folder / "config.json").exists():
        raise MissingInput(
            f"{path} holds only an adapter; give the folder of the merged model, usually model/ beside it."
        )
    if not (folder / "config.json").exists():
        raise MissingInput(f"{path} is no model folder: it has no config.json.")
    return str(folder)


def load_config(path: str) -> Any:
    """The model's transformers config; ConfigError when its architecture is unknown or the file is broken."""
    return read_config(resolve_model(path), path)


def load_causal_lm(
    path: str,
    *,
    dtype: torch.dtype | Literal["auto"] = "auto",
    attention: Literal["auto", "navarch_packed", "sdpa", "eager"] = "auto",
) -> PreTrainedModel:
    """The model in train mode on the CPU, with key-value caching off.

    dtype "auto" keeps the files' own. attention "auto" takes packed rows where the architecture supports them.
    Raises MissingInput for absent, incomplete or corrupt weights, ConfigError for an unusable config.
    """
    source, config = resolve_model(path), load_config(path)
    if attention == "auto":
        attention = attention_for(config)
    elif attention == "sdpa" and only_eager(config):
        attention = "eager"
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            source, config=config, torch_dtype=dtype, attn_implementation=attention, output_loading_info=True
        )
    except Exception as error:  # safetensors, pickle, zip and json each have their own
        if refusal := hub_refusal(path, error):
            raise refusal from error
        raise MissingInput(f"The weights in {path} can't be read: {_first_line(error)}") from error
    lost = [name for name in report["missing_keys"] if not name.endswith(("score.weight", ".inv_freq"))]
    if lost or report["mismatched_keys"]:
        names = [*lost, *(str(entry[0]) for entry in report["mismatched_keys"])]
        raise MissingInput(
            f"The weights in {path} don't fit its config: {len(names)} tensors are missing or of another shape, "
            f"the first is {names[0]}."
        )
    return ready(model)


def from_config(config: Any, *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A randomly initialised model of this config (benchmarks, tests), attention chosen as `load_causal_lm` does."""
    attention = attention_for(config)
    config = copy.deepcopy(config)  # transformers writes its choice of attention into it
    return ready(AutoModelForCausalLM.from_config(config, torch_dtype=dtype, attn_implementation=attention))


def attention_for(config: Any) -> Literal["navarch_packed", "sdpa", "eager"]:
    """The fastest attention that computes what the architecture means."""
    return "navarch_packed" if takes_packed_rows(config) else default_attention(config)


def default_attention(config: Any) -> Literal["sdpa", "eager"]:
    """SDPA where transformers has it and it computes what the architecture means; else the model's own."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    try:
        found = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    except KeyError:
        raise ConfigError(f"{config.model_type} is not a causal language model in transformers.") from None
    return "sdpa" if getattr(found, "_supports_sdpa", False) and not only_eager(config) else "eager"


def ready(model: Any) -> PreTrainedModel:
    model.config.use_cache = False
    model.train()
    loaded: PreTrainedModel = model
    return loaded


def check_vocabulary(model: PreTrainedModel, tokens: int, path: str) -> None:
    """Refuse a tokenizer with more entries than the model has embeddings (`tokens`: largest id + 1)."""
    rows = model.get_input_embeddings().num_embeddings
    if tokens > rows:
        raise ConfigError(
            f"The tokenizer makes ids up to {tokens - 1} but the model in {path} has embeddings for {rows}: "
            "they don't belong together."
        )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
