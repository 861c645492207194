"""`navarch logs`: what a job's containers printed, and what they print."""

from __future__ import annotations

from typing import Annotated

import typer

from service.cli.context import JobName, Json, connect


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
        cursor = None
        while True:
            page = client.logs(found.id, cursor=cursor, limit=1000, replica=replica, tail=tail, events=raw)
            for line in page.items:
                printer.line(line)
            if not page.items:
                return
            cursor, tail = page.next_cursor, None
