"""navarch-train: runs a training stage, serves a model, looks at data. Imports torch only when needed."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training.config.help import help_text
from training.config.load import load_config
from training.config.stages import config_class
from training.config.strategies import Wanted, check_strategy
from training.config.tree import nearest
from training.errors import ConfigError, TrainingError
from training.report.phases import phase
from training.report.telemetry import emit

USAGE = """\
navarch-train: post-training of language models, on one GPU or many

  navarch-train STAGE --config run.yaml [key=value …] [--resume auto|PATH] [--run-dir DIR]

stages
  pt      continued pre-training on text
  sft     supervised fine-tuning on conversations (alpaca, ShareGPT, …)
  rm      reward model from pairs of answers
  dpo     direct preference optimization from pairs of answers
  ppo     reinforcement learning from a reward model or function
  grpo    the same without a critic: answers of one prompt are compared (GRPO, RLOO, DAPO, Dr. GRPO, GSPO)

tools
  init         a first run.yaml:          navarch-train init sft --model DIR --data FILE
  serve        OpenAI-compatible server:  navarch-train serve --model DIR [key=value …]
  quantize     int8 or int4 weights:      navarch-train quantize MODEL OUT --bits 4
  data         check | stats | dedup:     navarch-train data check FILE
  import-gguf  GGUF file to HF folder:    navarch-train import-gguf FILE OUT
  plot         curves as an SVG file:     navarch-train plot RUN_DIR… --out curves.svg

  navarch-train STAGE --help      every key of the stage, with its default
  navarch-train STAGE --check …   look at configuration, model, template and first rows, and stop

Several processes:  torchrun --nproc-per-node 8 --no-python navarch-train sft --config run.yaml
Overrides win over the file:  train.lr=1e-5 strategy=ddp lora.rank=8 data=rows.jsonl data.sources.0.weight=2
"""
STAGES = ("pt", "sft", "rm", "dpo", "ppo", "grpo")
TOOLS = {
    "init": "training.proposal.command",
    "quantize": "training.serving.quantize",
    "data": "training.data.cli",
    "import-gguf": "training.models.gguf",
    "plot": "training.report.plot",
}


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code says whose fault a failure was: 64–66 the user's, 70 ours, 74 the disk's, 75 resume me, 76 NaN."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded: waiting threads sleep, not spin
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0 if arguments else 64
    command, rest = arguments[0], arguments[1:]
    try:
        if command in STAGES or command == "serve":
            return _stage(command, rest)
        if command in TOOLS:
            return int(importlib.import_module(TOOLS[command]).main(rest) or 0)
        raise ConfigError(f"There is no command {command!r}.{nearest(command, [*STAGES, 'serve', *TOOLS])}")
    except TrainingError as error:
        emit("error", kind=error.kind, message=str(error))
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def _stage(stage: str, arguments: Sequence[str]) -> int:
    options = _parse(stage, arguments)
    if options.help:
        print(describe(stage))
        return 0
    config = load_config(stage, options.config or {}, options.overrides)
    if stage != "serve":
        check_strategy(config.strategy, wanted(stage, config))
    if options.check:
        return _check(stage, config, options.config or "the configuration")
    if stage == "serve":
        return int(importlib.import_module("training.serving.server").run(config) or 0)
    print(f"navarch-train {stage}: loading", flush=True)
    with phase("loading torch"):
        from training.loop.run import guarded, settle

        module = importlib.import_module(f"training.stages.{stage}")
    code = guarded(lambda: module.run(config), Path(settle(config).run_dir))
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from training.strategies.world import leave

        leave(code)
    return code


def _check(stage: str, config: Any, name: str) -> int:
    """Look at all that can be known without reading weights; what a run would refuse is raised here."""
    preflight = importlib.import_module("training.loop.preflight")
    if stage == "serve":
        preflight.check_served(config)
    else:
        preflight.preflight(stage, config)
    print(f"{name} is a valid {stage} run")
    return 0


def wanted(stage: str, config: Any) -> Wanted:
    """What the run asks of its strategy, as far as it is known before a device is looked at."""
    precision = config.train.precision
    return Wanted(
        precision="bf16" if precision == "auto" else precision,
        lora=config.partly_frozen,
        stage=stage,
        world_size=int(os.environ.get("WORLD_SIZE", "1")),
        accumulation=getattr(config.train, "accumulate", 1),
    )


class _Options:
    """What the command line says besides the command."""

    def __init__(self) -> None:
        self.config: str | None = None
        self.overrides: list[str] = []
        self.help = self.check = False


_TO_KEY = {"--resume": "resume", "--run-dir": "run_dir", "--model": "model"}


def _parse(stage: str, arguments: Sequence[str]) -> _Options:
    options = _Options()
    queue = list(arguments)
    while queue:
        word = queue.pop(0)
        name, attached, value = word.partition("=")
        if word in ("-h", "--help"):
            options.help = True
        elif word == "--check":
            options.check = True
        elif name in ("--config", "-c", *_TO_KEY):
            if not attached:
                if not queue:
                    raise ConfigError(f"{name} needs a value.")
                value = queue.pop(0)
            if name in _TO_KEY:
                options.overrides.append(f"{_TO_KEY[name]}={value}")
            else:
                options.config = value
        elif word.startswith("-"):
            raise ConfigError(
                f"{stage} has no option {name}.{nearest(name, ['--config', '--help', '--check', *_TO_KEY])}"
            )
        elif attached:
            options.overrides.append(word)
        else:
            raise ConfigError(f"{word!r} is neither an option nor key=value. See navarch-train {stage} --help.")
    return options


def describe(stage: str) -> str:
    """Every key of a stage: its default, what it may be, what it means."""
    title = f"navarch-train {stage} --config run.yaml [key=value …]"
    return help_text(title, config_class(stage))


if __name__ == "__main__":
    sys.exit(main())
