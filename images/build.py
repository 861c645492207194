"""Builds an image from a recipe on a Docker Engine, telling each step as it happens."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import docker
import requests
import urllib3
from docker.errors import APIError, DockerException, ImageNotFound
from docker.utils import parse_repository_tag

from images import network as networks
from images.base import ensure_base, ensure_image
from images.cancellation import Cancellation
from images.context import Context, make_context
from images.errors import ImageError
from images.failures import explain
from images.lock import hold
from images.network import Network
from images.recipes import Recipe, load_recipe, torch_index

Value = TypeVar("Value")
Turn = Callable[[], AbstractContextManager[object]]

RECIPE_LABEL = "navarch.recipe"
INPUTS_LABEL = "navarch.inputs"
BASE_LABEL = "navarch.built-from"
TARGET_LABEL = "navarch.target"
STAGE_LABEL = "navarch.stage"
"""Set on what a build leaves on its way; empty on finished images."""

_STEP = re.compile(r"Step (\d+)/(\d+) : (.*)", re.DOTALL)
_COLOUR = re.compile(r"\x1b\[[0-9;]*[a-zA-Z]")
_BOOKKEEPING = re.compile(r" ---> |Removing intermediate container |Successfully (built|tagged) ")
_TAIL = 25


@dataclass(frozen=True)
class BuildOptions:
    """What a build may be told beside its recipe."""

    tag: str = ""
    """Name of the image; empty: the recipe's own, such as navarch/cpu:latest."""
    base: str | None = None
    """Build on this image instead of the recipe's."""
    wheelhouse: Path | None = None
    """Folder of wheels to take packages from before any index is asked."""
    network: Network = field(default_factory=networks.of_this_machine)
    torch_index_url: str | None = None
    """Index of torch builds; None: PyTorch's own for the recipe's flavour."""
    rebuild: bool = False
    """Build all of it again, whatever the engine has."""
    turn: Turn = field(default=nullcontext, compare=False)
    """What is held while the engine builds, after everything was pulled: waiting for it may take long."""
    cancellation: Cancellation = field(default_factory=Cancellation, compare=False)
    """Ends the build from another thread; the client must be one of `images.engine.engine_for` with the same."""


@dataclass(frozen=True)
class Built:
    """A finished image."""

    tag: str
    image_id: str
    size: int
    seconds: float
    cached: bool
    """The image was there already, from the very same inputs."""


@dataclass(frozen=True)
class BuildEvent:
    """One thing that a build tells: a `note`, the start of a `step`, a line of `output`, or the image (`built`)."""

    kind: Literal["note", "step", "output", "built"]
    text: str
    step: int = 0
    total: int = 0
    built: Built | None = None


def build(
    client: docker.DockerClient, recipe: Recipe | str, options: BuildOptions | None = None, *, training: bool = True
) -> Iterator[BuildEvent]:
    """Builds `recipe` (or finds it built), yielding events; the last one is `built`. Raises ImageError.

    Closing the generator stops the build. `training=False` builds the system layer only: SSH and the entrypoint on
    the recipe's base, in a fraction of the time. Nothing is changed under the tag before a build has succeeded.
    """
    recipe = load_recipe(recipe) if isinstance(recipe, str) else recipe
    options = options or BuildOptions()
    recipe = recipe.with_base(options.base)
    started = time.monotonic()
    try:
        # Builds of one recipe share their layers: a second one finds them made when it has waited for the first.
        with (yield from _notes(hold(f"{recipe.name} on {client.api.base_url}", options.cancellation))):
            yield from _build(client, recipe, options, training, started)
    except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError) as error:
        options.cancellation.check()
        raise ImageError(
            "engine_unreachable",
            f"The Docker Engine went away during the build: {error}",
            "Start it, then build again: finished steps are kept.",
        ) from error
    except APIError as error:
        options.cancellation.check()
        raise explain(recipe, str(error.explanation or error), "", []) from error
    except DockerException as error:
        options.cancellation.check()
        raise ImageError(
            "engine_unreachable", f"The Docker Engine can't be used: {error}", "Is it running? Try `docker version`."
        ) from error


def finish(events: Iterator[BuildEvent]) -> Built:
    """Runs a build to its end without showing it."""
    built = None
    for event in events:
        built = event.built or built
    assert built is not None, "a build ends with its image, or raises"
    return built


