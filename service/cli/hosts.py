"""`navarch host` and `navarch events`: what there is to run on, and what happened."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from service.cli import output
from service.cli.context import Json, complete_jobs, connect
from service.cli.listing import Column, listing

if TYPE_CHECKING:
    from service.contract.schemas import Gpu, Host

app = typer.Typer(help="Docker hosts.", no_args_is_help=True)


COLUMNS: list[Column[Host]] = [
    Column("NAME", lambda host: f"[bold]{output.escape(host.name)}[/]"),
    Column("STATE", lambda host: output.escape(host.state)),
    Column("REACHABLE", lambda host: "[green]yes[/]" if host.reachable else "[red]no[/]"),
    Column("CPUS", lambda host: str(host.cpus or ""), right=True, gives_way=3),
    Column("MEMORY", lambda host: output.size(host.memory_bytes), gives_way=2),
    Column("GPUS", lambda host: str(len(host.gpus)) if host.gpus else "–", gives_way=4),
    Column("FREE", lambda host: str(sum(gpu.job is None for gpu in host.gpus)) if host.gpus else "–", gives_way=5),
    Column("ENGINE", lambda host: output.escape(host.engine_version or ""), gives_way=1),
    Column("DETAIL", lambda host: f"[dim]{output.escape(host.message or host.url)}[/]"),
]


@app.command("ls")
def ls(as_json: Json = False) -> None:
    """List hosts with their GPUs."""
    with connect() as client:
        hosts = client.hosts()
    if listing(hosts, COLUMNS, as_json=as_json):
        for host in hosts:
            for gpu in host.gpus:
                output.say(_gpu(host, gpu))


def _gpu(host: Host, gpu: Gpu) -> str:
    used = f"[yellow]{output.escape(gpu.job)}[/]" if gpu.job else "[green]free[/]"
    name, memory = output.escape(gpu.name), output.size(gpu.memory_mib << 20)
    return f"  [dim]{output.escape(host.name)}[/] {name} {memory} {used} [dim]{output.escape(gpu.uuid)}[/]"


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
        who = output.escape(f"{event.actor:<12}")
        output.say(f"[dim]{output.date(event.time)}  {who}[/] {name}{text} [dim]{output.escape(event.kind)}[/]")
