"""What every stage has around its loop: strategy, folders, telemetry, seeds, signals, and errors with exit codes."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist

from training.config.stages import StageConfig
from training.config.tree import config_dict
from training.data.template import TextCodec
from training.errors import RankFailed, Stopped, TrainingError, as_training_error
from training.loop.heartbeat import Heartbeat, explained
from training.models.adapters import merge_adapter
from training.models.attention import HAS_VARLEN
from training.models.compile import speed_up_blocks, use_fast_matmul
from training.models.families import context_of, family_of
from training.models.heads import HeadOptions
from training.models.load import load_causal_lm, load_config
from training.models.lora import convert_to_lora
from training.models.rehearsal import mend_generation
from training.report.phases import phase
from training.report.telemetry import Telemetry, emit
from training.strategies.base import Strategy
from training.strategies.select import open_strategy

DAY = "first_day"
"""A file of the run folder: the day on which the run began."""


@dataclass
class Run:
    """One stage's surroundings. `config` has its automatic values settled (precision, strategy, compile)."""

    stage: str
    config: Any
    strategy: Strategy
    run_dir: Path
    stop: threading.Event
    today: datetime
    """What templates that write the date write: the day on which the run first began."""
    opened: list[Telemetry] = field(default_factory=list)

    @property
    def is_main(self) -> bool:
        return self.strategy.is_main

    @property
    def on_gpu(self) -> bool:
        return self.strategy.device.type == "cuda"

    @property
    def compiled(self) -> bool:
        wanted = self.config.train.compile
        possible = self.strategy.capabilities.compile_blocks and (HAS_VARLEN or not self.on_gpu)
        return possible and (wanted == "on" or (wanted == "auto" and self.on_gpu))

    def note(self, text: str) -> None:
        if self.is_main:
            print(text, flush=True)

    def telemetry(self, total_steps: int, first_step: int) -> Telemetry:
        log = self.config.log
        telemetry = Telemetry(
            self.run_dir, total_steps=total_steps, every=log.every, is_main=self.is_main, tensorboard=log.tensorboard,
            wandb=log.wandb, config={"stage": self.stage, **config_dict(self.config)}, first_step=first_step,
        )  # fmt: skip
        self.opened.append(telemetry)
        return telemetry

    def close(self, exit_code: int) -> None:
        """Say wherever figures go how the run ended; nothing where a stage has closed them itself."""
        while self.opened:
            self.opened.pop().close(exit_code)

    def head_options(self, codec: TextCodec) -> HeadOptions:
        can = self.strategy.capabilities
        return HeadOptions(
            chunk=self.config.train.loss_chunk,
            compiled=self.config.train.compile != "off" and self.on_gpu,
            pad_id=codec.pad_id,
            own_forward=not can.packed,
        )

    def load_codec(self) -> TextCodec:
        """The model's tokenizer and the template that the config says; tells what was chosen for the user."""
        data = self.config.data
        codec = TextCodec.load(
            self.config.model, data.template, data.system, add_special_tokens=data.add_special_tokens, today=self.today
        )
        if codec.notice and self.stage != "pt":
            self.note(codec.notice)
        if codec.added:
            self.note(f"added to the tokenizer: {' '.join(codec.added)}")
        return codec

    def fit_context(self) -> None:
        """Say it when documents may be longer than what the model was made to read; cut them where it can't be."""
        longest = getattr(self.config.train, "max_length", None)
        facts = load_config(self.config.model)
        context = context_of(facts)
        if longest is None or context is None or longest <= context:
            return
        if family_of(facts).position_table:
            self.note(
                f"train.max_length is {longest}, but {self.config.model} has positions for {context} tokens: documents "
                f"end there (train.max_length is {context})"
            )
            self.config = replace(self.config, train=replace(self.config.train, max_length=context))
        else:
            self.note(
                f"train.max_length is {longest}, but {self.config.model} was made for {context} tokens: it has not "
                "learned positions beyond them, and reads longer documents badly until it has"
            )

    def load_model(self, codec: TextCodec) -> Any:
        """The model to train: loaded, checked against the tokenizer, with adapters, fast blocks and recomputation."""
        train, can = self.config.train, self.strategy.capabilities
        with phase(f"loading {self.config.model}", self.note):
            model = self.load_base(self.config.model, attention="auto" if can.packed else "sdpa")
        if codec.added:
            make_room(model, len(codec.tokenizer))
        codec.check_vocabulary(model.get_input_embeddings().num_embeddings)
        if notice := mend_generation(model):
            self.note(notice)
        if self.config.lora is not None:
            layers = convert_to_lora(model, self.config.lora)
            self.note(f"LoRA: rank {self.config.lora.rank} on {len(layers)} layers")
        self.speed_up(model)
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        total = sum(p.numel() for p in model.parameters())
        attention = "packed rows" if model.config._attn_implementation == "navarch_packed" else "padded rows"
        self.note(f"model: {type(model).__name__}, {total:,} parameters, {trained:,} trained, {attention}")
        if train.precision == "fp32" and self.on_gpu:
            self.note("fp32 on a GPU: no flash attention; bf16 is several times faster")
        return model

    def load_base(self, path: str, *, attention: Literal["auto", "sdpa"] = "auto") -> Any:
        """A language model from `path`, with the run's `adapter` merged in where that is the run's own model."""
        model = load_causal_lm(path, attention=attention)
        if self.config.adapter is not None and path == self.config.model:
            model = merge_adapter(model, Path(self.config.adapter))
            self.note(f"merged the adapter {self.config.adapter} into {path}")
        return model

    def speed_up(self, model: Any) -> None:
        """Compile and recompute as the config says and the strategy allows."""
        train = self.config.train
        speed_up_blocks(
            model,
            compiled=self.compiled,
            checkpointing=train.activation_checkpointing,
            dropout=_has_dropout(model),
        )


