"""Packs what a build needs, and nothing else, into a tar whose bytes depend on its content only."""

from __future__ import annotations

import hashlib
import io
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from images.errors import ImageError
from images.network import Network
from images.recipes import REQUIREMENTS_DIR, Recipe
from images.wheel import build_wheel

FILES_DIR = Path(__file__).parent
SYSTEM_FILES = (
    "Dockerfile",
    "export-python.sh",
    "fetch-packages.sh",
    "install-system.sh",
    "navarch-entrypoint",
    "navarch-supervise",
    "sshd_config",
)
TRAINING_FILES = ("install-package.sh", "install-training.sh")
# Every folder that the Dockerfile copies must be there, even when it has nothing to give.
FOLDERS = ("network", "training-wheel", "wheelhouse")
_IN_MEMORY = 16 << 20


@dataclass(frozen=True)
class Context:
    """The files of one build: content by name, and wheels that are read from disk as they are packed."""

    contents: dict[str, bytes]
    wheels: tuple[Path, ...]

    @property
    def digest(self) -> str:
        """sha256 over names and contents."""
        total = hashlib.sha256()
        for name, content in sorted(self.contents.items()):
            total.update(f"{name} {hashlib.sha256(content).hexdigest()}\n".encode())
        for wheel in self.wheels:
            with wheel.open("rb") as file:
                total.update(f"{wheel.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
        return total.hexdigest()

    def open_tar(self) -> IO[bytes]:
        """The tar, at its start; small ones stay in memory. Close it when done."""
        file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115 - the caller closes it
        with _writer(file) as archive:
            for folder in FOLDERS:
                archive.addfile(_entry(folder, 0, directory=True))
            for name, content in sorted(self.contents.items()):
                archive.addfile(_entry(name, len(content)), io.BytesIO(content))
            for wheel in self.wheels:
                with wheel.open("rb") as source:
                    archive.addfile(_entry(f"wheelhouse/{wheel.name}", wheel.stat().st_size), source)
        file.seek(0)
        return file


def make_context(recipe: Recipe, network: Network, wheelhouse: Path | None, *, training: bool) -> Context:
    """The context of a build; without `training` it serves the target `system` only."""
    contents = {name: (FILES_DIR / name).read_bytes() for name in SYSTEM_FILES}
    if pem := network.ca_pem():
        contents["network/ca-bundle.pem"] = pem
    contents["keep.tar"] = _tar(network.kept_files())
    if not training:
        return Context(contents, ())
    contents.update({name: (FILES_DIR / name).read_bytes() for name in TRAINING_FILES})
    contents["requirements.txt"] = (REQUIREMENTS_DIR / "training.txt").read_bytes()
    contents["requirements-no-deps.txt"] = (REQUIREMENTS_DIR / "no-deps.txt").read_bytes()
    contents["torch.txt"] = (REQUIREMENTS_DIR / f"torch-{recipe.torch}.txt").read_bytes()
    name, wheel = build_wheel()
    contents[f"training-wheel/{name}"] = wheel
    return Context(contents, tuple(_wheels(wheelhouse)))


def _wheels(folder: Path | None) -> Iterator[Path]:
    if folder is None:
        return
    if not folder.is_dir():
        raise ImageError(
            "bad_wheelhouse", f"The wheelhouse {folder} is not a folder.", "Fill one with `pip download -d DIR …`."
        )
    yield from sorted(path for path in folder.iterdir() if is_wheel(path.name))


def is_wheel(name: str) -> bool:
    """Whether pip would take a file of this name from a folder."""
    return name.endswith((".whl", ".tar.gz"))


def _tar(contents: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with _writer(buffer) as archive:
        for name, content in sorted(contents.items()):
            archive.addfile(_entry(name, len(content)), io.BytesIO(content))
    return buffer.getvalue()


def _writer(file: IO[bytes]) -> tarfile.TarFile:
    return tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT)


def _entry(name: str, size: int, *, directory: bool = False) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = tarfile.DIRTYPE if directory else tarfile.REGTYPE
    info.mode = 0o755 if directory or name.endswith((".sh", "-entrypoint", "-supervise")) else 0o644
    info.size = size
    return info
