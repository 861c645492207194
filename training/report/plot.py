"""`navarch-train plot RUN_DIR… --out curves.svg`: what runs learned, drawn from their events.jsonl as one SVG file."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from training.errors import DataError, MissingInput

WIDTH, HEIGHT, COLUMNS = 420, 240, 2
LEFT, RIGHT, TOP, BOTTOM = 52, 52, 34, 34
FEW = 8
"""Points of a series up to this number are marked by dots."""
COLORS = ("#2563eb", "#dc2626", "#059669", "#9333ea")
CHOICES: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("reward", ("reward",), ("kl",)),
    ("reward_chosen", ("margin", "eval/margin"), ("eval/accuracy",)),
    ("accuracy", ("accuracy", "eval/accuracy"), ()),
    ("loss", ("loss", "eval/loss"), ()),
)
"""A series that a run must have, then what is drawn on the left axis and on the right one; the first match counts."""
NAMES = {"kl": "KL (nats a completion)", "eval/loss": "held-out loss", "eval/accuracy": "held-out accuracy",
         "loss": "training loss", "accuracy": "training accuracy", "margin": "training margin",
         "eval/margin": "held-out margin"}  # fmt: skip


@dataclass
class Line:
    """One series of one run."""

    name: str
    points: list[tuple[float, float]] = field(default_factory=list)


def read_events(path: Path) -> dict[str, list[tuple[float, float]]]:
    """(step, value) by name, from a run folder or an events.jsonl. Raises MissingInput, DataError."""
    file = path / "events.jsonl" if path.is_dir() else path
    if not file.is_file():
        raise MissingInput(f"There is no {file}: give run folders of navarch-train, or their events.jsonl.")
    found: dict[str, list[tuple[float, float]]] = {}
    for number, text in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            event = json.loads(text)
            if event["event"] in ("metrics", "eval"):
                for name, value in event["values"].items():
                    found.setdefault(name, []).append((float(event["step"]), float(value)))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{file}, line {number} is no event of navarch-train: {error}.") from error
    if not found:
        raise DataError(f"{file} holds no metrics yet.")
    return found


def smoothed(points: list[tuple[float, float]], window: int) -> list[tuple[float, float]]:
    """Means of up to `window` values up to each point."""
    result = []
    for i, (step, _) in enumerate(points):
        last = [value for _, value in points[max(0, i + 1 - window) : i + 1]]
        result.append((step, sum(last) / len(last)))
    return result


def lines_of(series: dict[str, list[tuple[float, float]]]) -> tuple[list[Line], list[Line]]:
    """What is drawn on the left and on the right axis."""
    for needed, left, right in CHOICES:
        if needed in series:
            sides = []
            for names in (left, right):
                kept = [name for name in names if name in series]
                sides.append([
                    Line(NAMES.get(name, name), series[name] if "eval/" in name
                         else smoothed(series[name], max(1, len(series[name]) // 20)))
                    for name in kept
                ])  # fmt: skip
            return sides[0], sides[1]
    first = next(iter(series))
    return [Line(first, series[first])], []


def panel(title: str, left: list[Line], right: list[Line], x: int, y: int) -> str:
    """One run's curves, with the lowest and highest value written at each axis."""
    steps = [step for line in (*left, *right) for step, _ in line.points]
    low_step, high_step = min(steps), max(max(steps), min(steps) + 1)
    inner_width, inner_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    parts = [
        f'<g transform="translate({x},{y})" font-family="sans-serif" font-size="11" fill="#111827">',
        f'<text x="{LEFT}" y="14" font-size="13" font-weight="bold">{escape(title)}</text>',
        f'<rect x="{LEFT}" y="{TOP}" width="{inner_width}" height="{inner_height}" fill="none" stroke="#d1d5db"/>',
        f'<text x="{LEFT}" y="{HEIGHT - 18}">{low_step:g}</text>',
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 18}" text-anchor="end">step {high_step:g}</text>',
    ]
    legend, number = LEFT, 0
    for lines, at, anchor in ((left, LEFT - 5, "end"), (right, WIDTH - RIGHT + 5, "start")):
        values = [value for line in lines for _, value in line.points]
        if not values:
            continue
        low, high = min(values), max(values)
        spread = (high - low) or 1.0
        parts.append(f'<text x="{at}" y="{TOP + 9}" text-anchor="{anchor}">{high:.3g}</text>')
        parts.append(f'<text x="{at}" y="{HEIGHT - BOTTOM}" text-anchor="{anchor}">{low:.3g}</text>')
        for line in lines:
            color = COLORS[number % len(COLORS)]
            number += 1
            places = [
                f"{LEFT + (step - low_step) / (high_step - low_step) * inner_width:.1f},"
                f"{TOP + (high - value) / spread * inner_height:.1f}"
                for step, value in line.points
            ]
            parts.append(f'<polyline points="{" ".join(places)}" fill="none" stroke="{color}" stroke-width="1.6"/>')
            if len(places) <= FEW:
                parts += [
                    f'<circle cx="{place.split(",")[0]}" cy="{place.split(",")[1]}" r="2.5" fill="{color}"/>'
                    for place in places
                ]
            parts.append(f'<text x="{legend}" y="{TOP - 6}" fill="{color}">{escape(line.name)}</text>')
            legend += 7 * len(line.name) + 14
    return "\n".join([*parts, "</g>"])


def draw(runs: Sequence[tuple[str, dict[str, list[tuple[float, float]]]]]) -> str:
    """The whole picture: a panel for each run, two beside each other."""
    columns = min(COLUMNS, len(runs))
    rows = -(-len(runs) // columns)
    panels = [
        panel(title, *lines_of(series), WIDTH * (i % columns), HEIGHT * (i // columns))
        for i, (title, series) in enumerate(runs)
    ]
    size = f'width="{WIDTH * columns}" height="{HEIGHT * rows}"'
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}>', '<rect width="100%" height="100%" fill="white"/>',
        *panels, "</svg>\n",
    ])  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    """Entry of the command."""
    parser = argparse.ArgumentParser(prog="navarch-train plot", description=__doc__)
    parser.add_argument("runs", nargs="+", help="run folders or events.jsonl files; TITLE=PATH names a panel")
    parser.add_argument("--out", type=Path, default=Path("curves.svg"))
    given = parser.parse_args(list(arguments))
    runs = []
    for text in given.runs:
        title, _, path = ("", "", text) if Path(text).exists() else text.rpartition("=")
        place = Path(path)
        runs.append((title or (place.stem if place.is_file() else place.name), read_events(place)))
    given.out.write_text(draw(runs), encoding="utf-8")
    print(f"drew {len(runs)} runs into {given.out}")
    return 0
