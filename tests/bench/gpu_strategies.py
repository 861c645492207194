"""Checks every strategy on one GPU: same loss as naive, exact resume, generation with whole weights, then export.

One JSON line per case; a failing case is reported and the next one goes on. Speeds are gpu_train.py's business.

    python -m tests.bench.gpu_strategies [--shape 135m] [--seconds 220] [--cases zero2,gemini,…]
    python -m tests.bench.gpu_strategies --shape tiny --cpu          (the same on a CPU, with a stand-in accelerator)
    python -m tests.bench.gpu_strategies --speed 135m:naive,1b:colossalai_zero2,1b:colossalai_gemini [--tokens 32768]
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import gc
import json
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig

from tests.bench.gpu_train import SHAPES, SyntheticLoader
from training.config.stages import LoraConfig
from training.config.strategies import OptimizerConfig, StrategyConfig
from training.models.compile import speed_up_blocks
from training.models.heads import HeadOptions, LanguageModelLoss
from training.models.load import from_config
from training.models.lora import convert_to_lora
from training.strategies.base import Strategy, Trained
from training.strategies.select import open_strategy
from training.strategies.world import close_world


@dataclass(frozen=True)
class Case:
    """One strategy with options; `resume` saves, builds everything anew, loads and goes on."""

    strategy: str
    precision: str = "bf16"
    options: dict[str, Any] = field(default_factory=dict)
    lora: bool = False
    compiled: bool = True
    checkpointing: str = "off"
    resume: bool = True
    accumulate: int = 2


CASES = {
    "naive": Case("naive"),
    "zero2": Case("colossalai_zero2"),
    "gemini": Case("colossalai_gemini"),
    "gemini-offload": Case("colossalai_gemini", options={"offload_optimizer": 0.5}),
    "gemini-auto": Case("colossalai_gemini_auto"),
    "zero2-cpu": Case("colossalai_zero2_cpu"),
    "zero1": Case("colossalai_zero1", resume=False),
    "ddp": Case("ddp", resume=False),
    "gemini-full": Case("colossalai_gemini", checkpointing="full", resume=False, accumulate=1),
    "gemini-selective": Case("colossalai_gemini", checkpointing="selective", resume=False),
    "naive-fp16": Case("naive", precision="fp16"),
    "zero2-fp16": Case("colossalai_zero2", precision="fp16"),
    "gemini-fp16": Case("colossalai_gemini", precision="fp16", resume=False),
    "naive-lora": Case("naive", lora=True),
    "zero2-lora": Case("colossalai_zero2", lora=True),
    "3d": Case("colossalai_3d", compiled=False),
}
STEPS = 3


class Bench:
    """Models, batches and one training window, the same for every case."""

    def __init__(self, shape: str, tokens: int, on_gpu: bool) -> None:
        self.shape, self.on_gpu = shape, on_gpu
        self.config = LlamaConfig(**SHAPES[shape])
        self.rows = SyntheticLoader("sft", self.config.vocab_size, tokens, 2, 8).made

    def prepare(self, strategy: Strategy, case: Case) -> Trained:
        torch.manual_seed(0)
        model = from_config(self.config)
        if case.lora:
            convert_to_lora(model, LoraConfig(rank=8))
        compiled = case.compiled and self.on_gpu and strategy.capabilities.compile_blocks
        speed_up_blocks(model, compiled=compiled, checkpointing=case.checkpointing)
        head = HeadOptions(compiled=compiled, own_forward=not strategy.capabilities.packed)
        return strategy.prepare(LanguageModelLoss(model, head), OptimizerConfig(lr=1e-3), lambda step: 1.0)

    def train(self, strategy: Strategy, trained: Trained, case: Case, first: int, steps: int) -> list[float]:
        losses = []
        for number in range(first, first + steps):
            window = self.rows[number % 2].micro_batches[: case.accumulate]
            count = sum(batch.num_targets for batch in window)
            total = torch.zeros((), device=strategy.device)
            for index, batch in enumerate(window):
                here = batch.to(strategy.device)
                with strategy.accumulate(trained, last=index == len(window) - 1):
                    loss = trained.module(here)
                    strategy.backward(trained, loss * strategy.dp_size / count)
                total = total + loss.detach().float()
            strategy.step(trained)
            losses.append(round(float(total) / count, 5))
        return losses

    def run(self, name: str, case: Case) -> dict[str, Any]:
        started = time.perf_counter()
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        strategy = open_strategy(
            StrategyConfig(name=case.strategy, **case.options), precision=case.precision, lora=case.lora,
            accumulation=case.accumulate,
        )  # fmt: skip
        trained = self.prepare(strategy, case)
        result: dict[str, Any] = {"case": name, "losses": self.train(strategy, trained, case, 0, STEPS)}
        if case.resume:
            with tempfile.TemporaryDirectory() as folder:
                strategy.save([trained], Path(folder))
                again = self.prepare(strategy, case)
                strategy.load([again], Path(folder))
            saved, loaded = (strategy.full_state_dict(each, masters=True) for each in (trained, again))
            result["restored"] = all(torch.equal(saved[key], loaded[key]) for key in saved)
            del saved, loaded
            went_on = self.train(strategy, trained, case, STEPS, 2)
            resumed = self.train(strategy, again, case, STEPS, 2)
            one = strategy.full_state_dict(trained, masters=True)
            two = strategy.full_state_dict(again, masters=True)
            apart = max(float((one[key].float() - two[key].float()).abs().max()) for key in one)
            del again
            result |= {"went_on": went_on, "resumed": resumed, "masters_apart": apart}
        if strategy.capabilities.rollouts:
            batch = self.rows[0].micro_batches[0].to(strategy.device)
            with strategy.generation(trained) as module:
                whole = float(module(batch))
            with torch.no_grad():
                sharded = float(trained.module.eval()(batch))
            result["generation_apart"] = abs(whole - sharded) / abs(sharded)
        exported = strategy.full_state_dict(trained)
        result["exported"] = len(exported)
        if self.on_gpu:
            result["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        return result | {"seconds": round(time.perf_counter() - started, 1)}


def speed(spec: str, tokens: int) -> dict[str, Any]:
    """Milliseconds of forward+backward and of the optimizer step, and real tokens/s, for SHAPE:STRATEGY."""
    shape, name = spec.split(":")
    torch.cuda.reset_peak_memory_stats()
    config = LlamaConfig(**SHAPES[shape])
    batches = [
        step.micro_batches[0].to("cuda") for step in SyntheticLoader("sft", config.vocab_size, tokens, 1, 4).made[:4]
    ]
    strategy = open_strategy(StrategyConfig(name=name), precision="bf16")
    with torch.device("cuda"):
        model = from_config(config)
    speed_up_blocks(model, compiled=True)
    trained = strategy.prepare(
        LanguageModelLoss(model, HeadOptions(compiled=True)), OptimizerConfig(lr=1e-5), lambda step: 1.0
    )
    walls, halves = [], []
    for number in range(12):
        batch = batches[number % len(batches)]
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(3)]
        torch.cuda.synchronize()
        started = time.perf_counter()
        marks[0].record()
        with strategy.accumulate(trained, last=True):
            strategy.backward(trained, trained.module(batch) / batch.num_targets)
        marks[1].record()
        strategy.step(trained)
        marks[2].record()
        launched = time.perf_counter() - started
        torch.cuda.synchronize()
        walls.append(time.perf_counter() - started)
        halves.append((marks[0].elapsed_time(marks[1]), marks[1].elapsed_time(marks[2]), 1000 * launched))
    torch.cuda.synchronize()
    started = time.perf_counter()
    for number in range(8):  # as in training: nothing waits between steps
        batch = batches[number % len(batches)]
        with strategy.accumulate(trained, last=True):
            strategy.backward(trained, trained.module(batch) / batch.num_targets)
        strategy.step(trained)
    torch.cuda.synchronize()
    per_step = (time.perf_counter() - started) / 8
    real = sum(batch.num_tokens for batch in batches) / len(batches)
    last = sorted(halves[4:])[len(halves[4:]) // 2]
    return {
        "speed": spec, "tokens_per_second": round(real / per_step), "step_ms": round(1000 * per_step, 1),
        "forward_backward_ms": round(last[0], 1), "optimizer_ms": round(last[1], 2), "launched_ms": round(last[2], 1),
        "first_s": round(walls[0], 1), "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
        "device": torch.cuda.get_device_name(), "torch": torch.__version__,
    }  # fmt: skip


STARTING_SECONDS = 45
"""Imports and the first compilations of a process, on top of a case's time."""


