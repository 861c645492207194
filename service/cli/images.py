"""`navarch image`: builds, lists, shows and removes images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from service.cli import builds, output
from service.cli.context import Json, connect
from service.cli.listing import Column, listing, remove, single
from service.cli.waiting import busy

if TYPE_CHECKING:
    from service.contract.images import Image

_LONG_S = 3600.0
"""A commit or a push takes as long as it takes."""
app = typer.Typer(help="Images: build, list, keep a workspace as one, push, remove.", no_args_is_help=True)
app.command("build")(builds.build)
app.command("builds")(builds.ls)
app.command("cancel")(builds.cancel)


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


@app.command("commit")
def commit(
    workspace: Annotated[str, typer.Argument(help="A workspace's name or id.", metavar="WORKSPACE")],
    tag: Annotated[str, typer.Option("--tag", "-t", help="What it is called: registry/team/colossalai:0.3.0.")],
    push_it: Annotated[bool, typer.Option("--push", help="Push it to that registry, too.")] = False,
    as_json: Json = False,
) -> None:
    """Keep a workspace as an image, without keys, tokens, histories and what is mounted."""
    with connect(timeout_s=_LONG_S) as client:
        with busy(f"{workspace} becomes {tag}"):
            made = client.commit_image(workspace, tag)
        if not as_json:
            output.say(f"[bold]{output.escape(made.tag)}[/] adds {output.size(made.size)} [dim]{made.id[7:19]}[/]")
            output.fact("mounts", f"{output.escape(', '.join(made.not_included))} [dim]are no part of it[/]")
            for file in made.left_out:
                output.fact("left out", output.escape(file))
        digest = ""
        if push_it:
            with busy(f"{tag} is pushed"):
                digest = client.push_image(made.tag)
    if as_json:
        output.as_json({**made.model_dump(mode="json"), "digest": digest or None})
    elif digest:
        output.say(f"pushed as {output.escape(digest)}")


@app.command("push")
def push(
    image: str,
    to: Annotated[str, typer.Option("--to", help="Another name for it, with the registry's.")] = "",
    as_json: Json = False,
) -> None:
    """Push an image to its registry, with the logins of the control plane's account."""
    with connect(timeout_s=_LONG_S) as client, busy(f"{to or image} is pushed"):
        digest = client.push_image(image, to)
    if as_json:
        output.as_json({"digest": digest})
        return
    output.say(f"pushed as {output.escape(digest)}")


@app.command("rm")
def rm(images: Annotated[list[str], typer.Argument(metavar="IMAGE…")], as_json: Json = False) -> None:
    """Remove images by tag or digest."""
    with connect() as client:
        remove(images, client.delete_image, as_json=as_json)
