"""What comes in as YAML or JSON: bounded before it grows, and read as its author meant it."""

import json
import math
import re
import time
import tracemalloc
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.documents import MAX_BYTES, MAX_DEPTH, MAX_VALUES, DocumentError, plain, read_json, read_yaml

FULL = MAX_BYTES - 16


def test_values_are_what_was_written() -> None:
    text = """
    numbers: [1, -3, 0, 2.5, .5, 1e-5, 2E3, 18446744073709551615]
    text: [8095:22, 007, 1_000, 2024-99-99, 2024-01-01, 1.2.3, "1", !!str 1, 'yes', 1e5x, 111111111111111111111x]
    truth: [yes, No, on, OFF, true, False]
    nothing: [null, ~, ]
    empty:
    1: one
    true: two
    """
    assert read_yaml(text) == {
        "numbers": [1, -3, 0, 2.5, 0.5, 1e-5, 2000.0, 18446744073709551615],
        "text": [
            *("8095:22", "007", "1_000", "2024-99-99", "2024-01-01", "1.2.3", "1", "1", "yes", "1e5x"),
            "111111111111111111111x",
        ],
        "truth": [True, False, True, False, True, False],
        "nothing": [None, None],
        "empty": None,
        "1": "one",
        "true": "two",
    }
    assert read_yaml("") is None and read_yaml("a") == "a" and read_yaml("- 1") == [1]


def test_aliases_and_merge_keys_stand_for_copies() -> None:
    found = read_yaml(
        "base: &b {a: 1, l: [1]}\none: *b\ntwo:\n  <<: *b\n  a: 2\nthree: {<<: [{a: 3, c: 4}, *b]}\n'<<': x"
    )
    assert found["one"] == {"a": 1, "l": [1]} and found["one"] is not found["base"]
    assert found["two"] == {"a": 2, "l": [1]} and found["two"]["l"] is not found["base"]["l"]
    assert found["three"] == {"a": 3, "c": 4, "l": [1]} and found["<<"] == "x"


def bomb(of: str) -> str:
    """Nine levels that each hold the level below nine times: 400 million values in 600 bytes."""
    lines = ["a0: &a0 {k: 1, l: 2}"]
    for level in range(1, 10):
        inner = ", ".join([f"*a{level - 1}"] * 9)
        lines.append(f"a{level}: &a{level} " + (f"{{<<: [{inner}]}}" if of == "merges" else f"[{inner}]"))
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [1", "line 2"),
        ("a: 1\na: 2", "the key 'a' is there twice in line 2"),
        ("a: &x [*x]", "stands within what it means"),
        ("a: &x {<<: *x}", "stands within what it means"),
        ("a: *nothing", "the alias means nothing"),
        ("<<: 1", "takes a mapping"),
        ("a: !!python/object/apply:os.system [ls]", "the tag !!python/object"),
        ("a: !!timestamp 2024-01-01", "the tag !!timestamp"),
        ("[a]: 1", "a key must be text"),
        ("a: 1\n---\nb: 2", "a second document"),
        ("a: .inf", "no finite number"),
        ("a: .nan", "no finite number"),
        ("a: 1e999", "no finite number"),
        ("a: 99999999999999999999999", "more than 64 bits"),
        ('a: "\\0"', "NUL"),
        ('a: "\\ud800"', "valid YAML"),
        ("a: \ud800", "UTF-8"),
        ("a: \x1b[0m", "valid YAML"),
        ("k" * 201 + ": 1", "a key of more than 200 bytes"),
        ("a: " + "ä" * 70_000, "a text of more than 131,071 bytes"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "levels deep"),
        ("a0: &a0 [1]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, MAX_DEPTH)), "levels deep"),
        (bomb("lists"), "more than 20,000 values"),
        (bomb("merges"), "more than 20,000 values"),
        (" " * (MAX_BYTES + 1), "larger than 1 MiB"),
    ],
)
def test_yaml_that_is_not_taken_says_why(text: str, says: str) -> None:
    with pytest.raises(DocumentError) as refused:
        read_yaml(text)
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "valid JSON"),
        ('{"a": 1, "a": 2}', "the key 'a' twice"),
        ("[NaN]", "NaN"),
        ("[1e999]", "no finite number"),
        ("[" + "9" * 32_000 + "]", "32000 digits"),
        ("[99999999999999999999]", "more than 64 bits"),
        ('"\\ud800"', "surrogate"),
        ('"\\u0000"', "NUL"),
        ("[" * 100_000, "levels deep"),
        ("[" + "1," * MAX_VALUES + "1]", "more than 20,000 values"),
        ('{"' + "k" * 201 + '": 1}', "a key of more than 200 bytes"),
        (" " * (MAX_BYTES + 1), "larger than 1 MiB"),
    ],
)
def test_json_that_is_not_taken_says_why(text: str, says: str) -> None:
    with pytest.raises(DocumentError) as refused:
        read_json(text)
    assert says in str(refused.value)


