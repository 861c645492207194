"""What is asked of a remote host about the files that jobs left there."""

from collections.abc import Callable
from typing import Protocol

from service.artifacts.keeping import Kept
from service.store.tables import Artifact


class Files(Protocol):
    """The files on one host. Every method raises Problem `files_elsewhere` when the host doesn't answer or refuses."""

    def digest(self, row: Artifact) -> tuple[str, int]:
        """As `digest_of` has it: `sha256:…` and bytes."""
        ...

    def keep(self, row: Artifact) -> Kept | None:
        """Moves what a job left out of its run folder; None when there is nothing."""
        ...

    def remove(self, row: Artifact) -> None:
        """Removes one that was kept."""
        ...

    def remove_job(self, job_id: str) -> None:
        """Removes a job's run folder with all that is in it."""
        ...


Elsewhere = Callable[[str], Files]
"""The files on the host with this id."""
