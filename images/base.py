"""Brings the image that a recipe builds on: from the engine, a registry, or the distribution's packages."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import docker
from docker.errors import APIError, DockerException, ImageNotFound

from images.errors import ImageError
from images.recipes import Recipe

DEBOOTSTRAP_VARIANT = "minbase"
BASE_LABEL = "navarch.base"


def debootstrap_tag(release: str) -> str:
    """Name of the image that `make_base` leaves on the engine, so that it is made once."""
    return f"navarch/base:{release}"


def ensure_image(client: docker.DockerClient, reference: str, *, purpose: str) -> Generator[str, None, str]:
    """Pulls `reference` unless the engine has it, yielding what happens; returns its id.

    Raises ImageError (`base_unavailable`) that names the ways out.
    """
    try:
        return str(client.images.get(reference).id)
    except ImageNotFound:
        pass
    yield f"Pulling {reference} ({purpose})"
    try:
        yield from _pull(client, reference)
        return str(client.images.get(reference).id)
    except DockerException as error:
        raise ImageError(
            "base_unavailable", f"The {purpose} {reference} can't be pulled: {_reason(error)}", _ways_out(reference)
        ) from error


def ensure_base(client: docker.DockerClient, recipe: Recipe, apt_mirror: str = "") -> Generator[str, None, str]:
    """Brings the recipe's base, yielding what happens; returns the reference to build FROM."""
    if not recipe.debootstrap:
        yield from ensure_image(client, recipe.base, purpose="base image")
        return recipe.base
    made = debootstrap_tag(recipe.debootstrap)
    for reference in (recipe.base, made):
        try:
            client.images.get(reference)
            return reference
        except ImageNotFound:
            continue
    try:
        yield from ensure_image(client, recipe.base, purpose="base image")
        return recipe.base
    except ImageError as error:
        yield f"{error.message}; making a base from the distribution's packages instead"
        yield from make_base(client, recipe.debootstrap, made, apt_mirror, after=error)
        return made


def make_base(
    client: docker.DockerClient, release: str, tag: str, mirror: str = "", after: ImageError | None = None
) -> Iterator[str]:
    """Makes a minimal Debian with debootstrap and imports it as `tag`. Needs root on the machine that builds."""
    program = shutil.which("debootstrap", path="/usr/sbin:/usr/bin:/sbin:/bin")
    if program is None:
        raise ImageError(
            "base_unavailable",
            (f"{after.message} " if after else "") + "debootstrap, which could make a base, is not installed here.",
            "Install it (`apt-get install debootstrap`), or name a base that the engine has with --base.",
        )
    yield f"Making Debian {release} with debootstrap (about a minute)"
    with tempfile.TemporaryDirectory(prefix="navarch-base-") as folder:
        root = Path(folder) / "root"
        command = [program, f"--variant={DEBOOTSTRAP_VARIANT}", release, str(root), *([mirror] if mirror else [])]
        yield from _debootstrap(command, release)
        for path in ("var/cache/apt/archives", "var/lib/apt/lists"):
            for file in (root / path).glob("*"):
                if file.is_file():
                    file.unlink()
        (root / "etc/resolv.conf").unlink(missing_ok=True)
        (root / "etc/hostname").unlink(missing_ok=True)
        archive = Path(folder) / "root.tar"
        packed = subprocess.run(
            ["tar", "--numeric-owner", "--one-file-system", "-C", str(root), "-cf", str(archive), "."],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if packed.returncode != 0:
            raise ImageError(
                "base_unavailable", f"The new base could not be packed: {packed.stderr.strip()}", "Is the disk full?"
            )
        yield f"Importing it as {tag}"
        repository, _, name = tag.partition(":")
        with archive.open("rb") as content:
            client.api.import_image_from_data(
                content, repository=repository, tag=name, changes=[f"LABEL {BASE_LABEL}={release}", 'CMD ["bash"]']
            )


def _debootstrap(command: list[str], release: str) -> Iterator[str]:
    last: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                last = [*last[-7:], line.rstrip()]
                if not line.startswith(
                    ("I: Retrieving", "I: Validating", "I: Extracting", "I: Unpacking", "I: Configuring")
                ):
                    yield line.rstrip()
        except GeneratorExit:
            process.terminate()
            raise
    if process.returncode != 0:
        raise ImageError(
            "base_unavailable",
            f"debootstrap of {release} failed: " + " | ".join(last),
            "It needs root and a mirror that answers (--apt-mirror). Or name a base that the engine has with --base.",
        )


def _pull(client: docker.DockerClient, reference: str) -> Iterator[str]:
    """One line for each layer that is complete; progress bars are left out."""
    for event in client.api.pull(reference, tag=None if _has_tag(reference) else "latest", stream=True, decode=True):
        if "error" in event:
            raise APIError(str(event["error"]))
        status = str(event.get("status", ""))
        if event.get("id") and status == "Pull complete":
            yield f"{event['id']}: complete"
        elif not event.get("id"):
            yield status


def _has_tag(reference: str) -> bool:
    return "@" in reference or ":" in reference.rsplit("/", 1)[-1]


def _reason(error: DockerException) -> str:
    text = str(getattr(error, "explanation", None) or error)
    if "no such host" in text or "i/o timeout" in text or "connection refused" in text or "Client.Timeout" in text:
        return f"its registry does not answer ({text})"
    if "denied" in text or "not found" in text or "manifest unknown" in text:
        return f"the registry does not have it, or does not show it without a login ({text})"
    return text


def _ways_out(reference: str) -> str:
    return (
        "Ways out: name an image that the engine has with --base IMAGE; bring this one from a machine that can pull it "
        f"(`docker save {reference} | ssh THIS-HOST docker load`); set a registry mirror (`registry-mirrors` in "
        "/etc/docker/daemon.json); or, without GPUs, build the recipe `cpu`, which needs no registry."
    )
