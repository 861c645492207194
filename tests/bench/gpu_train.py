"""Measures training on one GPU through the stages' own trainer: synthetic documents, random-init LLaMA shapes.

One JSON line per case with tokens/s (real tokens, median of steady steps) and peak GiB. Cases are given as
stage:shape:strategy[:option=value,…] and each has a time limit of its own (it runs in a process of its own).

    python -m tests.bench.gpu_train sft:135m:naive sft:1b:naive rm:135m:naive --limit 90
    python -m tests.bench.gpu_train --self-test
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

SHAPES: dict[str, dict[str, Any]] = {
    "135m": {
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True, "max_position_embeddings": 2048,
        "rope_theta": 100000.0, "rms_norm_eps": 1e-5,
    },
    "1b": {
        "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32,
        "num_key_value_heads": 4, "vocab_size": 32000, "tie_word_embeddings": False, "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
    },
    "tiny": {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 512, "tie_word_embeddings": True, "max_position_embeddings": 2048,
    },
}  # fmt: skip
MAX_LENGTH = 2048
WINDOW = 16384
"""Documents that are packed together, as many as in the stages by default."""
DEFAULTS: dict[str, Any] = {
    "tokens": 32768, "steps": 24, "warmup": 8, "compile": "auto", "checkpointing": "off", "lora": 0,
    "precision": "auto", "accumulate": 1, "chunk": 0, "attention": "own",
}  # fmt: skip


def document_lengths(count: int, seed: int) -> list[int]:
    """Log-normal lengths of 32–2048 tokens, mean about 340."""
    import numpy as np

    drawn = np.random.default_rng(seed).lognormal(mean=5.45, sigma=0.9, size=count)
    return [int(length) for length in np.clip(drawn, 32, MAX_LENGTH)]


def synthetic_loader(stage: str, vocabulary: int, tokens: int, accumulate: int, steps: int) -> Any:
    """The stages' own loader and packer over a store of random documents: pairs for rm and dpo."""
    from pathlib import Path

    import numpy as np

    from training.data.documents import join_stores
    from training.data.loader import Loader, layout_of, most_units
    from training.data.packing import PackingRule
    from training.data.store import DOCUMENT, StoreWriter, TokenStore

    width = 2 if stage in ("rm", "dpo") else 1
    lengths = np.array(document_lengths(WINDOW if tokens > 8192 else 64, 0))
    documents = np.zeros(len(lengths), DOCUMENT)
    documents["length"], documents["row"] = lengths, np.arange(len(lengths)) // width
    documents["key"], documents["line"] = documents["row"], documents["row"] + 1
    prompts = lengths // 3 if stage == "dpo" else np.zeros_like(lengths)  # a third of each document is prompt
    documents["prompt"], documents["targets"] = prompts, lengths - np.maximum(prompts, 1)
    total = int(lengths.sum())
    targets = np.ones(total, dtype=np.bool_)
    for start, prompt in zip(np.cumsum(lengths) - lengths, prompts, strict=True):
        targets[start : start + prompt] = False
    folder = Path(tempfile.mkdtemp())
    writer = StoreWriter(folder, vocabulary)
    writer.append(documents, np.random.default_rng(1).integers(0, vocabulary, total), targets)
    writer.finish({"kind": "pair" if width == 2 else "document", "files": ["synthetic.jsonl"]})
    joined = join_stores([TokenStore(folder)], [1.0], [])
    units = most_units(joined.length, tokens)
    rule = PackingRule(
        packed=True, capacity=tokens, batch_size=8, max_units=units, window=WINDOW, shuffle=True, seed=0
    )  # fmt: skip
    return Loader(joined, rule, layout_of(rule, MAX_LENGTH, width, 0), accumulate=accumulate)


class SyntheticLoader:
    """Some steps of `synthetic_loader`, made beforehand."""

    def __init__(self, stage: str, vocabulary: int, tokens: int, accumulate: int, steps: int) -> None:
        self.made = list(synthetic_loader(stage, vocabulary, tokens, accumulate, steps).steps(min(steps, 8)))


def config_folder(shape: str) -> str:
    """A model folder without weights: what a run asks of a model before it loads it."""
    from transformers import LlamaConfig

    folder = tempfile.mkdtemp()
    LlamaConfig(**SHAPES[shape]).save_pretrained(folder)
    return folder