def watch(arguments: argparse.Namespace) -> None:
    """Runs the cases in a child process, and the rest in a new one when a case hangs or takes the process with it."""
    ends = time.monotonic() + arguments.seconds
    waiting = arguments.cases.split(",")
    while waiting:
        command = [
            sys.executable, "-m", "tests.bench.gpu_strategies", "--in-process", "--cases", ",".join(waiting),
            "--shape", arguments.shape, "--seconds", str(max(ends - time.monotonic(), 0)),
            *(["--tokens", str(arguments.tokens)] if arguments.tokens else []), *(["--cpu"] if arguments.cpu else []),
        ]  # fmt: skip
        with tempfile.TemporaryFile("w+") as errors:
            child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
            lines: queue.Queue[str] = queue.Queue()
            threading.Thread(target=pump, args=(child, lines), daemon=True).start()
            patience, why = STARTING_SECONDS + arguments.case_seconds, ""
            while waiting:
                try:
                    line = lines.get(timeout=max(min(patience, ends + 5 - time.monotonic()), 0.1))
                except queue.Empty:
                    why = f"no result after {patience:g} s" if time.monotonic() < ends else "no time left"
                    break
                if not line:
                    why = f"the process ended with {child.wait()}"
                    break
                print(line, end="", flush=True)
                if line.startswith('{"case"'):
                    waiting.pop(0)
                    patience = arguments.case_seconds
            if waiting:
                child.send_signal(signal.SIGABRT)  # faulthandler then says where every thread is
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(3)
                child.kill()
                errors.seek(max(errors.seek(0, 2) - 4000, 0))
                failed = {"case": waiting.pop(0), "ok": False, "error": why, "where": errors.read()}
                print(json.dumps(failed), flush=True)
            child.wait()
        if time.monotonic() > ends:
            for name in waiting:
                print(json.dumps({"case": name, "left_out": "no time"}), flush=True)
            return


