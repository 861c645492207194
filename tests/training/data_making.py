"""Makes tokenizers and data files for the data tests."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_TEXT = [
    "what is the capital of the small green island",
    "the stone bridge over the river is old",
    "你好 世界 今天 天气 很 好",
]


def tokenizer_folder(
    folder: Path,
    *,
    template: str | None = CHATML,
    special: Sequence[str] = ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    eos: str = "<|im_end|>",
    pad: str | None = None,
    bos: str | None = None,
    adds_bos: bool = False,
    size: int = 400,
) -> Path:
    """A folder with a byte-level BPE tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXT * 4, trainer)
    if adds_bos:
        assert bos is not None
        number = tokenizer.token_to_id(bos)
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, number)])
    names = {"eos_token": eos, "pad_token": pad, "bos_token": bos}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{k: v for k, v in names.items() if v})
    fast.chat_template = template
    fast.save_pretrained(folder)
    return folder


def write_jsonl(path: Path, rows: Sequence[Any]) -> Path:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")
    return path


def questions(count: int, *, longest: int = 40) -> list[dict[str, str]]:
    """Alpaca rows of very unequal lengths, all different."""
    return [
        {"instruction": f"question {i}", "input": "", "output": " ".join(["word"] * (1 + (i * i) % longest)) + f" {i}"}
        for i in range(count)
    ]


def preferences(count: int) -> list[dict[str, Any]]:
    return [
        {"prompt": f"question {i}", "chosen": "good " * (1 + i % 7) + str(i), "rejected": "bad " * (1 + i % 5) + str(i)}
        for i in range(count)
    ]


@dataclass(frozen=True)
class Train:
    """The part of a train section that the loader reads."""

    packing: bool = True
    max_length: int = 64
    batch_size: int = 4
    tokens_per_batch: int | None = 128
    accumulate: int = 1
    seed: int = 7
