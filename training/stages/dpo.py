"""Preference optimization: makes the chosen answer likelier than the rejected one, against a reference (DPO) or not."""

from __future__ import annotations

import hashlib

import torch
import torch.distributed as dist
from torch import Tensor, nn

from training.config.stages import DPOConfig
from training.data.batch import PackedBatch
from training.data.loader import Loader, build_loader
from training.loop.run import Run, open_run
from training.loop.samples import Samples
from training.loop.schedule import total_steps
from training.loop.trainer import Trainer
from training.models.agreement import check_loss, documents_of
from training.models.heads import PreferenceLoss
from training.report.phases import Phase, phase
from training.stages.language import finish, rehearse, write_checkpoint


def run(config: DPOConfig) -> None:
    """Tune on `config.data`'s pairs; the result is in model/ (and adapter/). Raises TrainingError subclasses."""
    with open_run("dpo", config) as run:
        config = run.config
        codec = run.load_codec()
        loader = build_loader(
            "dpo", config.data, config.train, codec,
            rank=run.strategy.dp_rank, world_size=run.strategy.dp_size, note=run.note,
        )  # fmt: skip
        model = run.load_model(codec)
        rehearse(run, model, codec)
        module = PreferenceLoss(model, config.dpo, run.head_options(codec))
        reference = Reference(run, module)
        if reference.needed:
            with phase("computing the reference's log-probs", run.note) as now:
                reference.precompute(loader, now)
        trainer = Trainer(
            run, module, loader, per="pairs", forward=reference.forward,
            check=lambda batch: check_loss(model, documents_of(batch), pad_id=codec.pad_id),
            write_weights=lambda folder: write_checkpoint(run, trainer, model, codec, folder),
        )  # fmt: skip
        samples = Samples(run, model, codec, config.samples)
        trainer.after_evaluation = samples.after_evaluation
        if trainer.step == 0:
            samples.show("before training", trainer.trained, trainer.telemetry)
        trainer.fit()
        finish(run, trainer, model, codec, samples, example=loader.example())


class Reference:
    """The reference's log-probs: from the model with its adapters off, or computed before the first step for every pair
    that the run will see, on all ranks, and kept on the host by the documents' content."""

    def __init__(self, run: Run, module: PreferenceLoss) -> None:
        self.run, self.module = run, module
        wanted = run.config.dpo.reference
        adapter_off = run.config.lora is not None and wanted in ("auto", "adapter_off")
        self.needed = run.config.dpo.loss == "dpo" and not adapter_off
        self.known: dict[bytes, float] = {}

    @torch.no_grad()
    def precompute(self, loader: Loader, now: Phase) -> None:
        """Score each pair once with the untouched model; ranks share their results."""
        strategy, kept = self.run.strategy, {p: p.data for p in self.module.parameters()}
        self.module.to(device=strategy.device)
        for parameter in kept:
            parameter.data = parameter.data.to(strategy.dtype)
        cursor = loader.state_dict()
        total = total_steps(self.run.config.train, loader.steps_per_epoch)
        for number, step in enumerate(loader.steps(total)):
            now.at(number, total, "steps")
            for batch in step.micro_batches:
                if not self.known:  # this may take long: a model that computes something else is refused before it
                    documents = documents_of(batch.to(strategy.device))
                    check_loss(self.module.model, documents, pad_id=self.module.options.pad_id)
                self._score(batch)
        loader.load_state_dict(cursor)
        for batch in loader.evaluation():
            self._score(batch)
        for parameter, original in kept.items():  # prepare takes its fp32 masters from the weights as they were loaded
            parameter.data = original
        if strategy.world_size > 1:
            shares: list[dict[bytes, float]] = [{} for _ in range(strategy.world_size)]
            dist.all_gather_object(shares, self.known)
            for share in shares:
                self.known.update(share)
        self.run.note(f"reference log-probs of {len(self.known):,} answers computed")

    def _score(self, batch: PackedBatch) -> None:
        keys = document_keys(batch)
        if all(key in self.known for key in keys):
            return
        values = self.module.reference(batch.to(self.run.strategy.device)).tolist()
        self.known.update(zip(keys, values, strict=True))

    def forward(self, module: nn.Module, batch: PackedBatch, host_batch: PackedBatch) -> dict[str, Tensor]:
        """The trainer's forward: the loss module with the reference's values where it needs them."""
        if not self.needed:
            result: dict[str, Tensor] = module(batch)
            return result
        values = torch.tensor([self.known[key] for key in document_keys(host_batch)])
        result = module(batch, values.to(batch.tokens.device, non_blocking=True))
        return result


def document_keys(batch: PackedBatch) -> list[bytes]:
    """A digest of each document's tokens and labels: the same on every rank, wherever the document lies."""
    return [
        hashlib.blake2b(tokens.numpy().tobytes() + labels.numpy().tobytes(), digest_size=12).digest()
        for tokens, labels in batch.documents()
    ]