def pump(child: subprocess.Popen[str], lines: queue.Queue[str]) -> None:
    """The child's output lines, then an empty one."""
    assert child.stdout is not None
    for line in child.stdout:
        lines.put(line)
    lines.put("")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="135m", choices=SHAPES)
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--speed", default="", help="measure these instead: SHAPE:STRATEGY,…")
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--seconds", type=float, default=220)
    parser.add_argument("--case-seconds", type=float, default=25, help="a case without a result after this is killed")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.speed and not arguments.in_process:
        watch(arguments)
        return
    faulthandler.enable()
    if arguments.cpu:
        from tests.training.colossal_cpu_sim import install

        install()
    started = time.monotonic()
    for spec in filter(None, arguments.speed.split(",")):
        if time.monotonic() - started > arguments.seconds:
            print(json.dumps({"speed": spec, "left_out": "no time"}), flush=True)
            continue
        try:
            print(json.dumps(speed(spec, arguments.tokens or 32768)), flush=True)
        except Exception as error:
            print(json.dumps({"speed": spec, "error": f"{type(error).__name__}: {error}"[:400]}), flush=True)
            traceback.print_exc()
        torch._dynamo.reset()
        gc.collect()
        torch.cuda.empty_cache()
    if arguments.speed:
        close_world()
        return
    bench = Bench(arguments.shape, arguments.tokens or 8192, on_gpu=not arguments.cpu)
    expected: dict[tuple[bool, int], list[float]] = {}
    for name in arguments.cases.split(","):
        case = CASES[name]
        if time.monotonic() - started > arguments.seconds:
            print(json.dumps({"case": name, "left_out": "no time"}), flush=True)
            continue
        if arguments.cpu and case.precision == "fp16":
            print(json.dumps({"case": name, "left_out": "fp16 needs a GPU"}), flush=True)
            continue
        try:
            result = bench.run(name, case)
            key = (case.lora, case.accumulate)
            reference = expected.setdefault(key, result["losses"])
            apart = max(abs(a - b) / b for a, b in zip(result["losses"], reference, strict=True))
            # GPU kernels add in varying order, so only what was restored can be exact; what follows must be close
            same = result.get("restored", True) and all(
                abs(a - b) < 1e-3 * b for a, b in zip(result.get("resumed", []), result.get("went_on", []), strict=True)
            )
            result["loss_apart"] = round(apart, 6)
            result["ok"] = apart < 0.01 and same and result.get("generation_apart", 0.0) < 0.01
            print(json.dumps(result), flush=True)
        except Exception as error:
            print(
                json.dumps({"case": name, "ok": False, "error": f"{type(error).__name__}: {error}"[:400]}), flush=True
            )
            traceback.print_exc()
        gc.collect()
        if not arguments.cpu:
            torch.cuda.empty_cache()
    close_world()


if __name__ == "__main__":
    main()
