"""`navarch-train data check | stats | dedup | synthesize`: looks at data, cleans it and makes some."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training.config.data import DataConfig, DataSource
from training.data.formats import FORMATS, STAGE_KINDS
from training.data.records import Placed, SourceRows
from training.data.synthetic import KINDS, synthesize
from training.errors import ConfigError, DataError


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0 fine, 64 wrong usage, 65 bad rows, 66 no such file. Raises TrainingError."""
    parser = _parser()
    try:
        options = parser.parse_args(argv)
    except SystemExit as error:
        return 0 if error.code in (0, None) else ConfigError.exit_code
    try:
        return int(options.run(options))
    except BrokenPipeError:  # the reader (head, less) has seen enough
        sys.stderr.close()
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="navarch-train data", description="Look at data before it is trained on.")
    commands = parser.add_subparsers(required=True, metavar="check | stats | dedup | synthesize")

    check = commands.add_parser("check", help="list every row that a run would refuse, with its file and line")
    _source(check)
    check.add_argument("--limit", type=int, default=20, metavar="N", help="rows to list (all: 0); default 20")
    check.add_argument("--json", action="store_true", help="print one JSON object")
    check.set_defaults(run=_check)

    stats = commands.add_parser("stats", help="lengths, and a sample in the colours of what is learned")
    _source(stats)
    stats.add_argument("--show", type=int, default=0, metavar="ROW", help="the row to show, counted from 0")
    stats.add_argument("--no-color", action="store_true", help="mark what is learned with ⟦…⟧")
    stats.set_defaults(run=_stats)

    dedup = commands.add_parser("dedup", help="find near-duplicate rows; with --out, write the others")
    _source(dedup)
    dedup.add_argument(
        "--threshold", type=float, default=0.8, help="likeness from which rows count as one; default 0.8"
    )
    dedup.add_argument("--out", type=Path, metavar="FILE", help="where the kept rows go (.jsonl, or .json)")
    dedup.add_argument("--limit", type=int, default=20, metavar="N", help="pairs to list (all: 0); default 20")
    dedup.set_defaults(run=_dedup)

    make = commands.add_parser("synthesize", help="write data about an invented island, or sums")
    make.add_argument("file", type=Path, metavar="FILE")
    make.add_argument("--rows", type=int, default=640)
    make.add_argument("--kind", choices=KINDS, default="sft")
    make.add_argument("--seed", type=int, default=0)
    make.set_defaults(run=_synthesize)
    return parser


def _source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="FILE", help="file, folder or hf:org/name")
    parser.add_argument("--format", choices=("auto", *FORMATS), default="auto")
    parser.add_argument("--stage", choices=tuple(STAGE_KINDS), help="check as this stage would read it")
    parser.add_argument("--split", default="train", help="which files of a folder or hub data set")
    parser.add_argument("--max-samples", type=int, metavar="N", help="look at the first N rows only")
    parser.add_argument("--model", metavar="DIR", help="count tokens and show masks with this model's tokenizer")
    parser.add_argument("--template", default="auto", help="chat template, as data.template")
    parser.add_argument("--max-length", type=int, metavar="N", help="report documents of more tokens (needs --model)")


def _open(options: argparse.Namespace) -> tuple[SourceRows, Any]:
    from training.data.check import open_for  # needs numpy, which `synthesize` does without

    if options.max_length and not options.model:
        raise ConfigError("--max-length counts tokens: give --model too, whose tokenizer makes them.")
    try:
        source = DataSource(options.path, format=options.format, split=options.split, max_samples=options.max_samples)
    except ValueError as error:
        raise ConfigError(f"{error}.") from error
    rows = open_for(source, options.stage)
    codec = None
    if options.model:
        from training.data.template import TextCodec

        codec = TextCodec.load(options.model, options.template)
        if codec.notice and rows.kind != "text":
            print(codec.notice)
    return rows, codec


