"""The loader: right labels, right totals without communication, exact resume, a stable held-out part, fair prompts."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.data_making import Train, preferences, questions, tokenizer_folder, write_jsonl
from training.config.data import DataConfig, DataSource
from training.data.batch import IGNORE, PackedBatch
from training.data.loader import Loader, build_loader
from training.data.prompts import build_prompts
from training.data.template import TextCodec
from training.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> TextCodec:
    return TextCodec.load(tokenizer_folder(tmp_path_factory.mktemp("codec")))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("rows") / "rows.jsonl", questions(61))


def load(
    codec: TextCodec, cache: str, *paths: Path, stage: str = "sft", train: Train | None = None, **options: Any
) -> Loader:
    place = {name: options.pop(name) for name in ("rank", "world_size") if name in options}
    data = DataConfig(sources=tuple(DataSource(str(path)) for path in paths), cache_dir=cache, **options)
    return build_loader(stage, data, train or Train(), codec, note=lambda text: None, **place)


def check_batch(batch: PackedBatch, codec: TextCodec, rows: list[dict[str, str]], train: Train) -> None:
    """Every fact of a batch, recomputed document by document from the rows."""
    assert sum(batch.lengths) == batch.num_tokens <= len(batch.tokens)
    bounds = batch.cu_seqlens.tolist()
    assert bounds[0] == 0 and bounds[-1] == len(batch.tokens) and bounds == sorted(bounds)
    assert all(b - a <= batch.max_seqlen for a, b in pairwise(bounds))
    targets = 0
    for number, (tokens, labels) in enumerate(batch.documents()):
        row = rows[int(batch.rows[number].rpartition(":")[2]) - 1]
        talk = [{"role": "user", "content": row["instruction"]}, {"role": "assistant", "content": row["output"]}]
        expected = codec.encode_chat(talk)
        ids, learned = expected.tokens[: train.max_length], expected.targets[: train.max_length]
        assert tokens.tolist() == ids.tolist()
        wanted = [int(ids[i + 1]) if learned[i + 1] else IGNORE for i in range(len(ids) - 1)] + [IGNORE]
        assert labels.tolist() == wanted
        start = bounds[number]
        assert batch.positions[start : start + len(ids)].tolist() == list(range(len(ids)))
        assert int(batch.last_tokens[number]) == start + len(ids) - 1
        targets += sum(label != IGNORE for label in wanted)
    assert batch.num_targets == targets == int((batch.labels != IGNORE).sum()) > 0
    assert (batch.labels[batch.num_tokens :] == IGNORE).all()
    assert (batch.tokens[batch.num_tokens :] == codec.pad_id).all()


@pytest.mark.parametrize("packing", [True, False])
def test_batches_say_the_truth(codec: TextCodec, cache: str, rows: Path, packing: bool) -> None:
    train = Train(packing=packing)
    loader = load(codec, cache, rows, train=train)
    seen: list[str] = []
    shapes = set()
    for step in loader.steps(loader.steps_per_epoch):
        for batch in step.micro_batches:
            check_batch(batch, codec, questions(61), train)
            shapes.add((len(batch.tokens), len(batch.cu_seqlens), batch.max_seqlen))
            seen += batch.rows
    assert sorted(seen) == sorted(f"rows.jsonl:{i + 1}" for i in range(61))
    if packing:
        assert len(shapes) == 1 and shapes.pop()[0] == 128  # one shape: nothing recompiles


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize(("ranks", "accumulate"), [(1, 1), (2, 2), (3, 1)])
def test_every_rank_knows_the_steps_totals(
    codec: TextCodec, cache: str, rows: Path, packing: bool, ranks: int, accumulate: int
) -> None:
    train = Train(packing=packing, accumulate=accumulate)
    loaders = [load(codec, cache, rows, train=train, rank=rank, world_size=ranks) for rank in range(ranks)]
    assert len({loader.steps_per_epoch for loader in loaders}) == 1
    for steps in zip(*(loader.steps(2 * loader.steps_per_epoch) for loader in loaders), strict=True):
        batches = [batch for step in steps for batch in step.micro_batches]
        assert len(batches) == ranks * accumulate
        for step in steps:
            assert step.num_targets == sum(batch.num_targets for batch in batches)
            assert step.num_tokens == sum(batch.num_tokens for batch in batches)
            assert step.num_documents == sum(batch.num_documents for batch in batches)
        assert all(batch.num_targets > 0 for batch in batches)


def test_an_optimizer_step_is_the_same_for_1x8_2x4_and_two_ranks(codec: TextCodec, cache: str, rows: Path) -> None:
    def steps(batch_size: int, accumulate: int, ranks: int) -> list[tuple[list[str], int]]:
        train = Train(packing=False, batch_size=batch_size, accumulate=accumulate)
        loaders = [load(codec, cache, rows, train=train, rank=rank, world_size=ranks) for rank in range(ranks)]
        found = []
        for parts in zip(*(loader.steps(10) for loader in loaders), strict=True):
            found.append((sorted(row for part in parts for row in part.rows), parts[0].num_targets))
        return found

    assert steps(8, 1, 1) == steps(4, 2, 1) == steps(4, 1, 2)


def contents(loader: Loader, count: int) -> list[list[int]]:
    return [batch.tokens.tolist() for step in loader.steps(count) for batch in step.micro_batches]


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("consumed", [1, 5, 16, 20])
def test_resume_goes_on_exactly(codec: TextCodec, cache: str, rows: Path, packing: bool, consumed: int) -> None:
    train = Train(packing=packing)
    straight = load(codec, cache, rows, train=train)
    contents(straight, consumed)
    state = straight.state_dict()
    after = contents(straight, 30)
    again = load(codec, cache, rows, train=train)
    again.load_state_dict(state)
    assert contents(again, 30) == after
    assert again.state_dict() == straight.state_dict()


def test_another_number_of_ranks_goes_on_where_the_first_stopped(codec: TextCodec, cache: str, rows: Path) -> None:
    train = Train(packing=False, batch_size=2, accumulate=2)
    first = load(codec, cache, rows, train=train)
    seen = [row for step in first.steps(7) for row in step.rows]
    rest: list[str] = []
    for rank in range(2):
        other = load(codec, cache, rows, train=dataclasses.replace(train, accumulate=1), rank=rank, world_size=2)
        other.load_state_dict(first.state_dict())
        rest += [row for step in other.steps(other.steps_per_epoch - 7) for row in step.rows]
    assert len(seen) == 28 and not set(seen) & set(rest) and len(set(seen) | set(rest)) == 61


def test_a_checkpoint_of_other_data_is_refused(codec: TextCodec, cache: str, rows: Path, tmp_path: Path) -> None:
    state = load(codec, cache, rows).state_dict()
    other = write_jsonl(tmp_path / "rows.jsonl", questions(60))
    with pytest.raises(ConfigError, match="made with other data"):
        load(codec, cache, other).load_state_dict(state)
    with pytest.raises(ConfigError, match="made with other data"):
        load(codec, cache, rows, train=Train(max_length=32)).load_state_dict(state)
    with pytest.raises(ConfigError, match="another capacity"):
        load(codec, cache, rows, train=Train(tokens_per_batch=256)).load_state_dict(state)
    with pytest.raises(ConfigError, match="another seed"):
        load(codec, cache, rows, train=Train(seed=1)).load_state_dict(state)


# -- held-out data ----------------------------------------------------------------------------------------------------


def held_out_rows(loader: Loader) -> set[str]:
    return {row for batch in loader.evaluation() for row in batch.rows}


def test_the_held_out_part_is_chosen_by_content(codec: TextCodec, cache: str, rows: Path, tmp_path: Path) -> None:
    loader = load(codec, cache, rows, eval_fraction=0.25)
    out = held_out_rows(loader)
    trained = {row for step in loader.steps(loader.steps_per_epoch) for row in step.rows}
    assert 5 <= len(out) <= 30 and not out & trained and len(out | trained) == 61

    def texts(numbers: set[str], values: list[dict[str, str]]) -> set[str]:
        return {values[int(number.rpartition(":")[2]) - 1]["instruction"] for number in numbers}

    more = [*reversed(questions(61)), *questions(120)[61:]]  # reordered, and rows added
    again = held_out_rows(load(codec, cache, write_jsonl(tmp_path / "m.jsonl", more), eval_fraction=0.25))
    old = {row["instruction"] for row in questions(61)}
    assert texts(again, more) & old == texts(out, questions(61))


def test_rows_with_one_question_stay_on_one_side(codec: TextCodec, cache: str, tmp_path: Path) -> None:
    values = [{"instruction": f"q{i % 20}", "output": f"answer {i}"} for i in range(60)]
    loader = load(codec, cache, write_jsonl(tmp_path / "r.jsonl", values), eval_fraction=0.3)
    out = {int(row.rpartition(":")[2]) - 1 for row in held_out_rows(loader)}
    assert out and {i % 20 for i in out}.isdisjoint(i % 20 for i in range(60) if i not in out)


@pytest.mark.parametrize("packing", [True, False])
def test_evaluation_counts_each_document_once_over_all_ranks(
    codec: TextCodec, cache: str, rows: Path, packing: bool
) -> None:
    train = Train(packing=packing)
    alone = load(codec, cache, rows, train=train, eval_fraction=0.4)
    total = sum(batch.num_targets for batch in alone.evaluation())
    parts = [
        list(load(codec, cache, rows, train=train, eval_fraction=0.4, rank=r, world_size=4).evaluation())
        for r in range(4)
    ]
    assert len({len(part) for part in parts}) == 1  # ranks stay in step
    assert sum(batch.num_targets for part in parts for batch in part) == total
    real = [row for part in parts for batch in part if batch.num_targets for row in batch.rows]
    assert sorted(real) == sorted(held_out_rows(alone))
    again = [batch.tokens.tolist() for batch in alone.evaluation()]
    assert again == [batch.tokens.tolist() for batch in alone.evaluation()]


def test_eval_sources_and_limits(codec: TextCodec, cache: str, rows: Path, tmp_path: Path) -> None:
    other = write_jsonl(tmp_path / "eval.jsonl", questions(9))
    loader = load(codec, cache, rows, eval=(DataSource(str(other)),), eval_max_samples=4)
    assert len(held_out_rows(loader)) == 4
    assert len({row for step in loader.steps(loader.steps_per_epoch) for row in step.rows}) == 61
    assert list(load(codec, cache, rows).evaluation()) == []


# -- pairs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packing", [True, False])
def test_pairs_stay_together_chosen_first(codec: TextCodec, cache: str, tmp_path: Path, packing: bool) -> None:
    values = preferences(30)
    values[3]["margin"] = 1.5
    path = write_jsonl(tmp_path / "pairs.jsonl", values)
    train = Train(packing=packing, max_length=128, tokens_per_batch=512)
    loader = load(codec, cache, path, stage="dpo", train=train, eval_fraction=0.2)
    batches = [batch for step in loader.steps(loader.steps_per_epoch) for batch in step.micro_batches]
    seen = []
    for batch in [*batches, *loader.evaluation()]:
        assert batch.pairs is not None and batch.prompt_lengths is not None and batch.margins is not None
        assert batch.pairs.tolist() == [[2 * i, 2 * i + 1] for i in range(batch.num_pairs)]
        assert batch.last.tolist() == batch.last_tokens.tolist()
        documents = batch.documents()
        for pair, (chosen, rejected) in enumerate(batch.pairs.tolist()):
            assert batch.rows[chosen] == batch.rows[rejected]
            line = int(batch.rows[chosen].rpartition(":")[2])
            seen.append(line)
            for number, answer in ((chosen, "chosen"), (rejected, "rejected")):
                tokens, labels = documents[number]
                learned = codec.decode(labels[labels != IGNORE])
                assert learned == values[line - 1][answer]
                prompt = int(batch.prompt_lengths[number])
                asked = [{"role": "user", "content": values[line - 1]["prompt"]}]
                assert tokens[:prompt].tolist() == codec.encode_prompt(asked)
                assert (labels[: prompt - 1] == IGNORE).all() and labels[prompt - 1] != IGNORE
                assert tokens[-1] == codec.stop_ids[0]
            assert float(batch.margins[pair]) == (1.5 if line == 4 else 0.0)
    assert sorted(seen) == list(range(1, 31))


def test_a_filling_batch_of_pairs_counts_nothing(codec: TextCodec, cache: str, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "pairs.jsonl", preferences(12))
    parts = [
        list(load(codec, cache, path, stage="rm", eval_fraction=0.3, rank=r, world_size=5).evaluation())
        for r in range(5)
    ]
    batches = [batch for part in parts for batch in part]
    filling = [batch for batch in batches if batch.num_pairs == 0]
    assert filling and all(batch.num_targets == 0 and batch.num_documents == 2 for batch in filling)
    assert all(batch.pairs.shape == (0, 2) and batch.margins.shape == (0,) for batch in filling)  # type: ignore[union-attr]


# -- batches ----------------------------------------------------------------------------------------------------------


def test_padded_rows_hold_the_same_documents(codec: TextCodec, cache: str, rows: Path) -> None:
    batch = next(iter(load(codec, cache, rows))).micro_batches[0]
    padded = batch.padded(codec.pad_id, multiple_of=8)
    assert padded.input_ids.shape[1] % 8 == 0 and padded.input_ids.shape[0] == batch.num_documents
    for row, (tokens, labels) in enumerate(batch.documents()):
        mask = padded.attention_mask[row]
        assert mask.tolist() == [i < len(tokens) for i in range(len(mask))]
        assert padded.input_ids[row][mask].tolist() == tokens.tolist()
        assert padded.labels[row][mask].tolist() == labels.tolist()
        assert (padded.input_ids[row][~mask] == codec.pad_id).all() and (padded.labels[row][~mask] == IGNORE).all()
        shifted = padded.unshifted_labels()[row]
        assert shifted[1:].tolist() == padded.labels[row][:-1].tolist() and shifted[0] == IGNORE


def test_a_batch_moves_whole(codec: TextCodec, cache: str, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "pairs.jsonl", preferences(8))
    batch = next(iter(load(codec, cache, path, stage="rm"))).micro_batches[0]
    moved = batch.to("meta")
    tensors = [getattr(moved, field.name) for field in dataclasses.fields(moved)]
    assert sum(isinstance(value, torch.Tensor) for value in tensors) == 7
    assert all(value.device.type == "meta" for value in tensors if isinstance(value, torch.Tensor))
    assert moved.rows == batch.rows and moved.num_targets == batch.num_targets


def test_fewer_documents_than_ranks(codec: TextCodec, cache: str, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "few.jsonl", questions(2))
    for packing in (True, False):
        for rank in range(3):
            loader = load(codec, cache, path, train=Train(packing=packing, accumulate=2), rank=rank, world_size=3)
            step = next(iter(loader))
            assert loader.steps_per_epoch == 1 and len(step.micro_batches) == 2
            assert all(batch.num_targets for batch in step.micro_batches)


def test_documents_that_do_not_fit_are_refused_in_words(codec: TextCodec, cache: str, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "pairs.jsonl", preferences(12))
    with pytest.raises(ConfigError, match=r"longest pair .* does not fit into train.tokens_per_batch \(32\)"):
        load(codec, cache, path, stage="rm", train=Train(tokens_per_batch=32))


def test_mixing_by_weight(codec: TextCodec, cache: str, tmp_path: Path) -> None:
    one, two = write_jsonl(tmp_path / "one.jsonl", questions(10)), write_jsonl(tmp_path / "two.jsonl", questions(20))
    sources = (DataSource(str(one), weight=3), DataSource(str(two), weight=0.5, max_samples=12))
    loader = build_loader("sft", DataConfig(sources=sources, cache_dir=cache), Train(), codec, note=lambda text: None)
    counts: dict[str, int] = {}
    for step in loader.steps(loader.steps_per_epoch):
        for row in step.rows:
            counts[row] = counts.get(row, 0) + 1
    assert all(counts[f"one.jsonl:{i + 1}"] == 3 for i in range(10))
    second = [row for row in counts if row.startswith("two")]
    assert 1 <= len(second) <= 11 and all(int(row.rpartition(":")[2]) <= 12 for row in second)


# -- prompts ----------------------------------------------------------------------------------------------------------


def prompts(codec: TextCodec, path: Path, max_left_out: float = 0.1, **options: Any) -> Any:
    options = {"max_length": 64, "note": lambda text: None, **options}
    config = DataConfig(sources=(DataSource(str(path)),), max_left_out=max_left_out, bad_rows="skip")
    return build_prompts(config, codec, **options)


def test_prompts_are_disjoint_over_ranks_and_the_same_for_any_number(codec: TextCodec, rows: Path) -> None:
    alone = prompts(codec, rows, seed=3)
    assert len(alone) == 61
    order = [row.row for row in alone.next(12)]
    for ranks in (2, 3):
        parts = [prompts(codec, rows, seed=3, rank=r, world_size=ranks).next(12 // ranks) for r in range(ranks)]
        assert [parts[i % ranks][i // ranks].row for i in range(12)] == order
    first = alone.next(1)[0]
    assert list(first.tokens) == codec.encode_prompt(first.messages)
    assert first.text == codec.render(first.messages, add_generation_prompt=True)
    assert first.fields["output"]


def test_prompts_go_round_and_resume(codec: TextCodec, rows: Path) -> None:
    loader = prompts(codec, rows)
    epochs = [[row.row for row in loader.next(61)] for _ in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) and epochs[0] != epochs[1] and len(set(epochs[0])) == 61
    loader.next(40)
    state = loader.state_dict()
    after = [row.row for row in loader.next(50)]
    again = prompts(codec, rows)
    again.load_state_dict(state)
    assert [row.row for row in again.next(50)] == after
    with pytest.raises(ConfigError, match="other prompts"):
        prompts(codec, rows, seed=5).load_state_dict(state)


def test_long_prompts_are_refused_or_dropped(codec: TextCodec, tmp_path: Path) -> None:
    values = [{"instruction": "a"}, {"instruction": "long " * 50}, {"instruction": "b"}]
    path = write_jsonl(tmp_path / "p.jsonl", values)
    with pytest.raises(DataError, match=r"p.jsonl:2: the prompt has .* more than train.max_prompt_length \(64\)"):
        prompts(codec, path)
    said: list[str] = []
    loader = prompts(codec, path, 0.5, long_prompts="drop", note=said.append)
    assert len(loader) == 2 and "1 left out: over 64 tokens" in said[0]
    with pytest.raises(DataError, match="No prompt is left"):
        prompts(codec, path, 1.0, max_length=2, long_prompts="drop")
    with pytest.raises(DataError, match=r"Raise train.max_prompt_length \(now 64; the longest row has \d+ tokens\)"):
        prompts(codec, path, long_prompts="drop")


def test_a_prompt_that_the_template_refuses_is_a_bad_row(codec: TextCodec, tmp_path: Path) -> None:
    call = {"function": {"name": "f"}}
    talk = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "b"},
    ]
    path = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "a"}, {"prompt": talk}])
    assert len(prompts(codec, path, 0.5)) == 1
    with pytest.raises(DataError, match=r"p.jsonl:2: The chat template .* has no place for tool calls"):
        build_prompts(DataConfig(sources=(DataSource(str(path)),)), codec, max_length=64, note=lambda text: None)
