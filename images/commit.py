"""Keeps what people changed in a container as an image: one layer, without keys, tokens and Navarch's own files.

The container is paused for the moment in which the engine copies its changes; nothing in it is touched. Deleting
secrets in it would rob the person of them, and deleting them in a later layer would leave them in the earlier one. So
the copied layer itself is read, written anew without them, and loaded as the last layer of an image that has the
settings of the container's own image. Only that layer is new: all others are those that the engine has already.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import docker
from docker.errors import APIError, ImageNotFound, NotFound
from docker.models.containers import Container
from docker.utils import parse_repository_tag

from images.build import BASE_LABEL, INPUTS_LABEL, RECIPE_LABEL, STAGE_LABEL, TARGET_LABEL, with_tag
from images.errors import ImageError

COMMIT_RECIPE = "commit"
COPY_LABEL = "navarch.copy"
"""DEPLOYMENT/PROCESS, on the whole copy of a container that an image is being made of."""
ENVIRONMENT = "etc/environment"
_OURS = re.compile(
    r"run/navarch(/.*)?|etc/ssh/(ssh_host_.*|navarch.*)|etc/profile\.d/navarch\.sh|var/log/sshd\.log|run/sshd\.pid"
)
"""What Navarch puts into a container."""
_PERSONAL = re.compile(
    r"(.*/)?(\.ssh(/.*)?|\.[a-z_]*_history|\.netrc|\.git-credentials|\.pypirc|\.aws/credentials|\.docker/config\.json"
    r"|\.kaggle/kaggle\.json|\.huggingface/token|\.cache/huggingface/(token|stored_tokens)|\.config/gh/hosts\.yml"
    r"|\.lesshst|\.viminfo|\.wget-hsts|\.Xauthority|id_(rsa|dsa|ecdsa|ed25519)(\.pub)?|\.vscode-server/data(/.*)?)"
)
"""Where keys, tokens and what somebody typed gather."""
_PRIVATE_KEY = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----")
_TOKENS = re.compile(
    rb"\b(hf_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{50,}|AKIA[0-9A-Z]{16}|nav_[\w-]{40,})"
)
_OF_PACKAGES = re.compile(r"(.*/)?(site|dist)-packages/.*")
"""Packages bring keys for their own tests along."""
_SEARCHED = 4 << 20
"""Files up to this size are looked through."""


@dataclass
class Committed:
    """An image that was made of a container."""

    id: str
    tag: str
    size: int = 0
    """Bytes of the new layer, unpacked."""
    left_out: list[str] = field(default_factory=list)
    """Files that are not in it, as they held what is secret or personal."""
    not_included: list[str] = field(default_factory=list)
    """Places of the container that are mounts: they are no part of any image."""


def forget_copies(client: docker.DockerClient, deployment: str, process: str) -> None:
    """Removes what commits of earlier processes left when they were cut off: all that was in the containers."""
    for found in _api(client).images(all=True, filters={"label": COPY_LABEL}):
        owner, _, maker = str((found.get("Labels") or {}).get(COPY_LABEL)).partition("/")
        if owner == deployment and maker != process:
            _forget(client, str(found["Id"]))


def commit(
    client: docker.DockerClient,
    container_id: str,
    tag: str,
    *,
    mark: str = "",
    secrets: Collection[str] = (),
    labels: Mapping[str, str] | None = None,
) -> Committed:
    """Makes an image `tag` of a container, running or not. Files with one of the `secrets` in them stay out.

    `mark`: whose copy it is meanwhile, for `forget_copies`.

    Raises ImageError (`container_missing`, `commit_failed`).
    """
    try:
        container = client.containers.get(container_id)
    except NotFound as error:
        raise ImageError("container_missing", f"The engine has no container {container_id!r}.") from error
    copy, api = "", _api(client)
    try:
        copy = str(api.commit(str(container.id), pause=True, conf={"Labels": {COPY_LABEL: mark}})["Id"])
        with tempfile.TemporaryDirectory(prefix="navarch-commit-") as folder:
            never = [secret.encode() for secret in secrets if secret]
            made = _filtered(client, container, copy, tag, Path(folder), never, labels or {})
    except (APIError, OSError, tarfile.TarError) as error:
        reason = getattr(error, "explanation", None) or error
        raise ImageError(
            "commit_failed", f"The container {container.name} could not be made an image: {reason}"
        ) from error
    finally:
        if copy:
            _forget(client, copy)
    return made


def preview(client: docker.DockerClient, container_id: str) -> Committed:
    """What a commit would add at most, before anything is left out of it. Raises ImageError `container_missing`."""
    found = _api(client).containers(all=True, size=True, filters={"id": container_id})
    if not found:
        raise ImageError("container_missing", f"The engine has no container {container_id!r}.")
    mounts = sorted(str(mount["Destination"]) for mount in found[0].get("Mounts") or ())
    return Committed("", "", int(found[0].get("SizeRw") or 0), [], mounts)


def push(client: docker.DockerClient, name: str, destination: str = "") -> Iterator[str]:
    """Pushes an image (as `destination`, such as registry:5000/team/cpu:1), yielding lines; the last is its digest."""
    reference = with_tag(destination or name)
    try:
        image = client.images.get(name)
    except ImageNotFound as error:
        raise ImageError("image_missing", f"The engine has no image {name!r}.") from error
    repository, tag = parse_repository_tag(reference)
    if destination:
        image.tag(repository, tag)
    digest = ""
    for event in client.api.push(repository, tag=tag, stream=True, decode=True):
        if "error" in event:
            raise ImageError(
                "push_failed",
                f"{reference} could not be pushed: {event['error']}",
                "Begin the tag with the registry's name; an admin logs in: `navarch registry login ADDRESS`.",
            )
        digest = str((event.get("aux") or {}).get("Digest") or digest)
        if event.get("status") in {"Pushed", "Layer already exists"}:
            yield f"{event['id']}: {event['status']}"
    yield f"{repository}@{digest}"


def _filtered(
    client: docker.DockerClient,
    container: Container,
    copy: str,
    tag: str,
    folder: Path,
    secrets: list[bytes],
    labels: Mapping[str, str],
) -> Committed:
    layer, config = _last_layer(client, copy, folder)
    left_out: list[str] = []
    clean = folder / "layer.tar"
    size = _write_clean(layer, clean, secrets, left_out)
    base = client.images.get(container.attrs["Image"])
    settings = {**base.attrs["Config"], "Image": ""}
    settings["Labels"] = {**(settings.get("Labels") or {}), **_labels(base), **labels}
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    history = (config.get("history") or [])[:-1]
    made = {
        "architecture": config["architecture"],
        "os": config["os"],
        "created": now,
        "config": settings,
        "history": [*history, {"created": now, "created_by": "navarch image commit"}],
        "rootfs": {"type": "layers", "diff_ids": [*config["rootfs"]["diff_ids"][:-1], _digest(clean)]},
    }
    identifier = _load(client, made, clean, folder)
    repository, _, name = with_tag(tag).rpartition(":")
    client.images.get(identifier).tag(repository, name)
    mounts = sorted(str(mount["Destination"]) for mount in container.attrs.get("Mounts") or ())
    return Committed(identifier, with_tag(tag), size, left_out, mounts)


def _last_layer(client: docker.DockerClient, image: str, folder: Path) -> tuple[Path, dict[str, Any]]:
    """The copy's own layer, as a file, and its settings. An engine gives whole images only: the rest is skipped."""
    wanted = _api(client).inspect_image(image)["RootFS"]["Layers"][-1]
    config_name = f"{image.removeprefix('sha256:')}.json"
    layer: Path | None = None
    config: dict[str, Any] | None = None
    stream = _Readable(client.api.get_image(image))
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        for entry in archive:
            content = archive.extractfile(entry) if entry.isfile() else None
            if content is None:
                continue
            if entry.name == config_name or entry.name.endswith(config_name.removesuffix(".json")):
                config = json.load(content)
            elif entry.name.endswith(".tar") and layer is None:
                spool, digest = folder / "spool.tar", hashlib.sha256()
                with spool.open("wb") as out:
                    while block := content.read(1 << 20):
                        digest.update(block)
                        out.write(block)
                if f"sha256:{digest.hexdigest()}" == wanted:
                    layer = spool.rename(folder / "whole.tar")
    if layer is None or config is None:
        raise OSError("the engine gave no such layer")
    return layer, config


