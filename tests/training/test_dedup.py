"""Near-duplicates: what counts as alike in English and Chinese, which row stays, and nothing dropped by chance."""

from __future__ import annotations

import random

import pytest

from training.data.dedup import bands, find_duplicates, likeness, shingles

STORY = "the old stone bridge over the river was built by monks in the year twelve hundred and is still used by farmers"


def test_case_and_punctuation_do_not_count() -> None:
    assert shingles("The old, stone bridge!") == shingles("the old stone bridge")


@pytest.mark.parametrize(
    "rows",
    [
        ["Compute 12 + 4\nx + y", "Compute 12 - 4\nx - y", "Compute 12 * 4\nx * y", "Compute 12 / 4\nx / y"],
        ["if (a < b) return a;", "if (a > b) return a;", "if (a == b) return a;", "if (!a) return b;"],
        ["call(a.b)", "call(a, b)", "x = -1", "x = 1"],
        ["😀😀😀", "🚢🚢🚢", "⚓", "!!!", "???", "👍🏽", "👍🏿"],
        ["เรือออกจากท่าเวลาเช้าทุกวัน", "เรือออกจากท่าเวลาเย็นทุกวัน", "ประภาคารสีขาวและแดงอยู่ที่ปลายแหลม"],
        ["नाव सुबह बंदरगाह से निकलती है", "नाव शाम को बंदरगाह में लौटती है"],
    ],
)
def test_signs_that_mean_something_keep_rows_apart(rows: list[str]) -> None:
    assert find_duplicates(rows, 0.8) == []


def test_thai_near_duplicates_are_found() -> None:
    found = find_duplicates(["เรือออกจากท่าเวลาเช้าทุกวัน", "สีขาว", "เรือออกจากท่าเวลาเช้าทุกวันครับ"], 0.8)
    assert [(d.number, d.of) for d in found] == [(2, 0)]


def test_chinese_is_compared_by_characters() -> None:
    assert "今 天 天" in shingles("今天天气很好")
    assert likeness(shingles("今天天气很好我们去公园玩"), shingles("今天天气很好我们去公园吧")) > 0.7
    assert likeness(shingles("今天天气很好我们去公园玩"), shingles("昨天下雨大家都留在家里看书")) == 0


def test_likeness_is_the_jaccard_index() -> None:
    assert likeness({"a", "b", "c"}, {"b", "c", "d"}) == 0.5
    assert likeness(set(), set()) == 0


def test_the_first_of_each_family_stays() -> None:
    texts = [
        STORY,
        "something else altogether that shares no words here",
        STORY.upper() + "!",
        STORY + " today",
        "x",
        "x",
    ]
    found = find_duplicates(texts, 0.8)
    assert [(d.number, d.of) for d in found] == [(2, 0), (3, 0), (5, 4)]
    assert found[0].likeness == 1.0 and 0.8 <= found[1].likeness < 1


def test_chinese_near_duplicates_are_found() -> None:
    text = "请根据以下文章构建一个需要回答的问题，并给出详细的解释和例子，以便学生能够理解。"
    found = find_duplicates([text, "写一首关于春天的诗", text.replace("学生", "读者")], 0.7)
    assert [(d.number, d.of) for d in found] == [(2, 0)]


def test_it_agrees_with_comparing_everything_with_everything() -> None:
    """Against the O(n²) oracle: no false one, none missed."""
    draw = random.Random(0)
    words = [f"w{i}" for i in range(400)]
    texts: list[str] = []
    for _ in range(40):
        base = draw.choices(words, k=60)
        texts.append(" ".join(base))
        for changes in (1, 4, 12):
            other = list(base)
            for place in draw.sample(range(60), changes):
                other[place] = draw.choice(words)
            texts.append(" ".join(other))
    draw.shuffle(texts)
    found = find_duplicates(texts, 0.8)
    pieces = [shingles(text) for text in texts]
    for duplicate in found:
        assert duplicate.likeness == pytest.approx(likeness(pieces[duplicate.number], pieces[duplicate.of]))
        assert duplicate.likeness >= 0.8
    dropped = {duplicate.number for duplicate in found}
    kept = [i for i in range(len(texts)) if i not in dropped]
    assert 20 < len(dropped) < 120
    for place, i in enumerate(kept):
        assert all(likeness(pieces[i], pieces[j]) < 0.8 for j in kept[:place])


def test_a_bad_threshold_is_refused() -> None:
    with pytest.raises(ValueError, match="threshold must be in"):
        find_duplicates(["a"], 0)


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.95, 1.0])
def test_bands_find_pairs_at_the_threshold_and_few_below(threshold: float) -> None:
    count, rows = bands(threshold)
    assert count * rows <= 128
    assert 1 - (1 - threshold**rows) ** count >= 0.995
    assert 1 - (1 - (threshold / 2) ** rows) ** count < 0.5
