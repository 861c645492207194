"""Images from one engine to another, without a registry: the layers that the other lacks, one after the other.

The source's `docker save` is read once; a layer that is wanted is written to the spool under the digest that it turned
out to have. Each goes to the target as an image of its own that ends with it: what is there stays there, so whoever is
interrupted goes on with the next layer, and a second tag of an image moves only what is new in it.
"""

import hashlib
import io
import json
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from jobs.units import format_size
from service.backends.docker.refusals import engine_errors, is_full
from service.backends.docker.spool import Spool
from service.backends.errors import Cancelled, EngineError, NoSpace

log = structlog.get_logger("images")
PARTIAL = "navarch.partial"
"""On images that hold layers of one that is on its way: the id of that one."""
_CHUNK = 1 << 20
_CONNECT_S, _SILENCE_S = 60, 900
"""An engine writes all of an image to its disk before it sends the first byte."""
_TELL_EVERY_S = 0.5
_SMALL = 8 << 20
"""No description of an image is larger."""


@dataclass
class Moved:
    """What a copy came to."""

    layers: int = 0
    bytes: int = 0
    seconds: float = 0.0
    """That went over the wire to the target, and how long that took."""


@dataclass
class _Saved:
    """What the source sent, beside layers."""

    files: dict[str, bytes] = field(default_factory=dict)

    @property
    def config(self) -> bytes:
        """The image's configuration, of which its id is the digest."""
        return self.files[json.loads(self.files["manifest.json"])[0]["Config"]]


class ImageCopy:
    """One copy under way. Iterating gives its progress, and ends when the image is there; `close` ends it soon."""

    def __init__(self, source: Any, target: Any, reference: str, spool: Spool, source_name: str) -> None:
        """`source`, `target`: the SDK's clients."""
        self._source, self._target, self._reference, self._spool = source, target, reference, spool
        self._from = source_name
        self._says = f"asks {source_name} for it"
        self._ended = threading.Event()
        self.moved = Moved()

    def __iter__(self) -> Iterator[str]:
        """Raises EngineError."""
        failed: list[BaseException] = []

        def work() -> None:
            try:
                with engine_errors(f"Image {self._reference} could not be copied from {self._from}"):
                    self._copy()
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=work, name=f"copy-{self._reference}", daemon=True)
        thread.start()
        try:
            while thread.is_alive():
                yield self._says
                thread.join(_TELL_EVERY_S)
        finally:
            self._ended.set()  # of nobody's interest any more, or done
        if failed and isinstance(failed[0], Cancelled):
            return
        if failed:
            raise failed[0]

    def close(self) -> None:
        self._ended.set()

    def _copy(self) -> None:
        image = self._source.inspect_image(self._reference)
        layers: list[str] = image["RootFS"]["Layers"]
        have = common(layers, self._chains())
        missing = layers[have:]
        with self._spool.using(missing) as arrived:
            saved = self._collect(set(missing) - self._spool.present())
            if not self._spool.present() >= set(missing):
                raise EngineError(f"{self._from} keeps {self._reference} in a form that has no plain layers")
            for count in range(have + 1, len(layers)):
                self._load(_partial(saved.config, layers[:count], image["Id"]), layers[:count], [], count)
                if layers[count - 1] not in layers[count:]:
                    arrived(layers[count - 1])
            self._load(saved.config, layers, [self._reference], len(layers) if missing else 0)
            if missing:
                arrived(layers[-1])
        for partial in self._target.images(all=True, filters={"label": f"{PARTIAL}={image['Id']}"}):
            self._target.remove_image(partial["Id"], force=True)
        rate = self.moved.bytes / 1e6 / max(self.moved.seconds, 1e-3)
        log.info("image copied", image=self._reference, layers=self.moved.layers, bytes=self.moved.bytes, mb_s=rate)

    def _chains(self) -> set[tuple[str, ...]]:
        """The layers of each image of the target, in their order."""
        ids = {image["Id"] for image in self._target.images(all=True)}
        return {tuple(self._target.inspect_image(found)["RootFS"].get("Layers") or ()) for found in ids}

    def _collect(self, wanted: set[str]) -> _Saved:
        """Puts wanted layers into the spool, and returns the small files of what the source saved."""
        saved, seen = _Saved(), 0
        response = self._source._get(
            self._source._url("/images/{0}/get", self._reference), stream=True, timeout=(_CONNECT_S, _SILENCE_S)
        )
        self._source._raise_for_status(response)
        stream = _Reader(response.iter_content(_CHUNK), self._check)
        with response, tarfile.open(fileobj=stream, mode="r|") as archive:
            for entry in archive:
                content = archive.extractfile(entry) if entry.isreg() else None
                if content is None:
                    continue
                seen += entry.size
                self._says = f"{format_size(seen)} read from {self._from}"
                if entry.size <= _SMALL:
                    data = content.read()
                    saved.files[entry.name] = data
                    content = io.BytesIO(data)
                elif _digest_in(entry.name) not in {None, *wanted}:
                    continue
                if wanted:
                    self._spool.take(content, wanted, self._check)
        return saved

    def _load(self, config: bytes, layers: Sequence[str], tags: Sequence[str], count: int) -> None:
        """Has the target make an image of these layers, of which it lacks the last one, or (`count` 0) none."""
        name = f"{hashlib.sha256(config).hexdigest()}.json"
        places = [f"{layer.removeprefix('sha256:')}/layer.tar" for layer in layers]
        manifest = [{"Config": name, "RepoTags": list(tags) or None, "Layers": places}]
        small = {name: config, "manifest.json": json.dumps(manifest).encode()}
        layer = self._spool.path(layers[-1]) if count else None
        begun = time.monotonic()
        says = f"layer {count} of {len(layers)}" if tags else f"layer {count}"

        def body() -> Iterator[bytes]:
            for chunk in _tar(small, places[-1], layer):
                self._check()
                self.moved.bytes += len(chunk)
                spent = self.moved.seconds + time.monotonic() - begun
                rate = self.moved.bytes / 1e6 / max(spent, 1e-3)
                self._says = f"{says}: {format_size(self.moved.bytes)} from {self._from}, {rate:.0f} MB/s"
                yield chunk

        response = self._target._post(
            self._target._url("/images/load"),
            data=body(),
            params={"quiet": True},
            headers={"Content-Type": "application/x-tar"},
            timeout=(_CONNECT_S, _SILENCE_S),
        )
        self._target._raise_for_status(response)
        for line in response.text.splitlines():
            said = json.loads(line) if line.startswith("{") else {}
            if "error" in said:
                raise NoSpace(said["error"]) if is_full(said["error"]) else EngineError(said["error"])
        self.moved.seconds += time.monotonic() - begun
        self.moved.layers += bool(layer)

    def _check(self) -> None:
        if self._ended.is_set():
            raise Cancelled


