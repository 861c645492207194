"""`navarch image build`, `builds` and `cancel`: builds images from recipes, and shows those builds."""

from __future__ import annotations

import sys
from collections import deque
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli import output
from service.cli.context import Json, complete_recipes, connect
from service.cli.listing import Column, listing
from service.cli.waiting import busy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from service.contract.images import Build

#: Lines of a build's log that are worth showing where there is no terminal to redraw.
LANDMARKS = ("Building ", "FROM ", "RUN ", "navarch: ", "Waits for ", "Pulling ")


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
            if as_json:
                output.as_json(started)
            else:
                does = f"waits for {started.ahead} before it" if started.ahead else "building"
                output.say(f"{does}: {output.escape(started.tag)} [dim](id {started.id})[/]")
            return
        try:
            tail = _follow(client.follow_build(started.id), started, verbose=verbose, silent=as_json)
        except KeyboardInterrupt:
            output.note(
                f"\nThe build of {output.escape(started.tag)} goes on; `navarch image cancel {started.id}` ends it."
            )
            raise typer.Exit(output.INTERRUPTED) from None
        ended = client.build(started.id)
    _report(ended, tail, as_json=as_json, verbose=verbose)


def _absolute(path: Path | None) -> str | None:
    return str(path.expanduser().absolute()) if path is not None else None


def _follow(lines: Iterator[str], started: Build, *, verbose: bool, silent: bool) -> deque[str]:
    """Show the build going on; keeps the last lines, for when it fails."""
    tail: deque[str] = deque(maxlen=25)
    if verbose or silent or not sys.stdout.isatty():
        with nullcontext() if silent else busy(f"building {started.tag}"):
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


COLUMNS: list[Column[Build]] = [
    Column("BUILD", lambda build: build.id),
    Column("IMAGE", lambda build: f"[bold]{output.escape(build.tag)}[/]"),
    Column("RECIPE", lambda build: output.escape(Path(build.recipe).name), gives_way=1),
    Column("STATE", lambda build: output.state(build.state)),
    Column("AHEAD", lambda build: str(build.ahead or ""), right=True, gives_way=3),
    Column("ASKED", lambda build: output.ago(build.created_at), gives_way=2),
    Column("DETAIL", lambda build: output.escape((build.message or "").splitlines()[0] if build.message else "")),
]


def ls(
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many.")] = 20, as_json: Json = False
) -> None:
    """List image builds, the newest first: waiting, under way, ended."""
    with connect() as client:
        found = list(client.builds(limit=limit))
    empty = "No builds yet. [dim]navarch image build RECIPE starts one.[/]"
    listing(found, COLUMNS, as_json=as_json, empty=empty)


def cancel(
    refs: Annotated[list[str], typer.Argument(metavar="BUILD…", help="Ids, or tags or recipes of what is built.")],
    as_json: Json = False,
) -> None:
    """End builds that wait or are under way. Finished steps are kept for the next build."""
    cancelled = []
    with connect() as client:
        for ref in refs:
            found = client.cancel_build(_id_of(list(client.builds(limit=200)), ref))
            cancelled.append(found)
            if not as_json:
                output.say(f"{output.escape(found.tag)} [dim](id {found.id})[/]: {output.escape(found.message or '')}")
    if as_json:
        output.as_json(cancelled)


def _id_of(known: list[Build], ref: str) -> str:
    """The id of the newest unfinished build of this tag or recipe; anything else is an id."""
    for build in known:
        if not build.finished and ref in (build.tag, build.tag.removesuffix(":latest"), build.recipe):
            return build.id
    return ref