#: One mebibyte each of what made parsers slow or large.
NASTY = {
    "flow lists": "[" * FULL,
    "flow maps": "{" * FULL,
    "block lists": "- " * (FULL // 2),
    "complex keys": "? " * (FULL // 2),
    "small lists": "[" + "[]," * (FULL // 3) + "]",
    "digits": "a: " + "1" * FULL,
    "base sixty": "a: " + "1:" * (FULL // 2) + "1",
    "anchors": "&a " * (FULL // 3),
    "aliases": "[&a 1," + "*a," * (FULL // 3) + "]",
    "escapes": '"' + "\\n" * (FULL // 2) + '"',
    "folded lines": "a: " + "\n b" * (FULL // 3),
    "keys": "".join(f"k{number}: 1\n" for number in range(80_000)),
    "one key": "x" * FULL + ":",
    "comment": "#" * FULL,
    "tags": "!" * FULL,
    "blanks": " " * FULL,
    "lines": "\n" * FULL,
    "colons": ":" * FULL,
    "literal": "a: |\n" + " x\n" * (FULL // 3),
    "maps in lists": "[a: " * (FULL // 4),
    "indents": "".join(" " * depth + "a:\n" for depth in range(1400)),
    "merge bomb": bomb("merges"),
    "list bomb": bomb("lists"),
}


@pytest.mark.parametrize("name", NASTY)
def test_no_small_body_costs_much(name: str) -> None:
    text = NASTY[name][:MAX_BYTES]
    tracemalloc.start()
    begun = time.process_time()
    for read in (read_yaml, read_json):
        try:
            read(text)
        except DocumentError as error:
            assert len(str(error)) < 400
    took, (_, peak) = time.process_time() - begun, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert took < 5.0, "tracing memory makes it some five times slower"
    assert peak < 200 << 20


#: Texts such as 1e5 are numbers in YAML 1.2, in JSON and here, but PyYAML writes them without quotes.
TEXTS = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
UNLIKE_NUMBERS = re.compile(r"(?![-+]?[0-9]+[eE][-+]?[0-9]+\Z)", re.DOTALL)
VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**64 - 1),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(TEXTS, max_size=20).filter(UNLIKE_NUMBERS.match),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.text(TEXTS, max_size=9).filter(UNLIKE_NUMBERS.match), inner, max_size=4),
    ),
    max_leaves=20,
)


@given(VALUES)
def test_json_comes_back_as_it_was(value: Any) -> None:
    assert read_json(json.dumps(value)) == value
    assert plain(value) == value


@given(VALUES)
@settings(max_examples=200)
def test_what_a_yaml_writer_writes_is_read_back(value: Any) -> None:
    """PyYAML quotes what YAML 1.1 takes for something else, so its texts mean the same here."""
    found = read_yaml(yaml.safe_dump(value))
    assert found == value or (isinstance(value, float) and math.isclose(found, value))


@given(st.text(max_size=200), st.text("[]{}&*!|>'\"%@`#:,?- \n\tabk1<.~", max_size=200))
@settings(max_examples=500)
def test_any_text_is_read_or_refused(anything: str, syntax: str) -> None:
    for text in (anything, syntax):
        for read in (read_yaml, read_json):
            try:
                json.dumps(read(text), allow_nan=False).encode()
            except DocumentError as error:
                assert str(error)
