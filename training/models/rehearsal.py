"""Tries before training everything that an export does after it, with weights of one number each.

A run that can't be written must be refused before its first step, not after its last.
"""

from __future__ import annotations

import copy
import json
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, GenerationConfig
from transformers.modeling_utils import PreTrainedModel

from training.data.template import TextCodec
from training.errors import ConfigError, TrainingError, WriteFailed
from training.models.blocks import trunk_name
from training.models.export import reward_weights, write_weights
from training.models.heads import RewardModel
from training.models.load import load_config
from training.models.lora import plain_names

SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
GENERATION = (
    *SAMPLING, "do_sample", "max_length", "min_length", "early_stopping", "num_beams", "num_beam_groups",
    "diversity_penalty", "repetition_penalty", "length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size",
    "bad_words_ids", "num_return_sequences", "forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values",
    "exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens",
)  # fmt: skip
"""Keys that old models have in config.json and that belong into generation_config.json."""
VOLATILE = {"torch_dtype", "dtype", "use_cache", "architectures", "transformers_version"}
"""Keys of config.json that an export may change."""
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")


def mend_generation(model: PreTrainedModel) -> str:
    """Make the generation config one that transformers agrees to write; returns what was changed, or "".

    Many published models (Vicuna, Llama-2-chat) have a temperature and no do_sample: transformers reads that, and
    refuses to save it.
    """
    config = getattr(model, "generation_config", None)
    if config is None:
        return ""
    default = GenerationConfig()
    for name in GENERATION:
        value = getattr(model.config, name, None)
        if value is not None and value != getattr(default, name, None):
            setattr(config, name, value)  # where transformers would put them while saving
            setattr(model.config, name, None)
    if not _complaint(config):
        return ""
    asked = [name for name in SAMPLING if getattr(config, name) not in (None, getattr(default, name))]
    if asked and not config.do_sample:
        config.do_sample = True
        if not _complaint(config):
            return f"generation_config.json sets {', '.join(asked)}: do_sample, which it lacks, is written with it"
    complaint = _complaint(config)
    kept = {name: getattr(config, name, None) for name in _IDS}
    model.generation_config = GenerationConfig(**kept)
    return f"generation_config.json is left out of what is written, transformers refuses it: {complaint}"


def _complaint(config: GenerationConfig) -> str:
    """What `save_pretrained` would refuse the config for, once anything in it was changed; or ""."""
    tried = copy.deepcopy(config)
    tried._original_object_hash = None  # by which transformers 5 lets pass what was only read
    with TemporaryDirectory() as folder, warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        try:
            tried.save_pretrained(folder)
        except (ValueError, TypeError, AttributeError) as error:
            frame = ("invalid", "Thrown during", "Fix these")
            said = [line for line in str(error).splitlines() if line and not any(word in line for word in frame)]
            return (said or [str(error)])[0][:200]
    return ""


def rehearse_model(run_dir: Path, model: PreTrainedModel, codec: TextCodec, *, dtype: torch.dtype) -> None:
    """`model/` of a language model (adapters count as merged). Raises ConfigError, or WriteFailed where space lacks."""
    state = plain_names(model.state_dict())
    config = _rehearse(run_dir, state, codec, lambda folder, small: write_weights(folder, model, small, codec), dtype)
    _same_config(model.config, config)
    with torch.device("meta"):
        shell = AutoModelForCausalLM.from_config(config)
    _whole(shell, set(state))


def rehearse_reward_model(run_dir: Path, model: RewardModel, codec: TextCodec, *, dtype: torch.dtype) -> None:
    """The same for trunk and score, which are written as a sequence classifier."""
    state = plain_names(model.state_dict())
    config = _rehearse(run_dir, state, codec, lambda folder, small: reward_weights(folder, model, small, codec), dtype)
    with torch.device("meta"):
        shell = AutoModelForSequenceClassification.from_config(config)
    prefix = trunk_name(shell)
    _whole(shell, {name.replace("trunk.", f"{prefix}.", 1) if name.startswith("trunk.") else name for name in state})


def _rehearse(
    run_dir: Path,
    state: Mapping[str, Tensor],
    codec: TextCodec,
    write: Callable[[Path, dict[str, Tensor]], None],
    dtype: torch.dtype,
) -> Any:
    """Write and read back; returns the config that was read."""
    enough_space(run_dir, state, dtype)
    with TemporaryDirectory(prefix=".rehearsal-", dir=run_dir) as name:
        folder = Path(name)
        try:
            write(folder, _small(state))
            config, read = load_config(name), TextCodec.load(name)
        except TrainingError:
            raise
        except Exception as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ConfigError(
                f"The model of this run could not be written in the end (tried before training): {first}"
            ) from error
    if read.fingerprint != codec.fingerprint or read.stop_ids != codec.stop_ids:
        raise ConfigError(
            "The tokenizer of this run would come back changed from its own files (tried before training): another "
            "vocabulary, template or stop tokens. Please report it with the name of the model."
        )
    return config


def enough_space(run_dir: Path, state: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Raises WriteFailed when the weights won't fit where the run writes."""
    size = torch.empty((), dtype=dtype).element_size()
    seen = {tensor.data_ptr(): tensor.numel() for tensor in state.values()}
    needed, free = sum(seen.values()) * size, shutil.disk_usage(run_dir).free
    if needed > free:
        raise WriteFailed(
            f"The trained weights will take {needed / 2**30:.1f} GiB, and {run_dir} has {free / 2**30:.1f} GiB free: "
            "make room, or give another run_dir."
        )


def _small(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One number for each tensor; those that share memory go on sharing.

    Experts that lie in one tensor of three dimensions keep their number, and the two that their gate and value need:
    transformers 5 takes them apart while it writes.
    """
    made: dict[tuple[int, int], Tensor] = {}
    for tensor in state.values():
        shape = (tensor.shape[0], 2, 1) if tensor.ndim == 3 else (1,)
        made.setdefault((tensor.data_ptr(), tensor.numel()), torch.zeros(shape, dtype=tensor.dtype))
    return {name: made[tensor.data_ptr(), tensor.numel()] for name, tensor in state.items()}


def _whole(shell: PreTrainedModel, written: set[str]) -> None:
    """Every tensor that a reader's model has must be among what is written (or tied to one that is)."""
    tied = tuple(getattr(shell, "_tied_weights_keys", None) or ())
    lost = sorted(name for name in shell.state_dict() if name not in written and not name.endswith(tied or ("\0",)))
    if lost:
        raise ConfigError(
            f"The model of this run would be written without {lost[0]} and {len(lost) - 1} more tensors that "
            f"transformers' {type(shell).__name__} reads (tried before training): this architecture can't be exported."
        )


def _same_config(trained: Any, read: Any) -> None:
    ours, theirs = (json.loads(json.dumps(config.to_dict(), default=str)) for config in (trained, read))
    compared = [key for key in ours if key not in VOLATILE and not key.startswith("_")]
    changed = [key for key in compared if ours[key] != theirs.get(key)]
    if changed:
        key = changed[0]
        raise ConfigError(
            f"The model's config would come back changed from its own file (tried before training): {key} is "
            f"{ours[key]!r} and would be {theirs.get(key)!r}."
        )