def _check(options: argparse.Namespace) -> int:
    from training.data.check import check_rows, stages_for

    rows, codec = _open(options)
    result = check_rows(rows, codec, options.max_length, DataConfig().max_left_out)
    if options.json:
        facts = {
            "path": options.path,
            "format": result.format,
            "kind": result.kind,
            "rows": result.rows,
            "problems": [{"place": p.place, "problem": p.what} for p in result.problems],
            "warnings": [{"place": p.place, "problem": p.what} for p in result.warnings],
            "unused": dict(result.unused),
        }
        print(json.dumps(facts, ensure_ascii=False, indent=1))
        return 0 if result.fine else DataError.exit_code
    for title, found in (("problem", result.problems), ("warning", result.warnings)):
        shown = found[: options.limit] if options.limit else found
        for problem in shown:
            print(f"{title}: {problem}")
        if len(found) > len(shown):
            print(f"… and {len(found) - len(shown):,} more {title}s (--limit 0 lists all)")
    print(f"{options.path}: {result.rows:,} rows of format {result.format}, for {', '.join(stages_for(result.format))}")
    if result.fine:
        notes = [f"{len(result.warnings):,} warnings"] if result.warnings else []
        if result.unused:
            fields = ", ".join(f"{name} ({count:,} rows)" for name, count in result.unused.items())
            notes.append(f"fields not used: {fields}")
        if result.tools and codec is None:
            notes.append("tools need a chat template with a place for them: check with --model too")
        print("; ".join(["no problem found", *notes]))
        return 0
    print(f"{len(result.problems):,} problems:")
    for what, count in result.summary().most_common(10):
        print(f"  {count:>6,} × {what}")
    return DataError.exit_code


def _stats(options: argparse.Namespace) -> int:
    from training.data.stats import collect, coloured, histogram

    rows, codec = _open(options)
    stats = collect(rows, codec, options.show)
    bad = f", {stats.bad:,} of them bad ({stats.problem})" if stats.bad else ""
    amount = f"{len(stats.lengths):,} documents, {int(stats.lengths.sum()):,} {stats.unit}"
    print(f"{options.path}: {stats.rows:,} rows of format {stats.format}{bad}; {amount}")
    print("  ".join(f"{name} {value:,}" for name, value in stats.percentiles().items()) + f"  ({stats.unit})")
    if options.max_length:
        print(f"{stats.over(options.max_length):,} documents over {options.max_length:,} tokens")
    print("\n".join(histogram(stats.lengths)))
    if stats.sample is not None:
        colour = not options.no_color and sys.stdout.isatty()
        key = "green is learned, dim is only read, purple ends a turn" if colour else "⟦…⟧ is learned"
        print(f"\n{stats.sample.raw.place} ({key if codec else 'give --model to see it tokenised'}):")
        for text in coloured(stats.sample.record, codec, colour=colour):
            print(text + "\n")
        if stats.sample.rest:
            print("fields not used: " + ", ".join(stats.sample.rest))
    return 0


def _dedup(options: argparse.Namespace) -> int:
    from training.data.check import all_text
    from training.data.dedup import find_duplicates

    if not 0 < options.threshold <= 1:
        raise ConfigError(f"--threshold must be in (0, 1], not {options.threshold:g}.")
    rows, _ = _open(options)
    items, bad = [], 0
    for item in rows:
        if isinstance(item, Placed):
            items.append(item)
        else:
            bad += 1
    found = find_duplicates((all_text(item.record) for item in items), options.threshold)
    shown = found[: options.limit] if options.limit else found
    for duplicate in shown:
        one, other = items[duplicate.number].raw.place, items[duplicate.of].raw.place
        print(f"{one} is {duplicate.likeness:.0%} like {other}")
    if len(found) > len(shown):
        print(f"… and {len(found) - len(shown):,} more (--limit 0 lists all)")
    skipped = f"; {bad:,} bad rows out" if bad else ""
    left = len(items) - len(found)
    print(f"{options.path}: {len(items):,} rows, {len(found):,} near-duplicates, {left:,} left{skipped}")
    if options.out:
        dropped = {duplicate.number for duplicate in found}
        write_rows(options.out, [item.raw.value for i, item in enumerate(items) if i not in dropped])
        print(f"written: {options.out}")
    return 0


def _synthesize(options: argparse.Namespace) -> int:
    try:
        count = synthesize(options.file, options.rows, kind=options.kind, seed=options.seed)
    except ValueError as error:
        raise ConfigError(f"{error}.") from error
    print(f"{options.file}: {count:,} rows")
    return 0


def write_rows(path: Path, values: list[Any]) -> None:
    """A JSON array under a .json name, else one JSON value a line; written beside and renamed."""
    if path.suffix not in (".json", ".jsonl"):
        raise ConfigError(f"{path} must end in .jsonl or .json.")
    part = path.with_name(path.name + ".part")
    rows = [{"text": value} if isinstance(value, str) else value for value in values]
    with part.open("w", encoding="utf-8") as file:
        if path.suffix == ".json":
            json.dump(rows, file, ensure_ascii=False, indent=1)
            file.write("\n")
        else:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    part.replace(path)


if __name__ == "__main__":
    raise SystemExit(main())
