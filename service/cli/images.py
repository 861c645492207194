"""`navarch image`: builds, lists, shows and removes images."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli import builds, output
from service.cli.context import Json, connect
from service.cli.listing import Column, listing, remove, single
from service.cli.waiting import busy

if TYPE_CHECKING:
    from service.contract.images import Image, Registry

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
        if not as_json:
            output.say(f"{output.escape(workspace)} has changed {output.size(client.commit_size(workspace, tag).size)}")
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
    """Push an image to its registry, with the logins of `navarch registry`."""
    with connect(timeout_s=_LONG_S) as client, busy(f"{to or image} is pushed"):
        digest = client.push_image(image, to)
    if as_json:
        output.as_json({"digest": digest})
        return
    output.say(f"pushed as {output.escape(digest)}")


@app.command("pull")
def pull(image: str, as_json: Json = False) -> None:
    """Fetch an image from its registry."""
    with connect(timeout_s=_LONG_S) as client, busy(f"{image} is pulled"):
        found = client.pull_image(image)
    if as_json:
        output.as_json(found)
        return
    output.say(f"[bold]{output.escape(image)}[/] is here [dim]{found.id[7:19]}, {output.size(found.size)}[/]")


@app.command("tag")
def tag(image: str, new: Annotated[str, typer.Argument(metavar="TAG")], as_json: Json = False) -> None:
    """Give an image another name."""
    with connect() as client:
        found = client.tag_image(image, new)
    if as_json:
        output.as_json(found)
        return
    output.say(f"{output.escape(image)} is {output.escape(new)}, too")


@app.command("export")
def export(
    image: str, file: Annotated[Path, typer.Argument(help="The .tar file to write.")], as_json: Json = False
) -> None:
    """Write an image into a file, for machines without any registry."""
    with connect(timeout_s=_LONG_S) as client, busy(f"{image} is written"):
        size = client.export_image(image, file.expanduser())
    if as_json:
        output.as_json({"file": str(file), "bytes": size})
        return
    output.say(f"{output.escape(file)} has {output.size(size)}")


@app.command("import")
def import_file(
    file: Annotated[Path, typer.Argument(help="A .tar file on the control plane's machine.")], as_json: Json = False
) -> None:
    """Load images from a file that `navarch image export` or `docker save` wrote."""
    with connect(timeout_s=_LONG_S) as client, busy(f"{file} is loaded"):
        names = client.import_image(str(file.expanduser().absolute()))
    if as_json:
        output.as_json({"images": names})
        return
    for name in names:
        output.say(f"[bold]{output.escape(name)}[/] is here")


@app.command("rm")
def rm(images: Annotated[list[str], typer.Argument(metavar="IMAGE…")], as_json: Json = False) -> None:
    """Remove images by tag or digest."""
    with connect() as client:
        remove(images, client.delete_image, as_json=as_json)


registries = typer.Typer(help="Logins at registries, for pulls and pushes; an admin's.", no_args_is_help=True)
REGISTRIES: list[Column[Registry]] = [
    Column("REGISTRY", lambda one: f"[bold]{output.escape(one.address)}[/]"),
    Column("USER", lambda one: output.escape(one.username)),
    Column("SINCE", lambda one: output.date(one.set_at)),
]


@registries.command("login")
def login(
    address: Annotated[str, typer.Argument(help="As it begins an image's name.", metavar="ADDRESS")],
    user: Annotated[str, typer.Option("--user", "-u", help="The name there.")],
    as_json: Json = False,
) -> None:
    """Log in; the password is asked for at the terminal, or read from standard input."""
    password = typer.prompt("password", hide_input=True) if sys.stdin.isatty() else sys.stdin.read().rstrip("\n")
    with connect(timeout_s=120) as client, busy(f"{address} is asked"):
        client.registry_login(address, user, password)
    if as_json:
        output.as_json({"address": address, "username": user})
        return
    output.say(f"logged in to {output.escape(address)}")


@registries.command("ls")
def ls_registries(as_json: Json = False) -> None:
    """List where the control plane is logged in."""
    with connect() as client:
        found = client.registries()
    listing(found, REGISTRIES, as_json=as_json, empty="No logins. [dim]navarch registry login ADDRESS -u NAME[/]")


@registries.command("logout")
def logout(addresses: Annotated[list[str], typer.Argument(metavar="ADDRESS…")], as_json: Json = False) -> None:
    """Forget logins."""
    with connect() as client:
        remove(addresses, client.registry_logout, as_json=as_json)
