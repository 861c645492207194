"""What the command line prints: nothing that a terminal obeys unless it is ours, and tables that fit."""

from __future__ import annotations

import io
import json
import re
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.progress import Progress, TextColumn
from rich.table import Table

from service.cli import jobs, output, waiting
from service.cli.clean import clean, json_text
from service.cli.listing import table
from service.cli.terminal import CleanConsole
from service.contract.schemas import Job

OURS = re.compile(r"\x1b\[[0-9;]*m")
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
CLIPBOARD = "\x1b]52;c;ZXZpbA==\x07"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        (f"copied{CLIPBOARD}", "copied"),
        ("\x1b]0;title\x1b\\text", "text"),
        ("\x1b]8;;http://evil\x1b\\click\x1b]8;;\x1b\\", "click"),
        ("\x1bPq#0;2\x1b\\six", "six"),
        ("\x9b2Jone\x9d0;t\x07", "2Jone0;t"),
        ("\x1b[2J\x1b[H\x1bcgone", "gone"),
        ("\x1b]52;c;never ended", "52;c;never ended"),
        ("\x1b\x1b[31m[31mnested", "[31mnested"),
        ("a\x08\x08b\x7f\x00", "ab"),
        ("tab\tand\nline", "tab\tand\nline"),
        ("Größe → 你好 🚢", "Größe → 你好 🚢"),
    ],
)
def test_what_a_terminal_would_obey_is_taken_out_whole(text: str, left: str) -> None:
    assert clean(text) == left


@given(st.text(alphabet=st.one_of(st.characters(), st.sampled_from("\x1b\x9b\x9d\x07[];m\\P0123456789"))))
def test_no_text_keeps_a_control(text: str) -> None:
    assert not CONTROLS.search(clean(text))
    assert clean(clean(text)) == clean(text)
    assert clean(text) == text or not text.isprintable()
    written = json_text({"line": text})
    assert not CONTROLS.search(written) and json.loads(written) == {"line": text}


def test_a_console_prints_no_escape_that_is_not_ours() -> None:
    """Also where somebody forgot to clean, in tables, titles, progress bars: then litter stays, and no more."""
    screen = io.StringIO()
    console = CleanConsole(file=screen, force_terminal=True, width=60)
    console.print(f"[bold]said {CLIPBOARD}[/] and \x1b[2J")
    shown = Table(f"head\x1b[31m{CLIPBOARD}", title="\x9b2J")
    shown.add_row(f"cell{CLIPBOARD}\x1bc")
    console.print(shown)
    console.print(f"line \x1b[2J{CLIPBOARD}", markup=False, soft_wrap=True)
    bar = Progress(TextColumn("{task.description}"), console=console)
    bar.add_task(f"bar{CLIPBOARD}\x9b2J")
    console.print(bar.get_renderable())
    text = screen.getvalue()
    assert all(word in text for word in ("said", "head", "cell", "line", "bar"))
    assert not CONTROLS.search(OURS.sub("", text))


def job(name: str, **changes: Any) -> Job:
    spec = {"resources": {"gpus": 0, "nodes": 1}}
    replicas = [{"node_rank": 0, "state": "running", "host": "local"}]
    attempts = [{"number": 1, "state": "running", "replicas": replicas}]
    given: dict[str, Any] = {
        "id": name, "name": name, "type": "sft", "state": "running", "spec": spec, "attempts": attempts,
        "created_at": 0.0, "started_at": 0.0,
        "progress": {"step": 30, "total_steps": 30, "loss": 0.02255, "tokens_per_second": 274.0, "eta_s": 4.0},
    }  # fmt: skip
    return Job.model_validate({**given, **changes})


def drawn(found: list[Job], width: int) -> list[str]:
    screen = io.StringIO()
    CleanConsole(file=screen, width=width).print(table(found, jobs.COLUMNS, width))
    return screen.getvalue().splitlines()


def test_a_list_of_jobs_is_readable_at_80_columns() -> None:
    waits = job("alpaca-sft", state="queued", why="needs 8 GPUs on one host; gpu-1 has 3 free, gpu-2 has 5 free")
    lines = drawn([job("demo-sft-214711"), waits], 80)
    assert all(len(line.rstrip()) <= 80 for line in lines)
    assert "NAME" in lines[0] and "STATE" in lines[0] and "DETAIL" in lines[0]
    assert any(
        "demo-sft-214711" in line and "running" in line and "step 30/30 · loss 0.02255" in line for line in lines
    )
    assert len(lines) <= 5, "the detail takes two lines at most"
    assert "HOST" not in lines[0] and "HOST" in drawn([waits], 160)[0], "what tells least goes first"


def test_even_with_long_names_every_column_of_a_narrow_list_can_be_read() -> None:
    lines = drawn([job("a-very-long-name-of-a-job-that-somebody-has-really-given-to-it-1234")], 80)
    assert all(len(line.rstrip()) <= 80 for line in lines) and "…" in lines[1] and "running" in lines[1]
    assert "step 30/30" in " ".join(lines)


def test_waiting_is_told_now_and_then_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(waiting, "FIRST_S", 0.05)
    monkeypatch.setattr(waiting, "AGAIN_S", 0.05)
    output.errors.cache_clear()
    with waiting.busy(f"building [/] {CLIPBOARD}"):
        time.sleep(0.5)
    output.errors.cache_clear()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 2 and set(lines) <= {"building [/]  … 0s", "building [/]  … 1s"}, lines
