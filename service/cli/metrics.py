"""`navarch metrics`: a job's series as plots in the terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli import output
from service.cli.context import JobName, Json, connect

if TYPE_CHECKING:
    from service.contract.schemas import Series

#: What is worth a plot when nothing is asked for, in this order.
USUAL = ("loss", "eval/loss", "reward", "accuracy", "kl", "lr", "tokens_per_second", "grad_norm")


def metrics(
    job: JobName,
    names: Annotated[list[str] | None, typer.Argument(help="Default: the usual ones.", metavar="[NAME]…")] = None,
    points: Annotated[int, typer.Option(min=2, max=10000, help="At most so many points of each.")] = 400,
    everything: Annotated[bool, typer.Option("--all", "-a", help="Plot every series.")] = False,
    as_json: Json = False,
) -> None:
    """Plot what a job reported."""
    with connect() as client:
        found = client.metrics(job, points=points, names=names)
    if as_json:
        output.as_json(found)
        return
    known = {series.name: series for series in found.series}
    if not known:
        output.say("It has reported no figures yet.")
        return
    chosen = list(known) if names or everything else [name for name in USUAL if name in known][:4] or list(known)[:4]
    for name in chosen:
        _plot(known[name])
    rest = [name for name in known if name not in chosen]
    if rest:
        output.say(f"[dim]also: {output.escape(', '.join(rest))}[/]")


def _plot(series: Series) -> None:
    pairs = [(step, value) for step, value in zip(series.steps, series.values, strict=True) if value is not None]
    values = [value for _, value in pairs]
    if not values:
        output.say(f"[bold]{output.escape(series.name)}[/] [dim]has no finite values[/]")
        return
    first, last = output.number(values[0]), output.number(values[-1])
    spread = f"min {output.number(min(values))} · max {output.number(max(values))}"
    output.say(
        f"[bold]{output.escape(series.name)}[/]  {first} → [bold]{last}[/]  [dim]{spread} · {series.total} points[/]"
    )
    if len(values) < 2:
        return
    output.verbatim(_drawn([step for step, _ in pairs], values))


def _drawn(steps: list[int], values: list[float]) -> str:
    """The curve, as wide as the terminal; without colours where it is no terminal."""
    import plotext

    figure = plotext.figure
    figure.clear()
    figure.theme("default" if sys.stdout.isatty() else "colorless")
    figure.plot_size(min(output.console().width, 110), 13)
    curve = figure.signal(steps, values, marker="braille")
    curve.lines()
    figure.draw(curve)
    text = str(figure.build())
    return text if sys.stdout.isatty() else str(plotext.uncolorize(text))
