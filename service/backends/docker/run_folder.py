"""A run folder on the control plane's own machine, where the local engine's containers see it."""

from pathlib import Path

from service.backends.engines import Engine
from service.backends.errors import ImageMissing
from service.backends.references import find_image


class LocalRunFolder:
    def __init__(self, job_dir: Path, engine: Engine, deployment: str) -> None:
        self._path, self._engine, self._deployment = job_dir / "run", engine, deployment

    @property
    def path(self) -> Path:
        return self._path

    def make(self) -> None:
        self._path.mkdir(parents=True, exist_ok=True)

    def open_to_all(self) -> None:
        """For containers that don't run as root; the folder above is the owner's alone."""
        self._path.chmod(0o777)

    def hand_over(self, image: str, folder: Path) -> None:
        """Through a container of that image. Raises EngineError."""
        found = find_image(self._engine, image)
        if found is None:
            raise ImageMissing(f"its image {image} is not there any more")
        self._engine.hand_over(folder, found.id, self._deployment)
