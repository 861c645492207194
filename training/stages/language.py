"""Trains a language model on next tokens: what pt and sft have in common, from loading to the exported model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.config.stages import PTConfig, SFTConfig
from training.config.tree import config_dict
from training.data.loader import build_loader
from training.data.template import TextCodec
from training.loop.results import Results
from training.loop.run import Run, open_run
from training.loop.samples import Samples
from training.loop.trainer import Trainer
from training.models.agreement import check_loss, documents_of
from training.models.compile import uncompiled
from training.models.export import check_export, manifest, save_model, write_weights
from training.models.heads import LanguageModelLoss, NoisyEmbedding
from training.models.lora import lora_layers, merged_state_dict, save_adapter
from training.models.rehearsal import rehearse_model
from training.report.phases import phase

CHECK_TOKENS = 64
"""Tokens on which an exported model's logits are compared with the trained one's."""
TOLERANCE = {"fp32": 2e-3, "bf16": 0.1, "fp16": 0.05}
"""Allowed difference there, as a share of the logits' spread: what the precision's rounding explains."""


def run_language_stage(stage: str, config: PTConfig | SFTConfig) -> None:
    """One run, top to bottom. Raises TrainingError subclasses."""
    with open_run(stage, config) as run:
        config = run.config
        codec = run.load_codec()
        loader = build_loader(
            stage,
            config.data,
            config.train,
            codec,
            rank=run.strategy.dp_rank,
            world_size=run.strategy.dp_size,
            note=run.note,
        )
        model = run.load_model(codec)
        rehearse(run, model, codec)
        noise = NoisyEmbedding(model, config.train.neftune) if config.train.neftune else None
        module = LanguageModelLoss(model, run.head_options(codec))
        trainer = Trainer(
            run, module, loader, per="targets",
            around=noise.noise_for if noise else None,
            check=lambda batch: check_loss(model, documents_of(batch), pad_id=codec.pad_id),
            write_weights=lambda folder: write_checkpoint(run, trainer, model, codec, folder),
        )  # fmt: skip
        samples = Samples(run, model, codec, config.samples)
        trainer.after_evaluation = samples.after_evaluation
        if trainer.step == 0:
            samples.show("before training", trainer.trained, trainer.telemetry)
        trainer.fit()
        finish(run, trainer, model, codec, samples, example=loader.example())


def rehearse(run: Run, model: Any, codec: TextCodec) -> None:
    """Try what the end of the run needs, now."""
    if run.is_main:
        rehearse_model(run.run_dir, model, codec, dtype=run.strategy.dtype)


def model_names(state: dict[str, Tensor], prefix: str = "model.") -> dict[str, Tensor]:
    """Names inside the loss module → the model's own."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items()}


def write_checkpoint(run: Run, trainer: Trainer, model: Any, codec: TextCodec, folder: Path) -> None:
    """A checkpoint's weights as a Hugging Face folder, or the adapter alone under LoRA."""
    state = model_names(run.strategy.full_state_dict(trainer.trained))
    if not run.is_main:
        return
    if lora_layers(model):
        save_adapter(model, state, folder, base=run.config.model)
    else:
        write_weights(folder, model, state, codec)


def finish(run: Run, trainer: Trainer, model: Any, codec: TextCodec, samples: Samples, *, example: list[int]) -> None:
    """Write adapter/ (under LoRA) and model/ before all else; then check the export, evaluate, and announce."""
    with phase("writing the model", run.note):
        results = export(run, trainer, model, codec)
    with results.kept():
        check(run, trainer, model, results, torch.tensor(example[:CHECK_TOKENS]))
        trainer.finish()
        samples.show("after training", trainer.trained, trainer.telemetry)
    results.announce(trainer.figures)
    trainer.telemetry.close()


def export(run: Run, trainer: Trainer, model: Any, codec: TextCodec) -> Results:
    config, results = run.config, Results(trainer.telemetry)
    state = model_names(run.strategy.full_state_dict(trainer.trained))
    if run.is_main:
        if lora_layers(model):
            save_adapter(model, state, run.run_dir / "adapter", base=config.model)
            results.add(run.run_dir / "adapter", "adapter")
            state = merged_state_dict(model, state)
        if config.lora is None or config.lora.merge:
            facts = manifest(
                "model", stage=run.stage, base=config.model, step=trainer.step, metrics=trainer.figures,
                config=config_dict(config),
            )  # fmt: skip
            save_model(run.run_dir / "model", model, state, codec, facts)
            results.add(run.run_dir / "model", "model", facts)
    run.strategy.barrier()
    return results


def check(run: Run, trainer: Trainer, model: Any, results: Results, tokens: Tensor) -> None:
    """Compare model/ with the model under training, by their logits. Every rank must call it."""
    expected = trained_logits(run, trainer, model, tokens)
    written, folder = any(kind == "model" for _, kind, _ in results.folders), run.run_dir / "model"
    if written and expected is None and run.strategy.capabilities.rollouts:
        run.note(f"exported {folder}, its logits unchecked: the whole weights don't fit beside what the GPU holds")
    elif written and expected is not None:
        error = check_export(folder, expected, tokens, tolerance=TOLERANCE[run.config.train.precision])
        run.note(
            f"exported {folder}: its logits agree with the trained model's (difference {error:.1e} of their spread)"
        )
    run.strategy.barrier()


def trained_logits(run: Run, trainer: Trainer, model: Any, tokens: Tensor) -> Tensor | None:
    """[s, V] of the model under training, on rank 0; None where the strategy can't show whole weights."""
    if not run.strategy.shows_whole(trainer.trained):
        return None
    with run.strategy.generation(trainer.trained), uncompiled(model):
        if not run.is_main:
            return None
        logits: Tensor = model(input_ids=tokens[None].to(run.strategy.device), use_cache=False).logits[0].float().cpu()
    return logits