def common(layers: Sequence[str], chains: set[tuple[str, ...]]) -> int:
    """How many layers from the bottom up an engine has that has these chains of layers: upon others they count not."""
    return max((_same(layers, chain) for chain in chains), default=0)


def _same(layers: Sequence[str], chain: Sequence[str]) -> int:
    count = 0
    while count < min(len(layers), len(chain)) and layers[count] == chain[count]:
        count += 1
    return count


def _partial(config: bytes, layers: Sequence[str], whole: str) -> bytes:
    """The configuration of an image of the lower layers of another one."""
    known = json.loads(config)
    made = {key: known[key] for key in ("architecture", "os", "variant") if key in known}
    made["config"] = {"Labels": {PARTIAL: whole}}
    made["rootfs"] = {"type": "layers", "diff_ids": list(layers)}
    return json.dumps(made).encode()


def _tar(small: Mapping[str, bytes], name: str, layer: Path | None) -> Iterator[bytes]:
    """A tar of small files and of one that is read from disk as it is sent."""
    for file, content in small.items():
        yield _header(file, len(content)) + content + _padding(len(content))
    if layer is not None:
        size = layer.stat().st_size
        yield _header(name, size)
        with layer.open("rb") as opened:
            while chunk := opened.read(_CHUNK):
                yield chunk
        yield _padding(size)
    yield bytes(2 * tarfile.BLOCKSIZE)


def _header(name: str, size: int) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size = size
    return entry.tobuf(tarfile.GNU_FORMAT)


def _padding(size: int) -> bytes:
    return bytes(-size % tarfile.BLOCKSIZE)


def _digest_in(name: str) -> str | None:
    """The digest that a file of an OCI layout is named after."""
    return f"sha256:{name.removeprefix('blobs/sha256/')}" if name.startswith("blobs/sha256/") else None


class _Reader(io.RawIOBase):
    """An answer that comes in chunks, as a file."""

    def __init__(self, chunks: Iterator[bytes], check: Callable[[], None]) -> None:
        self._chunks, self._check, self._rest = chunks, check, b""

    def read(self, size: int = -1) -> bytes:
        self._check()
        parts, found = [self._rest], len(self._rest)
        while found < size:
            chunk = next(self._chunks, b"")
            if not chunk:
                break
            parts.append(chunk)
            found += len(chunk)
        data = b"".join(parts)
        self._rest = data[size:]
        return data[:size]
