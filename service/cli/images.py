"""`navarch image`: builds images from recipes, and shows them."""

from __future__ import annotations

import sys
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli import output
from service.cli.context import Json, complete_recipes, connect
from service.cli.listing import Column, listing, remove, single

if TYPE_CHECKING:
    from collections.abc import Iterator

    from service.contract.schemas import Build, Image

#: Lines of a build's log that are worth showing where there is no terminal to redraw.
LANDMARKS = ("Building ", "FROM ", "RUN ", "navarch: ")

app = typer.Typer(help="Images: build, list, remove.", no_args_is_help=True)


@app.command("build")
def build(
    recipe: Annotated[str, typer.Argument(help="A built-in recipe or a YAML file.", autocompletion=complete_recipes)],
    tag: Annotated[str | None, typer.Option(help="Default: navarch/RECIPE:latest.")] = None,
    base: Annotated[str | None, typer.Option(help="Instead of the recipe's base image.")] = None,
    wheelhouse: Annotated[Path | None, typer.Option(help="Folder with wheels that pip may use.")] = None,
    index_url: Annotated[str | None, typer.Option(help="Python package index.")] = None,
    extra_index_url: Annotated[list[str] | None, typer.Option(help="Further package index (repeatable).")] = None,
    torch_index_url: Annotated[
        str | None, typer.Option(help="Index of torch builds, such as a mirror of download.pytorch.org/whl/cpu.")
    ] = None,
    trusted_host: Annotated[
        list[str] | None, typer.Option(help="Host that pip may ask over http (repeatable).")
    ] = None,
    apt_mirror: Annotated[str | None, typer.Option(help="Debian or Ubuntu mirror.")] = None,
    ca_bundle: Annotated[Path | None, typer.Option(help="PEM file for networks that re-sign TLS.")] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Build every layer anew.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print the whole build log.")] = False,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Do not wait for the end.")] = False,
    as_json: Json = False,
) -> None:
    """Build an image from a recipe."""
    file = Path(recipe)
    named = str(file.absolute()) if file.suffix in (".yaml", ".yml") else recipe
    with connect() as client:
        started = client.build_image(
            named,
            tag=tag,
            base=base,
            wheelhouse=_absolute(wheelhouse),
            index_url=index_url,
            extra_index_urls=extra_index_url,
            torch_index_url=torch_index_url,
            trusted_hosts=trusted_host,
            apt_mirror=apt_mirror,
            ca_bundle=_absolute(ca_bundle),
            no_cache=no_cache or None,
        )
        if detach:
            output.as_json(started) if as_json else output.say(
                f"building {output.escape(started.tag)} [dim](id {started.id})[/]"
            )
            return
        try:
            tail = _follow(client.follow_build(started.id), started, verbose=verbose, silent=as_json)
        except KeyboardInterrupt:
            output.note(f"\nThe build of {output.escape(started.tag)} goes on (id {started.id}).")
            raise typer.Exit(output.INTERRUPTED) from None
        ended = client.build(started.id)
    _report(ended, tail, as_json=as_json, verbose=verbose)


def _absolute(path: Path | None) -> str | None:
    return str(path.expanduser().absolute()) if path is not None else None


def _follow(lines: Iterator[str], started: Build, *, verbose: bool, silent: bool) -> deque[str]:
    """Show the build going on; keeps the last lines, for when it fails."""
    tail: deque[str] = deque(maxlen=25)
    if verbose or silent or not sys.stdout.isatty():
        for line in lines:
            tail.append(line)
            if verbose or (not silent and line.startswith(LANDMARKS)):
                output.plain(line)
                sys.stdout.flush()
        return tail
    with output.console().status(f"building {output.escape(started.tag)}") as status:
        for line in lines:
            tail.append(line)
            if line.strip():
                shown = output.escape(line.strip()[: max(20, output.console().width - 30)])
                status.update(f"building {output.escape(started.tag)} [dim]{shown}[/]")
    return tail


def _report(ended: Build, tail: deque[str], *, as_json: bool, verbose: bool) -> None:
    if as_json:
        output.as_json(ended)
    elif ended.state == "succeeded":
        took = output.duration((ended.finished_at or 0) - (ended.started_at or ended.created_at))
        said = "is up to date" if tail and " is up to date: " in tail[-1] else f"[green]built[/] in {took}"
        output.say(f"[bold]{output.escape(ended.tag)}[/] {said} [dim]{ended.image or ''}[/]")
    else:
        if not verbose:
            for line in tail:
                if line not in (ended.message or ""):
                    output.note(f"[dim]{output.escape(line)}[/]")
        output.report(f"The build of {ended.tag} {ended.state}: {ended.message or 'see the log above'}", None)
    if ended.state != "succeeded":
        raise typer.Exit(output.FAILED)


COLUMNS: list[Column[Image]] = [
    Column("IMAGE", lambda image: f"[bold]{output.escape(', '.join(image.tags) or '(untagged)')}[/]"),
    Column("RECIPE", lambda image: output.escape(image.recipe or ""), gives_way=1),
    Column("SIZE", lambda image: output.size(image.size), right=True),
    Column("MADE", lambda image: output.ago(image.created_at), gives_way=2),
    Column("DIGEST", lambda image: f"[dim]{image.id.removeprefix('sha256:')[:12]}[/]"),
]


@app.command("ls")
def ls(as_json: Json = False) -> None:
    """List the images that Navarch built or uses."""
    with connect() as client:
        images = client.images()
    listing(images, COLUMNS, as_json=as_json, empty="No images yet. [dim]navarch image build RECIPE makes one.[/]")


@app.command("show")
def show(image: str, as_json: Json = False) -> None:
    """Show one image, by tag or digest."""
    with connect() as client:
        found = client.image(image)
    facts = (
        ("digest", found.id),
        ("recipe", found.recipe),
        ("size", output.size(found.size)),
        ("made", output.date(found.created_at)),
        *(("label", f"{name}={value}") for name, value in sorted(found.labels.items())),
    )
    single(found, f"[bold]{output.escape(', '.join(found.tags) or found.id)}[/]", facts, as_json=as_json)


@app.command("rm")
def rm(images: Annotated[list[str], typer.Argument(metavar="IMAGE…")], as_json: Json = False) -> None:
    """Remove images by tag or digest."""
    with connect() as client:
        remove(images, client.delete_image, as_json=as_json)
