"""Measures TRL's trainers on one GPU with the documents and the shapes of gpu_train: speed and peak memory.

One JSON line per case, each in a process of its own. A case is stage:shape:setup[:option=value,…]; `padded` is TRL's
default, `packed` its `packing=True`. What no option changes is TRL's default (fp32 weights under bf16 autocast, fused
AdamW, activation checkpointing on, 8 rows a step, SDPA), but rows of 2048 tokens. Only real tokens count, no padding.

    python -m tests.bench.gpu_peers                  # the plan below
    python -m tests.bench.gpu_peers sft:1b:packed:rows=16,attention=varlen --self-test
    python -m tests.bench.gpu_peers --cpu            # the same plan with a tiny model

TRL 1.16 needs transformers 4.56 or later, so an environment of its own. If it lies in a folder on PYTHONPATH,
its path must hold the word site-packages, or dill, which datasets uses for fingerprints, pickles whole modules.

Counterparts in gpu_train, with at least as many tokens in a micro-batch (both hold 16 bytes of state per weight):

    sft:135m:padded (about 2,700 real tokens a step)      sft:135m:naive:tokens=4096,checkpointing=full
    sft:135m:padded:checkpointing=off                     sft:135m:naive:tokens=4096
    sft:135m:packed (16,384 tokens)                       sft:135m:naive:tokens=16384,checkpointing=full
    sft:135m:packed:rows=16 (32,768 tokens)               sft:135m:naive:checkpointing=full
    sft:135m:packed:rows=16,checkpointing=off             sft:135m:naive
    rm:135m:padded:rows=48,checkpointing=off              rm:135m:naive

`packed` flattens its rows into one. Without the flash_attn package transformers then builds a dense block-diagonal
[t, t] mask: documents don't see each other (`--self-test` looks), but attention costs t² time and memory. TRL with
flash_attn is imitated by `attention=varlen`: torch's own variable-length flash attention, bounds from TRL's collator.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

from tests.bench.gpu_train import MAX_LENGTH, SHAPES, document_lengths

DEFAULTS: dict[str, Any] = {
    "rows": 8, "length": MAX_LENGTH, "checkpointing": "on", "attention": "sdpa", "weights": "fp32", "steps": 40,
}  # fmt: skip
WARM_UP = 3
"""Steps that are not measured; one, where a case is so slow that three would leave fewer than two."""
SFT_PLAN = (
    "packed:rows=16", "packed:rows=16,checkpointing=off", "padded", "packed",
    "packed:rows=16,attention=varlen", "packed:rows=16,attention=varlen,checkpointing=off", "padded:checkpointing=off",
)  # fmt: skip
RM_PLAN = ("padded", "padded:rows=48,checkpointing=off")
PLAN = [f"sft:{shape}:{setup}" for setup in SFT_PLAN for shape in ("135m", "1b")] + [f"rm:135m:{s}" for s in RM_PLAN]
FIRST_WORD = 3
"""Token ids below are the tokenizer's own: pad, begin and end."""


def parse(case: str) -> tuple[str, str, str, dict[str, Any]]:
    """stage, shape, setup and options of a case."""
    stage, shape, setup, *rest = case.split(":")
    options = dict(DEFAULTS)
    for item in rest[0].split(",") if rest else []:
        key, _, value = item.partition("=")
        if key not in DEFAULTS:
            raise SystemExit(f"unknown option {key}; known: {', '.join(DEFAULTS)}")
        options[key] = type(DEFAULTS[key])(value)
    if stage not in ("sft", "rm") or setup not in ("padded", "packed") or (stage, setup) == ("rm", "packed"):
        raise SystemExit(f"unknown case {case}: give sft:SHAPE:padded, sft:SHAPE:packed or rm:SHAPE:padded")
    return stage, shape, setup, options


def on_cpu(case: str) -> str:
    """The same case with the tiny model, short rows and four steps."""
    stage, _, setup, options = parse(case)
    options.update(rows=min(options["rows"], 8), length=256, steps=4)
    return f"{stage}:tiny:{setup}:{','.join(f'{key}={value}' for key, value in options.items())}"


