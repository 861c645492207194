"""The images that Navarch built on an engine: find, list, show and remove them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import docker
from docker.errors import APIError, DockerException, ImageNotFound

from images.build import BASE_LABEL, RECIPE_LABEL, STAGE_LABEL, TARGET_LABEL, with_tag
from images.errors import ImageError
from images.recipes import builtin_recipes


@dataclass(frozen=True)
class ImageInfo:
    """One image on the engine."""

    image_id: str
    tags: tuple[str, ...]
    digests: tuple[str, ...]
    """Names by content, as a registry knows them; empty until pushed or pulled."""
    recipe: str
    """Empty for images that Navarch did not build."""
    base: str
    target: str
    """`training` (complete) or `system` (SSH and the entrypoint only)."""
    size: int
    created: str
    """RFC 3339."""


def resolve(client: docker.DockerClient, name: str) -> ImageInfo:
    """The image that `name` means: an image's tag, id or digest, or a recipe's name (its default tag).

    Raises ImageError (`image_missing`), which says how to get it.
    """
    recipe = builtin_recipes().get(name)
    candidates = [recipe.default_tag, name] if recipe else [name]
    for candidate in candidates:
        try:
            return _info(client.images.get(candidate).attrs)
        except ImageNotFound:
            continue
        except APIError as error:
            raise ImageError("image_missing", f"{name!r} is not the name of an image: {error.explanation}") from error
    if recipe:
        raise ImageError(
            "image_missing", f"The image {name!r} is not built yet.", f"Build it: navarch image build {name}"
        )
    near = ", ".join(sorted({tag for image in list_images(client) for tag in image.tags})) or "none"
    raise ImageError("image_missing", f"The engine has no image {name!r}.", f"Images that Navarch built: {near}.")


def list_images(client: docker.DockerClient) -> list[ImageInfo]:
    """Every image that Navarch built (or committed), newest first."""
    try:
        images = client.images.list(filters={"label": RECIPE_LABEL})
    except DockerException as error:
        raise ImageError("engine_unreachable", f"The Docker Engine can't list its images: {error}") from error
    found = [_info(image.attrs) for image in images if image.tags]
    return sorted(found, key=lambda image: image.created, reverse=True)


def remove(client: docker.DockerClient, name: str) -> ImageInfo:
    """Removes an image by one of its names and returns what it was.

    Refuses with ImageError (`image_in_use`) while a container, running or not, was made from it.
    """
    image = resolve(client, name)
    users = [
        str(container["Names"][0]).lstrip("/") if container.get("Names") else str(container["Id"])[:12]
        for container in client.api.containers(all=True)
        if container["ImageID"] == image.image_id
    ]
    if users:
        shown = ", ".join(users[:5]) + (f" and {len(users) - 5} more" if len(users) > 5 else "")
        raise ImageError(
            "image_in_use",
            f"The image {name!r} can't be removed: {shown} {'uses' if len(users) == 1 else 'use'} it.",
            "Remove the jobs or containers first.",
        )
    recipe = builtin_recipes().get(name)
    reference = recipe.default_tag if recipe and recipe.default_tag in image.tags else name
    try:
        client.images.remove(reference if with_tag(reference) in image.tags else image.image_id)
    except ImageNotFound:
        pass  # somebody else removed it meanwhile: it is gone, as asked
    except APIError as error:
        raise ImageError(
            "image_in_use", f"The engine refuses to remove the image {name!r}: {error.explanation}"
        ) from error
    return image


def prune(client: docker.DockerClient) -> int:
    """Removes what builds left on their way (unnamed stages and replaced images); returns the bytes freed.

    The next build then starts from the base again.
    """
    freed = 0
    for label in (STAGE_LABEL, RECIPE_LABEL):
        result: dict[str, Any] = client.images.prune(filters={"dangling": True, "label": label})
        freed += int(result.get("SpaceReclaimed") or 0)
    return freed


def remove_leftovers(client: docker.DockerClient) -> list[str]:
    """Removes containers of build steps that stopped without the engine tidying up; returns their ids.

    Such a container carries the label of a stage (finished images have it empty) and ran one of the build scripts.
    Running ones may belong to a build of somebody else, and are left alone.
    """
    removed = []
    for container in client.api.containers(all=True, filters={"label": STAGE_LABEL}):
        mid_build = container["Labels"].get(STAGE_LABEL) and not container["Labels"].get(RECIPE_LABEL)
        if mid_build and container["State"] in {"created", "exited", "dead"}:
            try:
                client.api.remove_container(container["Id"], v=True)
            except APIError:
                continue  # its build is alive after all and has just removed it
            removed.append(str(container["Id"]))
    return removed


def _info(attributes: dict[str, Any]) -> ImageInfo:
    labels = (attributes.get("Config") or {}).get("Labels") or {}
    return ImageInfo(
        image_id=str(attributes["Id"]),
        tags=tuple(sorted(attributes.get("RepoTags") or ())),
        digests=tuple(sorted(attributes.get("RepoDigests") or ())),
        recipe=labels.get(RECIPE_LABEL, ""),
        base=labels.get(BASE_LABEL, ""),
        target=labels.get(TARGET_LABEL, ""),
        size=int(attributes["Size"]),
        created=str(attributes["Created"]),
    )