def measure(case: str) -> dict[str, Any]:
    """Run one case in this process."""
    stage, shape, strategy, *rest = case.split(":")
    options = dict(DEFAULTS)
    for item in rest[0].split(",") if rest else []:
        key, _, value = item.partition("=")
        if key not in DEFAULTS:
            raise SystemExit(f"unknown option {key}; known: {', '.join(DEFAULTS)}")
        options[key] = type(DEFAULTS[key])(value)
    import torch

    from training.config.load import load_config
    from training.loop.run import open_run
    from training.loop.trainer import LAG, Trainer
    from training.models import attention_kernels
    from training.models.blocks import trunk_of
    from training.models.heads import HeadOptions, LanguageModelLoss, PreferenceLoss, RewardLoss, RewardModel
    from training.models.load import from_config
    from training.models.lora import convert_to_lora

    attention_kernels.AVAILABLE &= options["attention"] == "own"  # else torch's variable-length attention
    torch.manual_seed(0)
    tree: dict[str, Any] = {
        "model": config_folder(shape), "data": ["synthetic"], "strategy": strategy, "run_dir": tempfile.mkdtemp(),
        "log": {"every": 10_000, "tensorboard": False},
        "train": {
            "max_steps": options["steps"], "lr": 1e-5, "tokens_per_batch": options["tokens"],
            "compile": options["compile"],
            "activation_checkpointing": options["checkpointing"],
            "precision": options["precision"], "accumulate": options["accumulate"],
            "head_chunk": options["chunk"] or None,
        },
    }  # fmt: skip
    if options["lora"]:
        tree["lora"] = {"rank": options["lora"]}
    config = load_config(stage, tree)
    from transformers import LlamaConfig

    with open_run(stage, config) as run:
        if run.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        llama = LlamaConfig(**SHAPES[shape])
        with torch.device(run.strategy.device):
            model = from_config(llama)
        if run.config.lora is not None:
            convert_to_lora(model, run.config.lora)
        run.speed_up(model)
        head = HeadOptions(
            chunk=run.config.train.loss_chunk, compiled=run.on_gpu and options["compile"] != "off",
            own_forward=not run.strategy.capabilities.packed,
        )  # fmt: skip
        loader = synthetic_loader(stage, llama.vocab_size, options["tokens"], options["accumulate"], options["steps"])
        module: torch.nn.Module
        forward = None
        if stage in ("pt", "sft"):
            module = LanguageModelLoss(model, head)
        elif stage == "rm":
            module = RewardLoss(RewardModel(trunk_of(model)), config.reward)
        else:
            module = PreferenceLoss(model, config.dpo, head)
            if not options["lora"]:  # log-probs computed once before training, as the stage does

                def forward(wrapped: Any, batch: Any, _: Any) -> Any:
                    return wrapped(batch, torch.full((batch.num_documents,), -100.0, device=batch.tokens.device))

        extra = {"forward": forward} if forward is not None else {}
        trainer = Trainer(run, module, loader, per="targets" if stage in ("pt", "sft") else "pairs", **extra)
        started = time.perf_counter()
        figures = trainer.fit()
        steady = slice(options["warmup"], max(options["steps"] - LAG, options["warmup"] + 1))
        seconds, tokens = trainer.step_seconds[steady], trainer.step_tokens[steady]
        rates = [count / time_taken for count, time_taken in zip(tokens, seconds, strict=True)]
        result = {
            "case": case, "tokens_per_second": round(statistics.median(rates)),
            "step_ms": round(1000 * statistics.median(seconds), 1),
            "real_tokens_per_step": round(statistics.mean(tokens)),
            "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if run.on_gpu else None,
            "loss": figures.get("loss"), "first_step_s": round(trainer.step_seconds[0], 1),
            "total_s": round(time.perf_counter() - started, 1),
            "device": torch.cuda.get_device_name() if run.on_gpu else "cpu", "torch": torch.__version__,
        }  # fmt: skip
        trainer.telemetry.close()
    return result