def tokenizer() -> Any:
    """A tokenizer of three words: the trainers take their pad id from one, though the documents are token ids."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<pad>": 0, "<s>": 1, "</s>": 2}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def documents(stage: str, count: int, vocabulary: int, longest: int) -> Any:
    """A data set of `count` documents (pairs for rm) of random token ids."""
    import numpy as np
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    random = np.random.default_rng(1)
    rows = [
        random.integers(FIRST_WORD, vocabulary, min(length, longest)).tolist()
        for length in document_lengths(2 * count if stage == "rm" else count, 0)
    ]
    if stage == "rm":
        return Dataset.from_dict({"chosen_ids": rows[0::2], "rejected_ids": rows[1::2]})
    return Dataset.from_dict({"input_ids": rows, "labels": rows})


def register_varlen() -> None:
    """torch's variable-length flash attention (per-document SDPA on a CPU) as transformers' attention "varlen"."""
    import torch
    from transformers import AttentionInterface

    from training.models.attention import packed_attention

    def varlen(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **extra: Any) -> Any:
        kind = query.device.type
        if torch.is_autocast_enabled(kind):  # autocast doesn't know this operator
            query, key, value = (each.to(torch.get_autocast_dtype(kind)) for each in (query, key, value))
        return packed_attention(module, query, key, value, attention_mask, **extra)

    AttentionInterface.register("varlen", varlen)


def random_model(stage: str, shape: str, attention: str, weights: str) -> Any:
    """A LLaMA of this shape with random weights, on the GPU if there is one."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig

    if attention == "varlen":
        register_varlen()
    config = LlamaConfig(**SHAPES[shape], pad_token_id=0, num_labels=1)
    family = AutoModelForCausalLM if stage == "sft" else AutoModelForSequenceClassification
    dtype = torch.bfloat16 if weights == "bf16" else torch.float32
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        return family.from_config(config, attn_implementation=attention, dtype=dtype)


def callback(seconds: float) -> Any:
    """A trainer callback that marks each step's end on the GPU's own clock and stops the run after `seconds`."""
    import torch
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.marks: list[Any] = []
            self.began = 0.0

        def mark(self) -> None:
            if torch.cuda.is_available():
                self.marks.append(torch.cuda.Event(enable_timing=True))
                self.marks[-1].record()
            else:
                self.marks.append(time.perf_counter())

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            if not self.marks:
                self.began = time.perf_counter()
                self.mark()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.mark()
            if time.perf_counter() - self.began > seconds and state.global_step >= 3:
                control.should_training_stop = True

        def durations(self) -> list[float]:
            if not torch.cuda.is_available():
                return [after - before for before, after in zip(self.marks, self.marks[1:], strict=False)]
            torch.cuda.synchronize()
            return [a.elapsed_time(b) / 1000 for a, b in zip(self.marks, self.marks[1:], strict=False)]

    return Clock()


class CountingCollator:
    """TRL's own collator; remembers how many real tokens and how many in all each batch has."""

    def __init__(self, collator: Any) -> None:
        self.collator = collator
        self.real: list[int] = []
        self.padded: list[int] = []

    def __call__(self, examples: Any) -> Any:
        batch = self.collator(examples)
        self.padded.append(batch["input_ids"].numel())
        self.real.append(int(batch["attention_mask"].sum()) if "attention_mask" in batch else self.padded[-1])
        return batch


def measure(case: str, seconds: float) -> dict[str, Any]:
    """Run one case in this process."""
    started = time.perf_counter()
    stage, shape, setup, options = parse(case)
    import accelerate
    import datasets
    import torch
    import transformers
    import trl

    gpu = torch.cuda.is_available()
    rows, length, steps = options["rows"], options["length"], options["steps"]
    count = rows * steps if setup == "padded" else int(rows * steps * length / min(300, length / 2))
    shared: dict[str, Any] = {
        "output_dir": tempfile.mkdtemp(), "per_device_train_batch_size": rows, "max_length": length,
        "gradient_checkpointing": options["checkpointing"] == "on", "max_steps": steps, "report_to": "none",
        "save_strategy": "no", "disable_tqdm": True, "use_cpu": not gpu,
    }  # fmt: skip
    kind: Any = trl.SFTTrainer if stage == "sft" else trl.RewardTrainer
    arguments = trl.SFTConfig(**shared, packing=setup == "packed") if stage == "sft" else trl.RewardConfig(**shared)
    clock = callback(seconds)
    trainer = kind(
        model=random_model(stage, shape, options["attention"], options["weights"]),
        args=arguments, processing_class=tokenizer(), callbacks=[clock],
        train_dataset=documents(stage, count, SHAPES[shape]["vocab_size"], length),
    )  # fmt: skip
    counts = trainer.data_collator = CountingCollator(trainer.data_collator)
    result: dict[str, Any] = {
        "peer": "trl", "case": case, "device": torch.cuda.get_device_name() if gpu else "cpu",
        "weights": f"{options['weights']}, bf16 autocast" if arguments.bf16 else options["weights"],
        "versions": {m.__name__: m.__version__ for m in (trl, transformers, accelerate, datasets)}
        | {"torch": str(torch.__version__)},
        "set_up_s": round(time.perf_counter() - started, 1),
    }  # fmt: skip
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    try:
        loss = trainer.train().training_loss
    except torch.OutOfMemoryError as full:
        seen = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        return result | {"error": "out of memory", "peak_gib": seen, "said": str(full)[:160]}
    taken = clock.durations()
    steady = slice(min(WARM_UP, max(len(taken) - 2, 0)), len(taken))
    spans, real, padded = taken[steady], counts.real[steady], counts.padded[steady]
    return result | {
        "tokens_per_second": round(statistics.median(n / span for n, span in zip(real, spans, strict=True))),
        "mean_tokens_per_second": round(sum(real) / sum(spans)),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if gpu else None,
        "step_ms": round(1000 * statistics.median(spans), 1),
        "real_tokens_per_step": round(statistics.mean(real)), "padded_tokens_per_step": round(statistics.mean(padded)),
        "most_padded_tokens": max(counts.padded[: len(taken)]), "steps": len(spans), "loss": round(loss, 3),
        "total_s": round(time.perf_counter() - started, 1),
    }  # fmt: skip


