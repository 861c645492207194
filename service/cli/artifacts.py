"""`navarch artifact`: models and data sets that jobs can name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli import output
from service.cli.context import Json, complete_artifacts, connect
from service.cli.listing import Column, listing, remove, single
from service.cli.waiting import busy
from service.contract.errors import Problem

if TYPE_CHECKING:
    from service.contract.schemas import Artifact

app = typer.Typer(help="Models, adapters, checkpoints and data sets.", no_args_is_help=True)

Name = Annotated[
    str,
    typer.Argument(help="NAME (the newest), NAME@N or an id.", metavar="ARTIFACT", autocompletion=complete_artifacts),
]


@app.command("import")
def import_(
    path: Annotated[
        Path, typer.Argument(help="A GGUF file, or a Hugging Face or data folder.", metavar="FILE.gguf|DIR")
    ],
    name: Annotated[str | None, typer.Option(help="How jobs will name it; default: from the path.")] = None,
    kind: Annotated[str | None, typer.Option(help="model, adapter, checkpoint or dataset.")] = None,
    new_version: Annotated[
        bool, typer.Option("--new-version", help="Make it the next version of a name that exists.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Register a model or data set; a GGUF file is converted to a Hugging Face directory."""
    absolute = path.expanduser().absolute()
    if not absolute.exists():
        raise Problem("path_missing", f"There is no file or folder {path}.", "Give a GGUF file or a folder.")
    with connect(timeout_s=1800) as client:
        if as_json:
            output.as_json(client.add_artifact(str(absolute), name=name, kind=kind, new_version=new_version))
            return
        doing = "Converting" if absolute.suffix == ".gguf" else "Reading"
        with busy(f"{doing} {absolute.name}"):
            artifact = client.add_artifact(str(absolute), name=name, kind=kind, new_version=new_version)
    called = output.escape(f"{artifact.name}@{artifact.version}" if artifact.version > 1 else artifact.name)
    where = output.escape(artifact.path)
    output.say(f"[bold]{called}[/] {output.escape(artifact.kind)} {output.size(artifact.size)} [dim]{where}[/]")
    output.say(f"[dim]in a spec: model: artifact:{output.escape(artifact.name)}[/]")


COLUMNS: list[Column[Artifact]] = [
    Column("NAME", lambda artifact: f"[bold]{output.escape(artifact.name)}[/]"),
    Column("VERSION", lambda artifact: str(artifact.version), right=True),
    Column("KIND", lambda artifact: output.escape(artifact.kind), gives_way=3),
    Column("SIZE", lambda artifact: output.size(artifact.size), right=True, gives_way=2),
    Column("STATE", lambda artifact: output.state(artifact.state)),
    Column("MADE", lambda artifact: output.ago(artifact.created_at), gives_way=1),
    Column("FROM", lambda artifact: f"[dim]{output.escape(artifact.source or artifact.path)}[/]"),
]


@app.command("ls")
def ls(as_json: Json = False) -> None:
    """List artifacts: NAME in a spec means the newest version, NAME@2 the second."""
    with connect() as client:
        artifacts = client.artifacts()
    none = "No artifacts yet. [dim]navarch artifact import FILE.gguf|DIR registers one; jobs leave theirs.[/]"
    listing(artifacts, COLUMNS, as_json=as_json, empty=none)


@app.command("show")
def show(artifact: Name, as_json: Json = False) -> None:
    """Show one artifact."""
    with connect() as client:
        found = client.artifact(artifact)
    called = output.escape(f"{found.name}@{found.version}")
    title = f"[bold]{called}[/] {output.escape(found.kind)} {output.state(found.state)} [dim]{found.id}[/]"
    facts = (
        ("path", found.path),
        ("size", output.size(found.size)),
        ("digest", found.digest or ("" if found.message else "not computed yet")),
        ("from", found.source),
        ("made", output.date(found.created_at)),
        ("message", found.message),
    )
    single(found, title, facts, as_json=as_json)


@app.command("rm")
def rm(
    artifacts: Annotated[list[str], typer.Argument(metavar="ARTIFACT…", autocompletion=complete_artifacts)],
    as_json: Json = False,
) -> None:
    """Forget artifacts; files that Navarch made are removed, yours are left alone."""
    with connect() as client:
        remove(artifacts, client.delete_artifact, as_json=as_json)
