"""`navarch host` and `navarch events`: what there is to run on, and what happened."""

from __future__ import annotations

from typing import Annotated

import typer

from service.cli import output
from service.cli.context import Json, complete_jobs, connect

app = typer.Typer(help="Docker hosts.", no_args_is_help=True)


@app.command("ls")
def ls(as_json: Json = False) -> None:
    """List hosts with their GPUs."""
    with connect() as client:
        hosts = client.hosts()
    if as_json:
        output.as_json(hosts)
        return
    table = output.table(
        "NAME", "STATE", "REACHABLE", "CPUS", "MEMORY", "GPUS", "FREE", "ENGINE", "DETAIL", right=("CPUS",)
    )
    for host in hosts:
        table.add_row(
            f"[bold]{output.escape(host.name)}[/]",
            host.state,
            "[green]yes[/]" if host.reachable else "[red]no[/]",
            str(host.cpus or ""),
            output.size(host.memory_bytes),
            str(len(host.gpus)) if host.gpus else "–",
            str(sum(gpu.job is None for gpu in host.gpus)) if host.gpus else "–",
            host.engine_version or "",
            f"[dim]{output.escape(host.message or host.url)}[/]",
        )
    output.console().print(table)
    for host in hosts:
        for gpu in host.gpus:
            used = f"[yellow]{output.escape(gpu.job)}[/]" if gpu.job else "[green]free[/]"
            memory = output.size(gpu.memory_mib << 20)
            output.say(
                f"  [dim]{output.escape(host.name)}[/] {output.escape(gpu.name)} {memory} {used} [dim]{gpu.uuid}[/]"
            )


def events(
    job: Annotated[str | None, typer.Argument(metavar="[JOB]", autocompletion=complete_jobs)] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="At most N, the latest.")] = 50,
    as_json: Json = False,
) -> None:
    """What happened, to one job or everywhere; the latest last."""
    with connect() as client:
        found = list(client.events(job, limit=limit))
    found.reverse()
    if as_json:
        output.as_json(found)
        return
    for event in found:
        name = f"[bold]{output.escape(event.job_name)}[/] " if event.job_name and job is None else ""
        text = output.escape(event.message or event.kind)
        output.say(f"[dim]{output.date(event.time)}  {event.actor:<12}[/] {name}{text} [dim]{event.kind}[/]")
