"""The engine's log stream: whatever the network cuts it into, whole lines come out, progress bars among them."""

from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.backends.docker.log_frames import MAX_LINE_BYTES, Dechunker, Lines

PIECE = 16 * 1024


def time(seconds: float) -> bytes:
    return f"2026-01-01T00:{int(seconds) // 60:02d}:{seconds % 60:012.9f}Z".encode()


def frame(stream: int, at: float, text: bytes) -> bytes:
    payload = time(at) + b" " + text
    return struct.pack(">BxxxL", stream, len(payload)) + payload


def pieces(stream: int, at: float, text: bytes) -> bytes:
    """A line as the engine sends it: in pieces."""
    return b"".join(frame(stream, at, text[i : i + PIECE]) for i in range(0, len(text), PIECE))


def read(data: bytes, *, block: int = 1 << 20, end: bool = True) -> list[bytes]:
    lines = Lines(lambda: 0.0)
    found = [line for i in range(0, len(data), block) for line in lines.feed(data[i : i + block])]
    return found + (lines.rest() if end else [])


def texts(lines: list[bytes]) -> list[bytes]:
    return [line.partition(b" ")[2] for line in lines]


@given(
    st.lists(st.tuples(st.integers(1, 2), st.binary(max_size=50).filter(lambda b: not {10, 13} & set(b))), max_size=20),
    st.integers(1, 200),
    st.integers(1, 90),
)
def test_blocks_and_chunks_may_end_anywhere(printed: list[tuple[int, bytes]], block: int, chunk: int) -> None:
    body = b"".join(frame(stream, number, text + b"\n") for number, (stream, text) in enumerate(printed))
    coded = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in cut(body, chunk)) + b"0\r\n\r\n"
    dechunker, lines = Dechunker(), Lines()
    found = [line for part in cut(coded, block) for line in lines.feed(dechunker.feed(part))]
    assert found == [time(number) + b" " + text + b"\n" for number, (_, text) in enumerate(printed)]
    assert dechunker.ended and not lines.rest()


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[i : i + size] for i in range(0, len(data), size)]


def test_long_lines_and_two_streams_become_whole_lines() -> None:
    long = "中文日志".encode() * 20000
    data = pieces(1, 1, long[:PIECE]) + frame(2, 1.1, b"error\n") + pieces(1, 1.2, long[PIECE:] + b"\n")
    data += frame(1, 3, b"no end" * 4000)
    for block in (7, 1 << 20):
        assert read(data, block=block) == [
            time(1.1) + b" error\n",
            time(1) + b" " + long + b"\n",
            time(3) + b" " + b"no end" * 4000 + b"\n",
        ]
    assert texts(read(data, end=False))[-1] == long + b"\n"


def test_an_engine_that_forgets_the_line_break_behind_the_last_piece_joins_no_lines() -> None:
    """As the driver `local` of Docker 20.10 does."""
    data = pieces(1, 1, b"a" * (PIECE * 2 + 5)) + frame(1, 1, b"next\n") + pieces(1, 2, b"b" * PIECE) + frame(1, 2, b"")
    data += frame(1, 3, b"third\n")
    assert texts(read(data)) == [b"a" * (PIECE * 2 + 5) + b"\n", b"next\n", b"b" * PIECE + b"\n", b"third\n"]


def test_a_line_without_end_is_bounded_and_says_what_is_left_out() -> None:
    (line,) = texts(read(pieces(1, 1, b"x" * (MAX_LINE_BYTES + 1000) + b"\n")))
    assert line == b"x" * MAX_LINE_BYTES + b" [navarch: 1000 more bytes of this line were left out]\n"


class Clock:
    """A clock that goes on by a step whenever it is looked at."""

    def __init__(self, step: float) -> None:
        self.step, self.now = step, 0.0

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def live(frames: list[bytes], step: float) -> tuple[Lines, list[bytes]]:
    """What is shown while frames come, each `step` seconds behind the last."""
    lines = Lines(Clock(step))
    return lines, [line for each in frames for line in lines.feed(each)]


def test_dots_without_a_line_break_are_shown_as_they_come_and_whole_at_the_end() -> None:
    lines, shown = live([frame(1, 1, b"." * PIECE) for _ in range(10)], 0.4)
    assert 3 <= len(shown) <= 10 and all(line.endswith(b".\r\n") and len(line) < 1100 for line in shown)
    assert texts(lines.feed(frame(1, 1, b"done\n"))) == [b"." * PIECE * 10 + b"done\n"]


def test_a_progress_bar_is_shown_now_and_then_and_ends_as_its_last_state() -> None:
    """The engine gives all pieces of the long line that it is the time of the first."""
    bar = b"".join(b"\rstep %d/30000" % step for step in range(30000))
    parts = cut(bar + b"\r" * (-len(bar) % PIECE), PIECE)
    lines, shown = live([frame(2, 7, part) for part in parts], 0.4)
    assert all(line.startswith(time(7) + b" step ") and line.endswith(b"/30000\r\n") for line in shown)
    assert len(parts) * 0.4 <= len(shown) <= len(parts)
    steps = [int(line.split(b"/")[0].split()[-1]) for line in shown]
    assert steps == sorted(steps) and steps[-1] > 25000
    assert texts(lines.feed(frame(2, 7, b"\n") + frame(2, 61, b"ValueError: why\n"))) == [
        b"step 29999/30000\n",
        b"ValueError: why\n",
    ]
    again, _ = live([frame(2, 7, part) for part in parts], 0.4)
    assert texts(again.rest()) == [b"step 29999/30000\n"]


def test_a_line_that_has_begun_is_marked_again_and_again_while_others_go_by() -> None:
    """So that whoever resumes this log knows from when on it is needed."""
    frames = [frame(2, 1, b"begun" * 4000), *(frame(1, second, b"other\n") for second in range(1, 30))]
    _, shown = live(frames, 0.001)
    marks = [number for number, line in enumerate(shown) if line.startswith(time(1)) and line.endswith(b"\r\n")]
    assert 5 <= len(marks) <= 8
    assert max(after - before for before, after in itertools.pairwise(marks)) <= 7


def test_carriage_returns_in_short_lines_are_folded() -> None:
    data = (
        frame(1, 1, b"dos line\r\n") + frame(1, 2, b"10%\r20%\r100%\r\n") + frame(1, 3, b"\r\r\n") + frame(1, 4, b"\n")
    )
    assert texts(read(data)) == [b"dos line\n", b"100%\n", b"\n", b"\n"]


def test_what_is_no_log_stream_is_refused() -> None:
    with pytest.raises(ValueError, match="multiplexed"):
        read(b"HTTP/1.1 500 Oh no\r\n")
    with pytest.raises(ValueError, match="error from daemon"):
        read(frame(3, 1, b"error from daemon\n"))
    with pytest.raises(ValueError):
        Dechunker().feed(b"zz\r\n")
