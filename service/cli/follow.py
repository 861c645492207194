"""Follows one job in the terminal: its lines as they come, its progress below them, its end as the exit code."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import TYPE_CHECKING, Any

from service.cli import output
from service.cli.clean import clean, json_text

if TYPE_CHECKING:
    from service.client import Client
    from service.contract.schemas import Job, JobStatus, LogLine


def follow_job(
    client: Client,
    ref: str,
    *,
    as_json: bool = False,
    replica: int | None = None,
    tail: int | None = None,
    raw: bool = False,
    timestamps: bool = False,
) -> int:
    """Print a job's log until it ends. The exit code: 0 it succeeded, 1 it did not, 130 interrupted (it goes on)."""
    from service.contract.schemas import LogLine

    printer = Printer(as_json=as_json, timestamps=timestamps, raw=raw, replicas=None if replica is None else 1)
    job = client.job(ref)
    printer.replicas = printer.replicas or int(job.spec.get("resources", {}).get("nodes", 1) or 1)
    announced = False
    try:
        with _display(as_json, raw) as display:
            for item in client.follow(job.id, replica=replica, tail=tail, events=raw):
                if isinstance(item, LogLine):
                    printer.line(item)
                else:
                    display.show(item)
                    announced = announced or (item.progress.ready is not None and _announce(client, job, as_json))
    except KeyboardInterrupt:
        name = output.escape(job.name)
        output.note(f"\nLeft [bold]{name}[/] running.")
        output.note(f"[dim]navarch logs -f {name} follows it again; navarch stop {name} stops it.[/]")
        return output.INTERRUPTED
    job = client.job(job.id)
    if as_json:
        output.verbatim(json_text({"job": job.model_dump(mode="json")}))
    else:
        summary(client, job)
    return 0 if job.state == "succeeded" else output.FAILED


def _announce(client: Client, job: Job, as_json: bool) -> bool:
    """Says where a model server answers; false when it doesn't yet (an earlier attempt did)."""
    url = client.job(job.id).url
    if url is not None and not as_json:
        output.note(f"[bold]{output.escape(job.name)}[/] answers at [bold]{output.escape(url)}[/]")
    return url is not None


class Printer:
    """Prints log lines, with the replica's number where a job has several."""

    def __init__(self, *, as_json: bool, timestamps: bool, raw: bool, replicas: int | None) -> None:
        self.as_json = as_json
        self.raw = raw
        self.timestamps = timestamps
        self.replicas = replicas

    def line(self, line: LogLine) -> None:
        if self.as_json:
            output.verbatim(json_text(line.model_dump(mode="json")))
        else:
            self._text(line)
        sys.stdout.flush()

    def _text(self, line: LogLine) -> None:
        text = line.line if self.raw else clean(_as_left(line.line))
        if (self.replicas or 1) > 1:
            text = f"[{line.replica}] {text}"
        if self.timestamps:
            text = f"{output.clock(line.time)} {text}"
        if self.raw:
            output.verbatim(text)
        elif sys.stdout.isatty():
            output.console().print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            output.plain(text)


def _as_left(line: str) -> str:
    """What a line of several that were written over each other leaves on a terminal: the last."""
    return line.rstrip("\r").rpartition("\r")[2]


class _Display(AbstractContextManager["_Display"]):
    """A line below the log with the job's state and a progress bar; on a terminal only."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

        self._bar = Progress(
            SpinnerColumn(style="cyan"),
            TextColumn("[bold]{task.fields[name]}[/] {task.description}"),
            BarColumn(bar_width=28),
            TextColumn("{task.fields[figures]}"),
            console=output.console(),
            transient=True,
            refresh_per_second=8,
        )
        self._task = self._bar.add_task("", name="", figures="", total=None)

    def __enter__(self) -> _Display:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.stop()

    def show(self, job: JobStatus) -> None:
        progress = job.progress
        said = output.state(job.state)
        if job.why and job.state == "queued":
            said += f" [dim]{output.escape(job.why)}[/]"
        if job.unreachable_since is not None:
            said += f" [red]host unreachable since {output.clock(job.unreachable_since)[:8]}[/]"
        self._bar.update(
            self._task,
            name=output.escape(job.name),
            description=said,
            total=progress.total_steps,
            completed=progress.step or 0,
            figures=figures(job),
        )


class _Quiet(nullcontext[Any]):
    """No display: states go to standard error, one line each, so that a file or pipe still shows them."""

    def __init__(self, silent: bool) -> None:
        super().__init__(self)
        self._silent = silent
        self._last: tuple[str, str | None] | None = None

    def show(self, job: JobStatus) -> None:
        now = (job.state, job.why)
        if now != self._last and not self._silent:
            because = f": {output.escape(job.why)}" if job.why and job.state == "queued" else ""
            output.note(f"[dim]{output.escape(job.name)} is {output.escape(job.state)}{because}[/]")
        self._last = now


def _display(as_json: bool, raw: bool) -> Any:
    return _Display() if sys.stdout.isatty() and not as_json and not raw else _Quiet(as_json)


def figures(job: JobStatus | Job) -> str:
    """`step 120/400 · loss 1.93 · 5,120 tokens/s · 2m 10s left`, as far as known."""
    progress = job.progress
    parts = []
    if progress.step is not None:
        total = f"/{progress.total_steps}" if progress.total_steps else ""
        parts.append(f"step {progress.step}{total}")
    if progress.loss is not None:
        parts.append(f"loss {output.number(progress.loss)}")
    if progress.tokens_per_second is not None:
        parts.append(f"{progress.tokens_per_second:,.0f} tokens/s")
    if progress.eta_s is not None and not job.finished:
        parts.append(f"{output.duration(progress.eta_s)} left")
    return " · ".join(parts)


def summary(client: Client, job: Job) -> None:
    """What a job came to: its state and reason, figures, artifacts, and what the model says now."""
    took = (job.finished_at or 0) - (job.started_at or job.finished_at or 0)
    because = f": {output.escape(job.message)}" if job.message else ""
    output.say(f"[bold]{output.escape(job.name)}[/] {output.state(job.state)} after {output.duration(took)}{because}")
    if figures(job):
        output.say(f"  [dim]{figures(job)}[/]")
    for artifact in job.artifacts:
        exact = output.escape(f"artifact:{artifact.name}@{artifact.version}")
        output.say(f"  [dim]{output.escape(f'{artifact.kind:<7}')}[/] {exact}")
        output.say(f"          [dim]{output.escape(artifact.location)}[/]")
    if job.type != "command":
        samples(client, job.id)


def samples(client: Client, ref: str) -> None:
    """The model's answers to the sample prompts: before the training and now, side by side."""
    from rich.table import Table

    items = client.samples(ref, limit=100).items
    if not items:
        return
    latest, first = items[0], items[-1]
    same_prompts = [row[:1] for row in first.rows] == [row[:1] for row in latest.rows]
    shown = [first, latest] if same_prompts and first.title != latest.title else [latest]
    table = Table(show_lines=True, header_style="bold")
    for name in latest.columns[:1]:
        table.add_column(output.escape(name))
    for sample in shown:
        for name in sample.columns[1:]:
            heading = sample.title if len(sample.columns) == 2 else f"{sample.title}: {name}"
            table.add_column(output.escape(heading), overflow="fold")
    for index, row in enumerate(latest.rows):
        cells = row[:1]
        for sample in shown:
            answers = sample.rows[index][1:] if index < len(sample.rows) else [""] * (len(sample.columns) - 1)
            cells = [*cells, *answers]
        table.add_row(*(output.escape(cell) for cell in cells))
    output.console().print(table)
