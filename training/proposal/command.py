"""`navarch-train init STAGE --model DIR --data FILE`: measures, chooses, writes the file, and tries it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from training.atomic import write_atomically
from training.config.load import load_config, parse_yaml
from training.data.template import TextCodec
from training.errors import ConfigError
from training.loop.preflight import preflight
from training.models.families import engine_refusal
from training.models.load import load_config as load_model_config
from training.proposal.choices import Choice, plan
from training.proposal.document import document
from training.proposal.facts import look_at_data, look_at_machine, look_at_model
from training.report.phases import phase

STAGES = ("pt", "sft", "rm", "dpo", "ppo", "grpo")


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code. Raises TrainingError."""
    try:
        options = _parser().parse_args(argv)
    except SystemExit as error:
        return 0 if error.code in (0, None) else ConfigError.exit_code
    return propose(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="navarch-train init", description="Write a first configuration for your model, data and machine."
    )
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--model", required=True, metavar="DIR", help="model folder, or hf:org/name")
    parser.add_argument(
        "--data", required=True, action="append", metavar="FILE", help="file, folder or hf:org/name; may be repeated"
    )
    parser.add_argument(
        "--reward", metavar="DIR|FILE.py:NAME", help="ppo, grpo: a reward model's folder, or a function"
    )
    parser.add_argument("--template", default="auto", help="chat template, as data.template")
    parser.add_argument("--gpus", type=int, metavar="N", help="GPUs that it will run on; default: those that are here")
    parser.add_argument(
        "--memory", type=float, metavar="GIB", help="memory of one GPU, where it will run on another machine"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: STAGE.yaml")
    parser.add_argument("--force", action="store_true", help="write over a file that is there")
    return parser


def propose(options: argparse.Namespace) -> int:
    stage, out = options.stage, options.out or Path(f"{options.stage}.yaml")
    if out.exists() and not options.force:
        raise ConfigError(f"{out} is there already: name another with --out, or write over it with --force.")
    rolls_out = stage in ("ppo", "grpo")
    if rolls_out and not options.reward:
        raise ConfigError(f"{stage} needs what it is to learn: --reward DIR (a reward model) or --reward FILE.py:NAME.")
    if rolls_out and (refusal := engine_refusal(load_model_config(options.model))):
        raise ConfigError(f"{stage.upper()} can't roll out {options.model}: {refusal}.")
    codec = TextCodec.load(options.model, options.template)
    with phase("looking at this machine"):
        machine = look_at_machine(options.gpus, None if options.memory is None else int(options.memory * 2**30))
    model = look_at_model(options.model, machine)
    with phase("measuring the data"):
        data = look_at_data(options.data, stage, codec)
    proposed = plan(stage, data, model, machine)
    facts = [f"data: {data.sentence}", f"model: {model.sentence}", f"machine: {machine.sentence}"]
    facts.append(f"{proposed.steps:,} steps" + (f", about {spoken(proposed.seconds)}" if proposed.seconds else ""))
    start = f"navarch-train {stage} --config {out}"
    if machine.gpus > 1:
        start = f"torchrun --nproc-per-node {machine.gpus} --no-python {start}"
    head = [start, "", "Proposed by navarch-train init from what it measured:", *(f"  {line}" for line in facts)]
    text = document(stage, head, [*given(options), *proposed.choices])
    preflight(stage, load_config(stage, parse_yaml(text, str(out))))
    write_atomically(out, text)
    print("\n".join(facts))
    print(f"written: {out}   start it with: {start}")
    return 0


def given(options: argparse.Namespace) -> Iterator[Choice]:
    """What the command line says, as lines of the file."""
    yield Choice("model", options.model, "")
    yield Choice("data.sources", options.data, "")
    if options.template != "auto":
        yield Choice("data.template", options.template, "")
    if options.reward:
        kind = "function" if ":" in options.reward and not options.reward.startswith("hf:") else "model"
        yield Choice(f"reward.{kind}", options.reward, "")


def spoken(seconds: float) -> str:
    """A duration of two digits."""
    for size, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {name}"
    return f"{seconds:.0f} seconds" if seconds >= 1.5 else "a second"