def self_test() -> list[dict[str, Any]]:
    """Equality on this device of what is fast with what is plain: attention, head, fused and compiled blocks."""
    import torch
    from torch.nn import functional as F
    from transformers import LlamaConfig

    from training.models import attention_kernels, chunked_head
    from training.models.compile import speed_up_blocks
    from training.models.heads import HeadOptions, LanguageModelLoss
    from training.models.load import from_config

    device = "cuda" if torch.cuda.is_available() else "cpu"
    results = []

    def report(name: str, error: float, allowed: float) -> None:
        results.append({"self_test": name, "error": error, "allowed": allowed, "ok": error <= allowed})
        print(json.dumps(results[-1]), flush=True)

    torch.manual_seed(0)
    row = next(synthetic_loader("sft", 512, 4096, 1, 1).steps(1)).micro_batches[0].to(device)
    attention_self_test(row, device, report)
    hidden = torch.randn(4096, 128, device=device, dtype=torch.bfloat16, requires_grad=True)
    weight = (torch.randn(1024, 128, device=device) * 0.1).to(torch.bfloat16).requires_grad_()
    compiled = device == "cuda"
    loss = chunked_head.cross_entropy_sum(
        hidden, chunked_head.Head(weight), row.labels.clamp(max=1023), chunk=1024, compiled=compiled
    )
    got = torch.autograd.grad(loss, (hidden, weight))
    wide = [x.detach().float().requires_grad_() for x in (hidden, weight)]
    wanted = F.cross_entropy(wide[0] @ wide[1].t(), row.labels.clamp(max=1023), reduction="sum")
    expected = torch.autograd.grad(wanted, wide)
    kernel_self_test(device, report)
    report("head loss", float((loss - wanted).detach().abs() / wanted.detach()), 1e-3)
    for name, one, two in zip(("dhidden", "dweight"), got, expected, strict=True):
        report(f"head {name}", float((one.float() - two).norm() / two.norm()), 0.02)
    for size in (16, 64):  # 64: by our own kernels
        losses, gradients = [], []
        for fast in (False, True):
            torch.manual_seed(1)
            model = from_config(LlamaConfig(**SHAPES["tiny"], head_dim=size)).to(device, torch.bfloat16)
            if fast:
                speed_up_blocks(model, compiled=device == "cuda")
            available = attention_kernels.AVAILABLE
            attention_kernels.AVAILABLE &= fast
            module = LanguageModelLoss(model, HeadOptions(chunk=1024, compiled=fast and device == "cuda"))
            total = module(row)
            total.backward()
            attention_kernels.AVAILABLE = available
            losses.append(float(total))
            gradients.append(torch.cat([p.grad.float().flatten() for p in model.parameters()]))
        report(f"compiled model, heads of {size}: loss", abs(losses[1] - losses[0]) / losses[0], 1e-3)
        apart = float((gradients[1] - gradients[0]).norm() / gradients[0].norm())
        report(f"compiled model, heads of {size}: gradients", apart, 0.03)
    return results


def attention_self_test(row: Any, device: str, report: Any) -> None:
    """Ways of attention within documents against each document by itself in fp32; the same twice, where it is ours."""
    import torch
    from transformers import LlamaConfig

    from training.models import attention

    kinds = ((torch.bfloat16, 64), (torch.bfloat16, 128), (torch.float16, 64), (torch.bfloat16, 96))
    for dtype, size in kinds if device == "cuda" else kinds[:1]:
        config = LlamaConfig(hidden_size=6 * size, num_attention_heads=6, num_key_value_heads=2)
        shape = row.tokens.shape[0], size
        made = [torch.randn(1, heads, *shape, device=device).to(dtype) for heads in (6, 2, 2)]
        work = attention.document_work(config, row.cu_seqlens, row.tokens.shape[0])
        ways = {"own": work} if work is not None else {}
        found = {}
        for name, given in {
            "reference": None,
            "torch's": None,
            **ways,
            **{f"{way} again": work for way in ways},
        }.items():
            wide = torch.float32 if name == "reference" else dtype  # fp32 takes the per-document path
            qkv = [x.to(wide).requires_grad_() for x in made]
            out, _ = attention.packed_attention(
                torch.nn.Module(), *qkv, None, scaling=0.125, cu_seq_lens_q=row.cu_seqlens,
                max_length_q=row.max_seqlen, document_work=given,
            )  # fmt: skip
            weight = torch.linspace(-1, 1, out.numel(), device=device).view_as(out).to(wide)
            found[name] = [out.detach(), *torch.autograd.grad((out * weight).sum(), qkv)]
        for name in ("torch's", *ways):
            for part, fast, plain in zip(("out", "dq", "dk", "dv"), found[name], found["reference"], strict=True):
                error = float((fast.float() - plain).abs().max() / plain.abs().max())
                report(f"attention {name} {str(dtype)[6:]} {size} {part}", error, 0.02)
        for name in ways:
            apart = [float((x - y).abs().max()) for x, y in zip(found[name], found[f"{name} again"], strict=True)]
            report(f"attention {name} {str(dtype)[6:]} {size}: twice the same", max(apart), 0)


