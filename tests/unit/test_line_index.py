"""Lines of a log by their numbers: the same lines as reading the file from the start, however it grew."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.collector.line_index import LineIndex
from service.contract.errors import Problem


def stamp(number: int) -> str:
    return f"2026-11-28T{number // 3600 % 24:02d}:{number // 60 % 60:02d}:{number % 60:02d}.{number % 1000:03d}000000Z"


def write(path: Path, lines: list[tuple[int, str]]) -> None:
    with path.open("ab") as file:
        for moment, text in lines:
            file.write(f"{stamp(moment)} {text}\n".encode())


texts = st.text(st.characters(blacklist_characters="\n\r", blacklist_categories=["Cs"]), max_size=30)


@settings(max_examples=60, deadline=None)
@given(parts=st.lists(st.lists(texts | st.just("@navarch {}"), max_size=12), max_size=5), first=st.integers(0, 40))
def test_any_line_is_found_by_its_number_however_the_file_grew(
    tmp_path_factory: pytest.TempPathFactory, parts: list[list[str]], first: int
) -> None:
    path = tmp_path_factory.mktemp("log") / "1-0.log"
    index = LineIndex([(0, path)])
    shown: list[str] = []
    for part in parts:
        write(path, [(len(shown), text) for text in part])
        shown += [text for text in part if not text.startswith("@navarch ")]
        assert index.refresh() == len(shown)
        assert [line.text for line in index.lines(first, 10)] == shown[first : first + 10]


def test_a_line_that_is_still_being_written_is_not_counted(tmp_path: Path) -> None:
    path = tmp_path / "1-0.log"
    write(path, [(1, "whole")])
    with path.open("ab") as file:
        file.write(f"{stamp(2)} ha".encode())
    index = LineIndex([(0, path)])
    assert index.refresh() == 1
    with path.open("ab") as file:
        file.write(b"lf\n")
    assert index.refresh() == 2
    assert index.lines(1, 1)[0].text == "half"


def test_ranks_are_merged_by_time_and_each_keeps_its_own_order(tmp_path: Path) -> None:
    write(tmp_path / "1-0.log", [(1, "a1"), (4, "a4"), (3, "a-late")])
    write(tmp_path / "1-1.log", [(2, "b2"), (5, "b5")])
    index = LineIndex([(0, tmp_path / "1-0.log"), (1, tmp_path / "1-1.log")])
    index.refresh()
    assert [(line.rank, line.text) for line in index.lines(0, 9)] == [
        (0, "a1"),
        (1, "b2"),
        (0, "a4"),
        (0, "a-late"),
        (1, "b5"),
    ]


def test_a_log_that_was_cut_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "1-0.log"
    write(path, [(number, f"line {number}") for number in range(50)])
    index = LineIndex([(0, path)])
    assert index.refresh() == 50
    path.write_bytes(b"")
    write(path, [(99, "only this")])
    assert index.refresh() == 1
    assert index.lines(0, 5)[0].text == "only this"


def test_a_line_of_megabytes_is_given_in_part_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "1-0.log"
    write(path, [(1, "x" * 50_000_000), (2, "after")])
    index = LineIndex([(0, path)])
    assert index.refresh() == 2
    long, after = index.lines(0, 2)
    assert len(long.text) == 20_000
    assert long.length is not None and long.length > 20_000
    assert after.text == "after"


@pytest.mark.parametrize("ranks", [1, 2])
def test_search_goes_both_ways_over_the_whole_log(tmp_path: Path, ranks: int) -> None:
    for rank in range(ranks):
        path = tmp_path / f"1-{rank}.log"
        write(path, [(number, f"step {number} of rank {rank}") for number in range(10_000)])
    index = LineIndex([(rank, tmp_path / f"1-{rank}.log") for rank in range(ranks)])
    total = index.refresh()

    def text(line: int | None) -> str:
        assert line is not None
        return index.lines(line, 1)[0].text

    assert text(index.search("STEP 9999 of", regex=False, first=0, back=False)) == "step 9999 of rank 0"
    assert text(index.search("^step 77 of", regex=True, first=0, back=False)) == "step 77 of rank 0"
    assert text(index.search(r"step \d of rank 0$", regex=True, first=total, back=True)) == "step 9 of rank 0"
    assert index.search("2026-11", regex=False, first=0, back=False) is None, "the time is no part of the line"
    assert index.search("step.", regex=False, first=0, back=False) is None, "plain text is taken as it is"
    assert index.search("step 1 of", regex=False, first=2 * ranks, back=False) is None


def test_lines_with_training_events_are_not_found(tmp_path: Path) -> None:
    write(tmp_path / "1-0.log", [(1, "one"), (2, '@navarch {"event": "metrics"}'), (3, "two")])
    index = LineIndex([(0, tmp_path / "1-0.log")])
    assert index.refresh() == 2
    assert index.search("metrics", regex=False, first=0, back=False) is None
    assert index.search("two", regex=False, first=0, back=False) == 1


def test_an_expression_that_would_take_for_ever_takes_no_time(tmp_path: Path) -> None:
    write(tmp_path / "1-0.log", [(1, "a" * 5000)])
    index = LineIndex([(0, tmp_path / "1-0.log")])
    index.refresh()
    assert index.search("(a+)+$b", regex=True, first=0, back=False) is None


def test_what_is_no_expression_is_refused_in_words(tmp_path: Path) -> None:
    index = LineIndex([(0, tmp_path / "1-0.log")])
    with pytest.raises(Problem, match="not a regular expression"):
        index.search("(", regex=True, first=0, back=False)
