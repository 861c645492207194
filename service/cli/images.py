"""`navarch image`: builds, lists, shows and removes images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from service.cli import builds, output
from service.cli.context import Json, connect
from service.cli.listing import Column, listing, remove, single

if TYPE_CHECKING:
    from service.contract.schemas import Image

app = typer.Typer(help="Images: build, list, remove.", no_args_is_help=True)
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


@app.command("rm")
def rm(images: Annotated[list[str], typer.Argument(metavar="IMAGE…")], as_json: Json = False) -> None:
    """Remove images by tag or digest."""
    with connect() as client:
        remove(images, client.delete_image, as_json=as_json)
