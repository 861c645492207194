"""A job's run folder on the control plane's own machine, where the local engine's containers see it."""

from pathlib import Path


class LocalRunFolder:
    def __init__(self, job_dir: Path) -> None:
        self._path = job_dir / "run"

    @property
    def path(self) -> Path:
        return self._path

    def make(self) -> None:
        self._path.mkdir(parents=True, exist_ok=True)

    def open_to_all(self) -> None:
        """For containers that don't run as root; the folder above is the owner's alone."""
        self._path.chmod(0o777)
