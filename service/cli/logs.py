"""`navarch logs`: what a job's containers printed, and what they print."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.context import JobName, Json, connect

if TYPE_CHECKING:
    from service.client import Client
    from service.contract.schemas import LogLine

PAGE = 1000


def logs(
    job: JobName,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
    replica: Annotated[int | None, typer.Option(min=0, help="Of this replica only.")] = None,
    tail: Annotated[int | None, typer.Option("--tail", "-n", min=0, help="Only the last N lines.")] = None,
    timestamps: Annotated[bool, typer.Option("--timestamps", "-t", help="When each line was printed.")] = False,
    raw: Annotated[
        bool,
        typer.Option(
            "--raw",
            help="As it was printed: with colours and whatever else a terminal obeys, and with reported figures.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Show a job's log."""
    from service.cli.follow import Printer, follow_job

    with connect() as client:
        if follow:
            code = follow_job(client, job, as_json=as_json, replica=replica, tail=tail, raw=raw, timestamps=timestamps)
            raise typer.Exit(code)
        found = client.job(job)
        nodes = int(found.spec.get("resources", {}).get("nodes", 1) or 1)
        printer = Printer(as_json=as_json, timestamps=timestamps, raw=raw, replicas=1 if replica is not None else nodes)
        for line in _there(client, found.id, replica, tail, raw):
            printer.line(line)


def _there(client: Client, job: str, replica: int | None, tail: int | None, events: bool) -> Iterator[LogLine]:
    """What is in the log now, or the last of it; what comes meanwhile is left out, or a busy log would never end."""
    until = client.logs(job, tail=0, replica=replica).next_cursor if tail is None else None
    cursor, left = None, tail
    while left is None or left > 0:
        limit = PAGE if left is None else min(left, PAGE)
        page = client.logs(
            job, cursor=cursor, until=until, limit=limit, replica=replica, tail=None if cursor else left, events=events
        )
        yield from page.items
        if not page.items:
            return
        cursor, left = page.next_cursor, None if left is None else left - len(page.items)