def kernel_self_test(device: str, report: Any) -> None:
    """The optimizer's kernels against torch's fused AdamW, from the same weights and gradients."""
    import torch

    from training.config.strategies import OptimizerConfig
    from training.optimizer.adamw import MasterAdamW
    from training.optimizer.kernels import PieceKernels

    for shapes in ([(64, 96), (96,), (4096, 33), (1000, 1024)], [(7, 5), (5,), (33, 9), (101, 97)]):
        states, weights, norms = [], [], []
        for fast in (False, True):
            torch.manual_seed(3)
            members = [
                (str(i), torch.nn.Parameter(torch.randn(shape, device=device).to(torch.bfloat16)))
                for i, shape in enumerate(shapes)
            ]
            flat = {name for name, p in members if p.ndim < 2}
            adam = MasterAdamW(members, OptimizerConfig(lr=1e-2, weight_decay=0.1, max_grad_norm=3.0), flat)
            if not fast:
                adam.kernels = [None] * len(adam.kernels)
            for step in range(5):
                for _, parameter in members:
                    parameter.grad = torch.randn(parameter.shape, device=device).to(torch.bfloat16)
                if step == 3:  # leaves everything as it is
                    members[0][1].grad.view(-1)[0] = float("nan")
                norm = adam.step(1e-2 / (step + 1))
            norms.append(float(norm))
            states.append(torch.cat([entry[key] for entry in adam.state().values() for key in sorted(entry)]))
            weights.append(torch.cat([parameter.detach().float().flatten() for _, parameter in members]))
        name = f"optimizer kernels ({'used' if PieceKernels.possible(torch.bfloat16, states[0].device) else 'absent'})"
        report(f"{name}: norm", abs(norms[0] - norms[1]) / norms[0], 1e-5)
        report(f"{name}: masters and moments", float((states[0] - states[1]).abs().max()), 1e-5)
        apart = (weights[0] - weights[1]).abs() > 0.008 * weights[0].abs() + 1e-6
        report(f"{name}: weights that differ by more than one rounding", float(apart.sum()), 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*")
    parser.add_argument("--limit", type=float, default=100, help="seconds for one case")
    parser.add_argument("--budget", type=float, default=1e9, help="seconds for all; cases that don't fit are left out")
    parser.add_argument("--self-test", action="store_true")
    parser.add_argument("--profile", default="", help="stage:shape:strategy: where a step's time goes, and variants")
    parser.add_argument("--variants", default="", help="comma-separated; default: all")
    parser.add_argument("--tokens", type=int, default=DEFAULTS["tokens"], help="of a step, with --profile")
    parser.add_argument("--profile-steps", type=int, default=5)
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    if arguments.in_process:
        faulthandler.dump_traceback_later(max(arguments.limit - 8, 5), exit=False)
        print(json.dumps(measure(arguments.cases[0])), flush=True)
        return
    if arguments.self_test:
        self_test()
    if arguments.profile:
        from tests.bench.gpu_profile import run

        options = {"tokens": arguments.tokens, "chunk": 8192, "steps": arguments.profile_steps,
                   "variants": [name for name in arguments.variants.split(",") if name]}  # fmt: skip
        run(arguments.profile, options, SHAPES, synthetic_loader, arguments.limit)
    started = time.monotonic()
    for case in arguments.cases:
        left = arguments.budget - (time.monotonic() - started)
        if left < 20:
            print(json.dumps({"case": case, "error": "left out: no time"}), flush=True)
            continue
        command = [
            sys.executable,
            "-m",
            "tests.bench.gpu_train",
            "--in-process",
            case,
            "--limit",
            str(min(arguments.limit, left)),
        ]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=min(arguments.limit, left), check=False
            )
            lines = [line for line in done.stdout.splitlines() if line.startswith('{"case"')]
            tail = (done.stderr or done.stdout)[-1500:]
            print(lines[-1] if lines else json.dumps({"case": case, "error": tail}), flush=True)
        except subprocess.TimeoutExpired as late:
            said = (late.stderr or b"").decode("utf-8", "replace")[-1500:]
            print(
                json.dumps({"case": case, "error": f"took more than {arguments.limit:g} s", "where": said}), flush=True
            )


if __name__ == "__main__":
    main()
