"""What a run leaves in its folder: written before anything else can fail, announced when all the rest went well."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from training.errors import as_training_error
from training.models.export import write_manifest
from training.report.telemetry import Telemetry


class Results:
    """Folders with the kind that each is announced as, and its manifest where it has one. Empty but on rank 0."""

    def __init__(self, telemetry: Telemetry) -> None:
        self.telemetry = telemetry
        self.folders: list[tuple[Path, str, dict[str, Any] | None]] = []

    def add(self, folder: Path, kind: str, facts: dict[str, Any] | None = None) -> None:
        self.folders.append((folder, kind, facts))

    @contextmanager
    def kept(self) -> Iterator[None]:
        """What fails inside (checks, the last evaluation, samples) is told with where the trained weights are."""
        try:
            yield
        except Exception as error:
            if not self.folders:
                raise
            known = as_training_error(error)
            places = " and ".join(str(folder) for folder, _, _ in self.folders)
            raise type(known)(f"{known} The run is trained to its end and written: {places}.") from error

    def announce(self, figures: Mapping[str, float]) -> None:
        """Put the last figures into the manifests and tell of the folders as artifacts."""
        for folder, kind, facts in self.folders:
            if facts is not None:
                write_manifest(folder, {**facts, "metrics": dict(figures)})
            self.telemetry.artifact(folder, kind, figures)
