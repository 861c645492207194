"""Brings the image that a recipe builds on: from the engine, a registry, or the distribution's packages."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import docker
from docker.errors import APIError, DockerException, ImageNotFound
from docker.utils import parse_repository_tag

from images.cancellation import Cancellation
from images.errors import ImageError
from images.lock import hold
from images.progress import follow
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


def ensure_base(
    client: docker.DockerClient, recipe: Recipe, apt_mirror: str, cancellation: Cancellation
) -> Generator[str, None, str]:
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
        cancellation.check()
        yield f"{error.message}; making a base from the distribution's packages instead"
        with (yield from hold(f"{made} on {client.api.base_url}", cancellation)):
            try:
                client.images.get(made)  # another build has made it meanwhile
            except ImageNotFound:
                yield from make_base(client, recipe.debootstrap, made, apt_mirror, cancellation, after=error)
        return made


def make_base(
    client: docker.DockerClient,
    release: str,
    tag: str,
    mirror: str,
    cancellation: Cancellation,
    after: ImageError | None = None,
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
    with _scratch() as folder:
        root = folder / "root"
        command = [program, f"--variant={DEBOOTSTRAP_VARIANT}", release, str(root), *([mirror] if mirror else [])]
        yield from _debootstrap(command, release, cancellation)
        for path in ("var/cache/apt/archives", "var/lib/apt/lists"):
            for file in (root / path).glob("*"):
                if file.is_file():
                    file.unlink()
        (root / "etc/resolv.conf").unlink(missing_ok=True)
        (root / "etc/hostname").unlink(missing_ok=True)
        archive = folder / "root.tar"
        pack = ["tar", "--numeric-owner", "--one-file-system", "-C", str(root), "-cf", str(archive), "."]
        with subprocess.Popen(pack, stderr=subprocess.PIPE, text=True) as packing, cancellation.ending(packing.kill):
            _, said = packing.communicate()
        cancellation.check()
        if packing.returncode != 0:
            raise ImageError(
                "base_unavailable", f"The new base could not be packed: {said.strip()}", "Is the disk full?"
            )
        yield f"Importing it as {tag}"
        repository, name = parse_repository_tag(tag)
        with archive.open("rb") as content:
            client.api.import_image_from_data(
                content, repository=repository, tag=name, changes=[f"LABEL {BASE_LABEL}={release}", 'CMD ["bash"]']
            )


@contextmanager
def _scratch() -> Iterator[Path]:
    """A folder that goes afterwards, and first whatever a program that was broken off left mounted in it."""
    with tempfile.TemporaryDirectory(prefix="navarch-base-") as folder:
        try:
            yield Path(folder)
        finally:
            mounted = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
            for place in reversed([place for place in mounted if place.startswith(f"{folder}/")]):
                subprocess.run(["umount", "--lazy", place], check=False, capture_output=True)


def _debootstrap(command: list[str], release: str, cancellation: Cancellation) -> Iterator[str]:
    last: list[str] = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:

        def end() -> None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)  # a shell script, and what it runs

        assert process.stdout is not None
        try:
            with cancellation.ending(end):
                for line in process.stdout:
                    last = [*last[-7:], line.rstrip()]
                    if not line.startswith(
                        ("I: Retrieving", "I: Validating", "I: Extracting", "I: Unpacking", "I: Configuring")
                    ):
                        yield line.rstrip()
        except GeneratorExit:
            end()
            raise
    cancellation.check()
    if process.returncode != 0:
        raise ImageError(
            "base_unavailable",
            f"debootstrap of {release} failed: " + " | ".join(last),
            "It needs root and a mirror that answers (--apt-mirror). Or name a base that the engine has with --base.",
        )


def _pull(client: docker.DockerClient, reference: str) -> Iterator[str]:
    """How far it is, every few seconds."""
    events = client.api.pull(reference, tag=None if _has_tag(reference) else "latest", stream=True, decode=True)
    for line, event in follow(events, f"Pulling {reference}"):
        if "error" in event:
            raise APIError(str(event["error"]))
        if line:
            yield line


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