def _build(
    client: docker.DockerClient, recipe: Recipe, options: BuildOptions, training: bool, started: float
) -> Iterator[BuildEvent]:
    target = "training" if training else "system"
    tag = with_tag(options.tag or (recipe.default_tag if training else recipe.system_tag))
    context = make_context(recipe, options.network, options.wheelhouse, training=training)
    base = yield from _notes(ensure_base(client, recipe, options.network.apt_mirror, options.cancellation))
    from_image = recipe.python != "distribution"
    python = recipe.python if from_image else base
    if from_image:
        yield from _notes(ensure_image(client, python, purpose="image that brings Python"))

    arguments = {
        "BASE_IMAGE": base,
        "PYTHON_IMAGE": python,
        "PYTHON_SOURCE": "image" if from_image else "distribution",
        "PACKAGES": " ".join(recipe.system_packages),
        "APT_MIRROR": options.network.apt_mirror,
    }
    if training:
        arguments.update(options.network.pip_arguments())
        index = options.torch_index_url
        arguments["TORCH_INDEX_URL"] = torch_index(recipe.torch) if index is None else index
    sources = {name: str(client.images.get(name).id) for name in (base, python)}
    inputs = _digest(context, arguments, target, sources)

    present = _present(client, tag)
    if present is not None and not options.rebuild and present["Config"].get("Labels", {}).get(INPUTS_LABEL) == inputs:
        yield _built_event(present, tag, started, cached=True)
        return
    labels = {
        RECIPE_LABEL: recipe.name,
        INPUTS_LABEL: inputs,
        BASE_LABEL: base,
        TARGET_LABEL: target,
        STAGE_LABEL: "",
    }
    yield BuildEvent("note", f"Building {tag} from {base}")
    with options.turn(), context.open_tar() as archive:
        stream = client.api.build(
            fileobj=archive,
            custom_context=True,
            tag=tag,
            target=target,
            buildargs=arguments,
            labels=labels,
            nocache=options.rebuild,
            rm=True,
            forcerm=True,
            decode=True,
        )
        yield from _follow(stream, recipe)
    image = _present(client, tag)
    if image is None:
        raise ImageError(
            "build_failed", f"{tag} is gone right after it was built: was it removed meanwhile?", "Build it again."
        )
    yield _built_event(image, tag, started, cached=False)


def _follow(stream: Generator[dict[str, Any], None, None], recipe: Recipe) -> Iterator[BuildEvent]:
    """The engine's messages as events. Raises ImageError with the last lines of the step that failed."""
    step, tail = "", list[str]()
    try:
        for message in stream:
            if "error" in message:
                raise explain(recipe, str(message["error"]), step, tail)
            text = str(message.get("stream", "")).strip("\n")
            if match := _STEP.match(text):
                step, tail = match[3].strip(), []
                yield BuildEvent("step", step, int(match[1]), int(match[2]))
                continue
            for line in filter(None, map(_plain, text.splitlines())):
                tail = [*tail[1 - _TAIL :], line]
                yield BuildEvent("output", line)
    finally:
        # Closing the connection makes the engine stop the build and remove its container.
        stream.close()


def _plain(line: str) -> str:
    """A line of output without colours; empty when it is the builder's own bookkeeping."""
    line = _COLOUR.sub("", line).rstrip()
    return "" if _BOOKKEEPING.match(line) else line


def _notes(lines: Generator[str, None, Value]) -> Generator[BuildEvent, None, Value]:
    """Passes lines on as notes; the value is what the generator of lines returned."""
    while True:
        try:
            line = next(lines)
        except StopIteration as stop:
            value: Value = stop.value
            return value
        yield BuildEvent("note", line)


def _present(client: docker.DockerClient, tag: str) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = client.images.get(tag).attrs
    except ImageNotFound:
        return None
    return found


def _built_event(image: dict[str, Any], tag: str, started: float, *, cached: bool) -> BuildEvent:
    built = Built(tag, str(image["Id"]), int(image["Size"]), time.monotonic() - started, cached)
    words = "is up to date" if cached else f"built in {built.seconds:.0f} s"
    return BuildEvent("built", f"{tag} {words}: {built.size / 1e9:.2f} GB, {built.image_id[7:19]}", built=built)


def _digest(context: Context, arguments: dict[str, str], target: str, sources: dict[str, str]) -> str:
    rest = json.dumps([arguments, target, sources], sort_keys=True)
    return hashlib.sha256(f"{context.digest} {rest}".encode()).hexdigest()


def with_tag(reference: str) -> str:
    """`name` as `name:latest`; other references as they are."""
    return reference if parse_repository_tag(reference)[1] else f"{reference}:latest"


def with_network(options: BuildOptions, **changes: Any) -> BuildOptions:
    """The options with some network settings replaced, such as `index_url=…` (None and empty values change nothing)."""
    return replace(options, network=replace(options.network, **{key: value for key, value in changes.items() if value}))