def _write_clean(source: Path, target: Path, secrets: list[bytes], left_out: list[str]) -> int:
    """Writes the layer anew without what stays out; bytes of what it holds."""
    size, gone = 0, set[str]()
    with tarfile.open(source) as old, tarfile.open(target, mode="w", format=tarfile.PAX_FORMAT) as new:
        for entry in old:
            name = PurePosixPath(entry.name).as_posix().removeprefix("./")
            content = old.extractfile(entry) if entry.isfile() else None
            if _stays_out(name) or (entry.islnk() and entry.linkname in gone):
                gone.add(entry.name)
                if content is not None and not _OURS.fullmatch(name):
                    left_out.append(f"/{name}")
                continue
            if name == ENVIRONMENT and content is not None:
                text = _without_ours(content.read())
                entry.size = len(text)
                content = io.BytesIO(text)
            elif content is not None and entry.size <= _SEARCHED:
                data = content.read()
                if _holds_secret(name, data, secrets):
                    gone.add(entry.name)
                    left_out.append(f"/{name}")
                    continue
                content = io.BytesIO(data)
            size += entry.size
            new.addfile(entry, content)
    return size


def _stays_out(name: str) -> bool:
    if _OURS.fullmatch(name):
        return True
    return _PERSONAL.fullmatch(name) is not None and not _OF_PACKAGES.fullmatch(name)


