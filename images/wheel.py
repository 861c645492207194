"""Packs the training package into a wheel, the only part of Navarch that goes into an image."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import io
import zipfile
from importlib import metadata
from pathlib import Path

from images.errors import ImageError

_DIST = "navarch_training"
_SKIPPED = {"__pycache__"}


def package_dir() -> Path:
    """Where the `training` package lies on this machine (a source tree or an installation)."""
    spec = importlib.util.find_spec("training")
    if spec is None or spec.origin is None:
        raise ImageError(
            "no_training_package", "The package `training` is not installed beside `images`.", "Install navarch again."
        )
    return Path(spec.origin).parent


def build_wheel(source: Path | None = None) -> tuple[str, bytes]:
    """File name and content of a wheel of `training`. The same files give the same bytes."""
    source = source or package_dir()
    try:
        version = metadata.version("navarch")
    except metadata.PackageNotFoundError:
        version = "0"
    info = f"{_DIST}-{version}.dist-info"
    files = {
        f"training/{path.relative_to(source).as_posix()}": path.read_bytes()
        for path in sorted(source.rglob("*"))
        if path.is_file() and not _SKIPPED & set(path.parts) and path.suffix != ".pyc"
    }
    files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: navarch-training\nVersion: {version}\n".encode()
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: navarch\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{info}/entry_points.txt"] = b"[console_scripts]\nnavarch-train = training.cli:main\n"
    record = [f"{name},sha256={_digest(content)},{len(content)}" for name, content in files.items()]
    files[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,", ""]).encode()

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name, date_time=(2020, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content)
    return f"{_DIST}-{version}-py3-none-any.whl", buffer.getvalue()


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