def _has_dropout(model: torch.nn.Module) -> bool:
    return any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in model.modules())


def settle(config: StageConfig | Any) -> Any:
    """The config with `auto` values and run folder decided for this machine."""
    train = config.train
    if train.precision == "auto":
        train = replace(train, precision="bf16" if torch.cuda.is_available() else "fp32")
    run_dir = config.run_dir or os.environ.get("NAVARCH_RUN_DIR") or "run"
    resume = config.resume or os.environ.get("NAVARCH_RESUME")
    return replace(config, train=train, run_dir=run_dir, resume=resume)


@contextmanager
def open_run(stage: str, config: Any) -> Iterator[Run]:
    """Opens the strategy and the run folder; inside, SIGTERM and SIGINT ask for a stop at the next step."""
    config = settle(config)
    use_fast_matmul()
    with open_strategy(
        config.strategy, precision=config.train.precision, lora=config.partly_frozen, stage=stage,
        accumulation=getattr(config.train, "accumulate", 1),
    ) as strategy:  # fmt: skip
        run_dir = Path(config.run_dir)
        run_dir.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(config.train.seed)
        stop = threading.Event()
        with stop_signals(stop), heartbeat(strategy):
            run = Run(stage, config, strategy, run_dir, stop, first_day(config, run_dir, strategy))
            try:
                run.fit_context()
                yield run
            except BaseException as error:
                run.close(exit_code_of(error))
                raise
            run.close(0)


def first_day(config: Any, run_dir: Path, strategy: Strategy) -> datetime:
    """The day that `data.date` names, else that on which the run began: kept beside its checkpoints, so that a run that
    is resumed the next day reads the same prompts. The same on all ranks."""
    if config.data.day is not None:
        day: datetime = config.data.day
        return day
    resumed = Path(config.resume).absolute().parents[1] if config.resume and config.resume != "auto" else run_dir
    said = [datetime.now().strftime("%Y-%m-%d")]
    if strategy.is_main:
        for folder in (resumed, run_dir) if config.resume else ():
            with suppress(OSError, ValueError):
                said = [datetime.strptime((folder / DAY).read_text().strip(), "%Y-%m-%d").strftime("%Y-%m-%d")]
                break
        (run_dir / DAY).write_text(said[0] + "\n")
    if strategy.world_size > 1:
        dist.broadcast_object_list(said, src=0)
    return datetime.strptime(said[0], "%Y-%m-%d")


@torch.no_grad()
def make_room(model: Any, tokens: int) -> None:
    """Embeddings (and head) for `tokens` tokens; new rows begin as the mean of the others."""
    known = model.get_input_embeddings().num_embeddings
    if tokens <= known:
        return
    model.resize_token_embeddings(tokens, mean_resizing=False)
    for part in (model.get_input_embeddings(), model.get_output_embeddings()):
        if part is not None:
            part.weight[known:] = part.weight[:known].float().mean(0).to(part.weight.dtype)
            if getattr(part, "bias", None) is not None:
                part.bias[known:] = part.bias[:known].float().mean().to(part.bias.dtype)


@contextmanager
def heartbeat(strategy: Strategy) -> Iterator[None]:
    """With several ranks: a dead one is named and this one ends, even from within a collective that never returns."""
    if strategy.world_size == 1 or "MASTER_ADDR" not in os.environ:
        yield
        return

    def lost(message: str) -> None:
        emit("error", kind=RankFailed.kind, message=message, rank=strategy.rank)
        os._exit(RankFailed.exit_code)

    beat = Heartbeat(strategy.rank, strategy.world_size, lost)
    try:
        yield
    except Exception as caught:
        error = as_training_error(caught)
        if isinstance(error, RankFailed):
            error = explained(beat, error)
        beat.close(failure=str(error))
        raise error from caught
    except BaseException:
        beat.close(failure="interrupted")
        raise
    beat.close()


@contextmanager
def stop_signals(stop: threading.Event) -> Iterator[None]:
    """Set `stop` on SIGTERM or SIGINT; a second SIGINT ends at once."""

    def ask(number: int, _: Any) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def guarded(action: Callable[[], None], run_dir: Path | None = None) -> int:
    """Runs a stage and turns whatever it raises into an `error` event, a sentence on stderr and an exit code."""
    try:
        action()
        return 0
    except KeyboardInterrupt:
        error: TrainingError = Stopped("Interrupted before a checkpoint could be saved.")
    except Exception as caught:
        error = as_training_error(caught)
        if type(error) is TrainingError or os.environ.get("NAVARCH_DEBUG"):
            traceback.print_exc()
    rank = int(os.environ.get("RANK", "0"))
    log = run_dir / "events.jsonl" if run_dir is not None and rank == 0 and run_dir.is_dir() else None
    with suppress(OSError):
        if rank == 0 or error.kind != "stopped":
            emit("error", log=log, kind=error.kind, message=str(error), rank=rank)
        print(f"{_mark(error)}{error}", file=sys.stderr, flush=True)
    return error.exit_code


def exit_code_of(error: BaseException) -> int:
    """What the process will end with when this is why it ends."""
    return Stopped.exit_code if isinstance(error, KeyboardInterrupt) else as_training_error(error).exit_code


def _mark(error: TrainingError) -> str:
    return "" if isinstance(error, Stopped) else "error: "