def _holds_secret(name: str, data: bytes, secrets: list[bytes]) -> bool:
    if any(secret in data for secret in secrets) or _TOKENS.search(data):
        return True
    return _PRIVATE_KEY.search(data) is not None and not _OF_PACKAGES.fullmatch(name)


def _without_ours(content: bytes) -> bytes:
    before, _, rest = content.partition(b"# navarch begin\n")
    return before + rest.partition(b"# navarch end\n")[2]


def _labels(base: Any) -> dict[str, str]:
    own = base.labels or {}
    return {
        RECIPE_LABEL: COMMIT_RECIPE,
        BASE_LABEL: (base.tags or [str(base.id)])[0],
        TARGET_LABEL: own.get(TARGET_LABEL, ""),
        INPUTS_LABEL: "",
        STAGE_LABEL: "",
    }


def _load(client: docker.DockerClient, config: dict[str, Any], layer: Path, folder: Path) -> str:
    """Gives the engine the image; of the layers that it has already only the names are needed."""
    text = json.dumps(config).encode()
    identifier = hashlib.sha256(text).hexdigest()
    count = len(config["rootfs"]["diff_ids"])
    names = [f"{number}/layer.tar" for number in range(count)]
    manifest = [{"Config": f"{identifier}.json", "RepoTags": None, "Layers": names}]
    bundle = folder / "image.tar"
    with tarfile.open(bundle, mode="w") as archive:
        for name, content in ((f"{identifier}.json", text), ("manifest.json", json.dumps(manifest).encode())):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        archive.add(layer, names[-1])
    with bundle.open("rb") as opened:
        for _ in _api(client).load_image(opened):
            pass
    _api(client).inspect_image(f"sha256:{identifier}")
    return f"sha256:{identifier}"


def _api(client: docker.DockerClient) -> Any:
    """The SDK's low-level client, which has no useful types."""
    return client.api


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return f"sha256:{hashlib.file_digest(opened, 'sha256').hexdigest()}"


def _forget(client: docker.DockerClient, image: str) -> None:
    """The copy with everything in it goes at once."""
    try:
        client.api.remove_image(image, force=True)
    except (APIError, ImageNotFound):
        return


class _Readable(io.RawIOBase):
    """Blocks of bytes as a file to read from."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks, self._rest = iter(blocks), b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            block = next(self._blocks, None)
            if block is None:
                return 0
            self._rest = block
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count
