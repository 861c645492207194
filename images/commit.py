"""Keeps what people changed in a container as an image, without their keys and tokens; pushes images."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator

import docker
from docker.errors import APIError, BuildError, ImageNotFound, NotFound
from docker.models.containers import Container

from images.build import BASE_LABEL, INPUTS_LABEL, RECIPE_LABEL, STAGE_LABEL, TARGET_LABEL, with_tag
from images.errors import ImageError

COMMIT_RECIPE = "commit"
ENTRYPOINT = '["tini", "--", "/usr/local/bin/navarch-entrypoint"]'
BARRIER = "/run/navarch/go"
ENVIRONMENT = "/etc/environment"
STALE = b"stale\n"
"""Content of a barrier file that releases nobody: containers of the new image wait for their own."""

SECRET_FILES = (
    "/etc/ssh/navarch-environment.conf",
    "/etc/ssh/navarch_authorized_keys",
    *(f"/etc/ssh/ssh_host_{kind}_key{end}" for kind in ("ed25519", "ecdsa", "rsa", "dsa") for end in ("", ".pub")),
    *(f"/root/.ssh/{name}" for name in ("authorized_keys", "config", "id_dsa", "id_ecdsa", "id_ed25519", "id_rsa")),
    "/root/.aws/credentials",
    "/root/.bash_history",
    "/root/.cache/huggingface/stored_tokens",
    "/root/.cache/huggingface/token",
    "/root/.docker/config.json",
    "/root/.git-credentials",
    "/root/.huggingface/token",
    "/root/.kaggle/kaggle.json",
    "/root/.netrc",
    "/root/.pypirc",
    "/root/.python_history",
    "/run/navarch/authorized_keys",
    "/run/navarch/env",
    "/run/navarch/hostfile",
    "/run/navarch/run.yaml",
    "/run/navarch/ssh_host_ed25519_key",
    "/run/navarch/ssh_host_ed25519_key.pub",
    "/var/log/sshd.log",
)


Files = dict[str, tuple[tarfile.TarInfo, bytes]]
"""By path: mode and owner, and content."""


def commit(client: docker.DockerClient, container_id: str, tag: str) -> str:
    """Makes an image `tag` of a container, running or not, and returns its id.

    Keys, tokens and job files are emptied while the engine takes the copy and put back afterwards; the container's
    own environment, labels and command are not passed on. Raises ImageError (`container_missing`, `commit_failed`).
    """
    try:
        container = client.containers.get(container_id)
    except NotFound as error:
        raise ImageError("container_missing", f"The engine has no container {container_id!r}.") from error
    changes = _changes(client, container)
    found = _read(container, (*SECRET_FILES, BARRIER, ENVIRONMENT))
    scrubbed = {path: (entry, _scrubbed(path, content)) for path, (entry, content) in found.items()}
    try:
        _write(container, scrubbed | _names_to_unset(changes))
        copy = container.commit(pause=True, changes=changes)
        # The copy's own record still tells the container's environment; an image built on it does not.
        dockerfile = "\n".join([f"FROM {copy.id}", *_labels(client, container)])
        image, _ = client.images.build(
            fileobj=io.BytesIO(dockerfile.encode()), tag=with_tag(tag), rm=True, forcerm=True
        )
    except (APIError, BuildError) as error:
        reason = getattr(error, "explanation", None) or error
        raise ImageError(
            "commit_failed", f"The container {container.name} could not be made an image: {reason}"
        ) from error
    finally:
        _write(container, found)
    return str(image.id)


def push(
    client: docker.DockerClient, name: str, destination: str = "", auth: dict[str, str] | None = None
) -> Iterator[str]:
    """Pushes an image (as `destination`, such as registry:5000/team/cpu:1), yielding lines; the last is its digest."""
    reference = with_tag(destination or name)
    try:
        image = client.images.get(name)
    except ImageNotFound as error:
        raise ImageError("image_missing", f"The engine has no image {name!r}.") from error
    repository, _, tag = reference.rpartition(":")
    if destination:
        image.tag(repository, tag)
    digest = ""
    for event in client.api.push(repository, tag=tag, auth_config=auth, stream=True, decode=True):
        if "error" in event:
            raise ImageError(
                "push_failed",
                f"{reference} could not be pushed: {event['error']}",
                "Log in to the registry (`docker login`), and begin the tag with its name.",
            )
        digest = str((event.get("aux") or {}).get("Digest") or digest)
        if event.get("status") in {"Pushed", "Layer already exists"}:
            yield f"{event['id']}: {event['status']}"
    yield f"{repository}@{digest}"


def _changes(client: docker.DockerClient, container: Container) -> list[str]:
    """Dockerfile lines that give the new image its own identity instead of the container's."""
    config = container.attrs["Config"]
    image = client.images.get(container.attrs["Image"])
    original = dict(item.partition("=")[::2] for item in image.attrs["Config"].get("Env") or ())
    lines = ["CMD []"]
    if "navarch-entrypoint" in " ".join(config.get("Entrypoint") or ()):
        lines.insert(0, f"ENTRYPOINT {ENTRYPOINT}")
    for item in config.get("Env") or ():
        key, _, value = item.partition("=")
        if original.get(key) != value:
            lines.append(f"ENV {key}={_quoted(original.get(key, ''))}")
    return lines