def self_test() -> None:
    """Whether documents that TRL packs see each other: change one, look at the others' log-probabilities."""
    import torch
    import trl
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    gpu = torch.cuda.is_available()
    for attention in ("sdpa", "varlen"):
        torch.manual_seed(0)
        model = random_model("sft", "tiny", attention, "bf16" if gpu else "fp32")
        trainer = trl.SFTTrainer(
            model=model, processing_class=tokenizer(), train_dataset=documents("sft", 24, 512, 128),
            args=trl.SFTConfig(
                output_dir=tempfile.mkdtemp(), packing=True, max_length=256, report_to="none", use_cpu=not gpu
            ),
        )  # fmt: skip
        assert isinstance(trainer.data_collator, DataCollatorForLanguageModeling)
        batch = trainer.data_collator([trainer.train_dataset[row] for row in range(3)])
        batch = {key: x.to(model.device) if isinstance(x, torch.Tensor) else x for key, x in batch.items()}
        start, stop = batch["cu_seq_lens_q"][1:3].tolist()
        scores = []
        for shift in (0, 1):
            batch["input_ids"][:, start:stop] = (batch["input_ids"][:, start:stop] + shift) % 512
            with torch.no_grad():
                scores.append(model(**batch, fused_lm_head=True, use_cache=False).log_probs[0].float())
        apart = (scores[1] - scores[0]).abs()
        own, others = float(apart[start : stop - 1].max()), torch.cat([apart[: start - 1], apart[stop:]])
        report = {"self_test": f"trl packed, {attention}: leak", "documents": len(batch["cu_seq_lens_q"]) - 1,
                  "own": own, "others": float(others.max()), "ok": float(others.max()) < 1e-3 < own}  # fmt: skip
        print(json.dumps(report), flush=True)


def run(case: str, limit: float, seconds: float) -> dict[str, Any]:
    """One case in a process of its own."""
    command = [sys.executable, "-m", "tests.bench.gpu_peers", "--in-process", case, "--seconds", str(seconds)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired as late:
        said = (late.stderr or b"").decode("utf-8", "replace")[-800:]
        return {"peer": "trl", "case": case, "error": f"took more than {limit:g} s", "where": said}
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"peer"')]
    if lines:
        result: dict[str, Any] = json.loads(lines[-1])
        return result
    return {"peer": "trl", "case": case, "error": (done.stderr or done.stdout)[-1500:]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help="default: the whole plan")
    parser.add_argument("--limit", type=float, default=60, help="seconds for one case, imports included")
    parser.add_argument("--seconds", type=float, default=10, help="of training after which a case ends early")
    parser.add_argument("--budget", type=float, default=1e9, help="seconds for all; cases that don't fit are left out")
    parser.add_argument("--cpu", action="store_true", help="the cases with a tiny model")
    parser.add_argument("--self-test", action="store_true")
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    os.environ.update(HF_HUB_OFFLINE="1", USE_JAX="0", TOKENIZERS_PARALLELISM="false")
    if arguments.cpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if arguments.in_process:
        print("\n" + json.dumps(measure(arguments.cases[0], arguments.seconds)), flush=True)
        return
    if arguments.self_test:
        self_test()
    started = time.monotonic()
    for case in arguments.cases or ([] if arguments.self_test else PLAN):
        left = arguments.budget - (time.monotonic() - started)
        if left < 15:
            print(json.dumps({"peer": "trl", "case": case, "error": "left out: no time"}), flush=True)
            continue
        wanted = on_cpu(case) if arguments.cpu else case
        print(json.dumps(run(wanted, min(arguments.limit, left), arguments.seconds)), flush=True)


if __name__ == "__main__":
    main()
