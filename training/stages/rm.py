"""Trains a reward model from pairs of answers: a causal LM's trunk with one linear score, read at the last token."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from training.config.stages import RMConfig
from training.config.tree import config_dict
from training.data.loader import build_loader
from training.data.template import TextCodec
from training.loop.results import Results
from training.loop.run import Run, open_run
from training.loop.trainer import Trainer
from training.models.agreement import check_hidden, documents_of
from training.models.blocks import trunk_of
from training.models.export import load_reward_model, manifest, reward_weights, save_reward_model
from training.models.heads import RewardLoss, RewardModel
from training.models.lora import lora_layers, merged_state_dict, save_adapter
from training.models.rehearsal import rehearse_reward_model
from training.report.phases import phase

PREFIX = "model."
"""Where the reward model sits in the loss module."""


def run(config: RMConfig) -> None:
    """Train on `config.data`'s pairs; model/ holds trunk and score together. Raises TrainingError subclasses."""
    with open_run("rm", config) as run:
        config = run.config
        codec = run.load_codec()
        loader = build_loader(
            "rm", config.data, config.train, codec,
            rank=run.strategy.dp_rank, world_size=run.strategy.dp_size, note=run.note,
        )  # fmt: skip
        trunk = trunk_of(run.load_model(codec))
        model = RewardModel(trunk, pad_id=codec.pad_id, head_init=config.reward.head_init)
        if config.reward.trunk == "frozen":
            model.trunk.requires_grad_(False)
            run.note(f"the trunk is frozen: {model.score.weight.numel():,} weights of the head are trained")
        if run.is_main:
            rehearse_reward_model(run.run_dir, model, codec, dtype=run.strategy.dtype)
        trainer = Trainer(
            run, RewardLoss(model, config.reward), loader, per="pairs",
            check=lambda batch: check_hidden(model.trunk, documents_of(batch), pad_id=codec.pad_id),
            write_weights=lambda folder: write_checkpoint(run, trainer, model, codec, folder),
        )  # fmt: skip
        trainer.fit()
        finish(run, trainer, model, codec)


def whole_state(run: Run, trainer: Trainer, model: RewardModel) -> dict[str, Tensor]:
    """trunk.* and score.weight on rank 0, adapters merged in; {} elsewhere."""
    state = {n.removeprefix(PREFIX): t for n, t in run.strategy.full_state_dict(trainer.trained).items()}
    return merged_state_dict(model, state) if state and lora_layers(model) else state


def write_checkpoint(run: Run, trainer: Trainer, model: RewardModel, codec: TextCodec, folder: Path) -> None:
    """A checkpoint's weights, as `load_reward_model` reads them."""
    state = whole_state(run, trainer, model)
    if run.is_main:
        reward_weights(folder, model, state, codec)


def finish(run: Run, trainer: Trainer, model: RewardModel, codec: TextCodec) -> None:
    """Write model/ (a sequence classifier with one label) and, under LoRA, adapter/; then evaluate and announce."""
    with phase("writing the model", run.note):
        results = export(run, trainer, model, codec)
    with results.kept():
        if run.is_main:
            load_reward_model(str(run.run_dir / "model"), pad_id=codec.pad_id)  # must fail now, not in PPO
        trainer.finish()
    results.announce(trainer.figures)
    trainer.telemetry.close()


def export(run: Run, trainer: Trainer, model: RewardModel, codec: TextCodec) -> Results:
    config, results = run.config, Results(trainer.telemetry)
    names = run.strategy.full_state_dict(trainer.trained)
    state = whole_state(run, trainer, model)
    if run.is_main:
        if lora_layers(model):
            plain = {name.removeprefix(f"{PREFIX}trunk."): tensor for name, tensor in names.items()}
            save_adapter(model.trunk, plain, run.run_dir / "adapter", base=config.model, task="FEATURE_EXTRACTION")
            results.add(run.run_dir / "adapter", "adapter")
        facts = manifest(
            "reward_model", stage="rm", base=config.model, step=trainer.step, metrics=trainer.figures,
            config=config_dict(config),
        )  # fmt: skip
        save_reward_model(run.run_dir / "model", model, state, codec, facts)
        results.add(run.run_dir / "model", "model", facts)
    run.strategy.barrier()
    return results