def _labels(client: docker.DockerClient, container: Container) -> list[str]:
    """Dockerfile lines: what the container was part of is emptied, what the image is comes in."""
    image = client.images.get(container.attrs["Image"])
    labels = dict.fromkeys((label for label in container.labels if label.startswith("navarch.")), "")
    labels |= {
        RECIPE_LABEL: COMMIT_RECIPE,
        BASE_LABEL: (image.tags or [str(image.id)])[0],
        TARGET_LABEL: (image.labels or {}).get(TARGET_LABEL, ""),
        INPUTS_LABEL: "",
        STAGE_LABEL: "",
    }
    return [f"LABEL {key}={_quoted(value)}" for key, value in sorted(labels.items())]


def _quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$") + '"'


def _names_to_unset(changes: list[str]) -> Files:
    """The engine can empty variables of an image but not remove them: the entrypoint unsets those listed here."""
    empty = [line.removeprefix("ENV ").removesuffix('=""') for line in changes if line.startswith("ENV ")]
    names = [name for name in empty if "=" not in name]
    return {"/run/navarch/unset": (tarfile.TarInfo(), "".join(f"{name}\n" for name in names).encode())}


def _scrubbed(path: str, content: bytes) -> bytes:
    """What an image may hold in this file's place (files can be emptied from outside, not removed)."""
    if path == BARRIER:
        return STALE
    if path == ENVIRONMENT:
        before, _, rest = content.partition(b"# navarch begin\n")
        return before + rest.partition(b"# navarch end\n")[2]
    return b""


def _read(container: Container, paths: tuple[str, ...]) -> Files:
    """Those of the paths that are files of the container itself (what is mounted into it never gets into an image)."""
    mounts = [mount["Destination"].rstrip("/") for mount in container.attrs.get("Mounts") or ()]
    files: Files = {}
    for path in paths:
        if any(path == mount or path.startswith(f"{mount}/") for mount in mounts):
            continue
        try:
            stream, _ = container.get_archive(path)
        except NotFound:
            continue
        with tarfile.open(fileobj=io.BytesIO(b"".join(stream))) as archive:
            entry = archive.next()
            source = archive.extractfile(entry) if entry is not None and entry.isfile() else None
            if entry is not None and source is not None:
                files[path] = (entry, source.read())
    return files


def _write(container: Container, files: Files) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path, (entry, content) in files.items():
            info = tarfile.TarInfo(path.lstrip("/"))
            info.mode, info.uid, info.gid, info.mtime = entry.mode, entry.uid, entry.gid, entry.mtime
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    if files and not container.put_archive("/", buffer.getvalue()):
        raise ImageError("commit_failed", f"Files of the container {container.name} could not be written.")
