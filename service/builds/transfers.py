"""Images on their way: pushed to and pulled from registries, tagged, written to and read from files."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import docker
from docker.errors import APIError, ImageNotFound
from docker.utils import parse_repository_tag

from images.build import with_tag
from images.cancellation import Cancellation
from images.commit import push
from images.engine import engine_for
from images.errors import ImageError
from service.access.mounts import MountRules
from service.access.principals import Principal, check_admin
from service.access.registries import Registries, check_address
from service.builds.names import check_name, check_tag
from service.contract.errors import Problem
from service.settings import Settings
from service.store.database import Database
from service.store.events import record

_TRIES, _PAUSE_S = 3, 2.0
_LASTING = ("denied", "unauthorized", "authentication required", "no basic auth", "invalid reference", "not found",
            "manifest unknown")  # fmt: skip
"""What a registry says that it would say again."""
Value = TypeVar("Value")


class Transfers:
    """Everything here waits for the local engine, which may take as long as an image is large."""

    def __init__(self, database: Database, settings: Settings, registries: Registries) -> None:
        self._database, self._settings, self._registries = database, settings, registries
        self._rules = MountRules.of(settings)

    def login(self, address: str, username: str, password: str, actor: Principal) -> None:
        """Tries a login by the engine, which is what pulls and pushes, and keeps it. Raises Problem, ImageError."""
        check_admin(actor, "log in to registries")
        check_address(address)
        with self._engine() as client:
            try:
                client.login(username, password, registry=address, reauth=True)
            except APIError as error:
                said = f"{address} does not let {username} in: {error.explanation or error}"
                hint = "See that address, name and password are right."
                raise Problem("registry_refused", _sentence(said), hint) from error
        self._registries.login(address, username, password, actor)

    def push(self, image: str, to: str, actor: Principal) -> str:
        """Pushes an image; its digest there. What fails leaves no tag behind. Raises ImageError."""
        if to:
            check_tag(to)
        with self._engine() as client:
            if to:
                check_name(client, to, actor)
            new = bool(to) and not _has(client, to)
            try:
                digest = _again("push_failed", lambda: [*push(client, image, to)][-1])
            except ImageError:
                if new and _has(client, to):
                    client.images.remove(to, noprune=True)
                raise
        self._note("image.pushed", image, f"{actor.name} pushed {digest}", actor)
        return digest

    def pull(self, reference: str, actor: Principal) -> str:
        """Fetches an image, also one that is there in an older state; its id. Raises ImageError."""
        check_tag(reference)
        with self._engine() as client:
            found = _again("pull_failed", lambda: _pull(client, reference))
        self._note("image.pulled", reference, f"{actor.name} pulled {reference}", actor)
        return found

    def tag(self, image: str, tag: str, actor: Principal) -> None:
        """Gives an image another name. Raises ImageError `image_missing`."""
        check_tag(tag)
        repository, name = parse_repository_tag(with_tag(tag))
        with self._engine() as client:
            check_name(client, tag, actor)
            _get(client, image).tag(repository, name)
        self._note("image.tagged", image, f"{actor.name} tagged {image} as {tag}", actor)

    def export(self, image: str) -> Iterator[bytes]:
        """A tar file with the image, in blocks; raises before the first one when there is none."""
        engine = self._engine()
        client = engine.__enter__()
        try:
            blocks = _get(client, image).save(named=True)
        except BaseException:
            engine.__exit__(None, None, None)
            raise

        def given() -> Iterator[bytes]:
            try:
                yield from blocks
            finally:
                engine.__exit__(None, None, None)

        return given()

    def import_file(self, path: str, actor: Principal) -> list[str]:
        """Loads the images of a file that `export`, or `docker save`, wrote; their names. Raises Problem."""
        with (found := self._rules.open_given(path, "The file", actor)).opened, self._engine() as client:
            if found.opened.is_dir:
                raise Problem("invalid_request", f"{path} is a folder.", "Name the .tar file.")
            with open(found.opened.readable(), "rb", closefd=False) as file:
                try:
                    loaded = client.images.load(file)
                except (APIError, docker.errors.ImageLoadError) as error:
                    said = f"{path} could not be loaded: {getattr(error, 'explanation', None) or error}"
                    raise Problem("import_failed", _sentence(said), "It must be what `docker save` writes.") from error
        names = [(image.tags or [str(image.id)])[0] for image in loaded]
        for name in names:
            self._note("image.imported", name, f"{actor.name} imported {name} from {path}", actor)
        return names

    @contextmanager
    def _engine(self) -> Iterator[docker.DockerClient]:
        """The local engine, which knows the logins. Raises ImageError."""
        with engine_for(self._settings.engine_url, Cancellation()) as client:
            self._registries.tell(client.api)
            yield client

    def _note(self, kind: str, image: str, said: str, actor: Principal) -> None:
        with self._database.write() as session:
            record(session, kind, f"image/{image}", said, actor=actor.id)


def _again(code: str, act: Callable[[], Value]) -> Value:
    """Tries it up to three times, while what goes wrong may pass."""
    for left in reversed(range(_TRIES)):
        try:
            return act()
        except ImageError as error:
            if error.code != code or any(word in error.message for word in _LASTING):
                raise
            if not left:
                raise ImageError(code, f"{error.message} (tried {_TRIES} times)", error.hint) from error
        time.sleep(_PAUSE_S)
    raise AssertionError("unreachable")


def _pull(client: docker.DockerClient, reference: str) -> str:
    api: Any = client.api
    repository, tag = parse_repository_tag(with_tag(reference))
    try:
        for event in api.pull(repository, tag=tag, stream=True, decode=True):
            if "error" in event:
                raise _refused(reference, str(event["error"]))
    except APIError as error:
        raise _refused(reference, str(error.explanation or error)) from error
    return str(client.images.get(with_tag(reference)).id)


def _refused(reference: str, said: str) -> ImageError:
    hint = "See that it is there, and that an admin has logged in to its registry: `navarch registry login ADDRESS`."
    return ImageError("pull_failed", f"{reference} could not be pulled: {said}", hint)


def _get(client: docker.DockerClient, name: str) -> Any:
    try:
        return client.images.get(name)
    except ImageNotFound as error:
        raise ImageError("image_missing", f"The engine has no image {name!r}.") from error


def _has(client: docker.DockerClient, name: str) -> bool:
    try:
        client.images.get(name)
    except ImageNotFound:
        return False
    return True


def _sentence(text: str) -> str:
    return text.rstrip(". \n") + "."
