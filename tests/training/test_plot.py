"""Curves drawn from the events of runs."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from training import cli

SVG = "{http://www.w3.org/2000/svg}"


def write(folder: Path, name: str, **values: list[float]) -> Path:
    run = folder / name
    run.mkdir()
    events = [
        {
            "event": "eval" if key.startswith("eval") else "metrics",
            "step": step,
            "values": {key.replace("__", "/"): value},
        }
        for key, column in values.items()
        for step, value in enumerate(column)
    ]
    (run / "events.jsonl").write_text("\n".join(map(json.dumps, [{"event": "progress", "step": 1}, *events])))
    return run


def heights(line: ElementTree.Element) -> list[float]:
    return [float(point.split(",")[1]) for point in line.attrib["points"].split()]


def test_each_run_is_a_panel_with_its_curves(tmp_path: Path) -> None:
    sft = write(tmp_path, "sft", loss=[3.0, 2.0, 1.0], eval__loss=[2.5, 1.5, 1.2])
    ppo = write(tmp_path, "ppo", loss=[0.0, 0.0], reward=[0.1, 0.3], kl=[0.0, 2.0])
    out = tmp_path / "curves.svg"
    assert cli.main(["plot", f"SFT & more={sft}", str(ppo), "--out", str(out)]) == 0
    picture = ElementTree.fromstring(out.read_text())
    panels = picture.findall(f"{SVG}g")
    words = [[text.text for text in panel.findall(f"{SVG}text")] for panel in panels]
    assert len(panels) == 2
    assert {"SFT & more", "training loss", "held-out loss", "3", "1"} <= set(words[0])
    assert {"ppo", "reward", "KL (nats a completion)", "0.3", "2"} <= set(words[1])
    falling = heights(panels[0].findall(f"{SVG}polyline")[0])
    assert falling == sorted(falling)  # y grows downwards


@pytest.mark.parametrize(("text", "code"), [(None, 66), ("not json", 65), ('{"event": "progress"}', 65)])
def test_what_is_no_run_is_refused(text: str | None, code: int, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "events.jsonl").write_text(text)
    assert cli.main(["plot", str(tmp_path), "--out", str(tmp_path / "x.svg")]) == code
    assert not (tmp_path / "x.svg").exists()
