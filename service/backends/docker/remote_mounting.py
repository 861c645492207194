"""Has a remote host's engine mount what jobs there may see: run folders, artifacts, what lies in a shared root.

No name is resolved there that a job could swap. What is mounted is a folder that only an administrator can put
something else in the place of: a job's run folder, a kept artifact, the shared root. For what lies deeper that folder
is mounted out of the way, and a link at the wanted place leads into it: it is the container that follows the link, and
it can't leave itself.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jobs.launch import LABEL_DEPLOYMENT, ContainerPlan
from jobs.spec import Mount
from service.backends.docker.mounting import HIDDEN, Prepared, bind
from service.backends.docker.remote_files import make_folders, missing
from service.backends.errors import MountRefused
from service.store.places import remote_folder


class RemoteMounting:
    """Prepares the mounts of the containers of one remote host."""

    def __init__(self, name: str, shared: Callable[[], Sequence[Path]]) -> None:
        """`shared`: the folders of the shared root that jobs may mount, as it is now."""
        self._name, self._shared = name, shared

    def prepare(self, api: Any, plan: ContainerPlan) -> Prepared:
        """Says how the engine is to make each mount. Raises MountRefused; the engine's own errors."""
        deployment = plan.labels[LABEL_DEPLOYMENT]
        base = remote_folder(deployment)
        prepared = Prepared()
        wanted: dict[Path, list[Path]] = defaultdict(list)
        for mount in plan.mounts:
            source = Path(os.path.normpath(mount.source))
            anchor = self._anchor(source, base)
            if not mount.read_only and anchor.name == "run":
                make_folders(api, plan.image, deployment, [anchor])
            wanted[anchor].append(source)
            self._add(source, anchor, mount, prepared)
        for anchor, paths in wanted.items():
            above = base if base in anchor.parents else anchor
            for path in missing(api, plan.image, deployment, above, paths):
                raise MountRefused(f"The mount {path} does not exist on {self._name}.", None, missing=True)
        return prepared

    @staticmethod
    def _add(source: Path, anchor: Path, mount: Mount, prepared: Prepared) -> None:
        if source == anchor:
            prepared.mounts.append(bind(anchor, mount.target, mount.read_only))
            return
        hidden = f"{HIDDEN}/{len(prepared.mounts)}"
        prepared.mounts.append(bind(anchor, hidden, mount.read_only))
        prepared.links[mount.target] = f"{hidden}/{source.relative_to(anchor)}"

    def _anchor(self, source: Path, base: Path) -> Path:
        """The folder above a path that no job can put something else in the place of. Raises MountRefused."""
        if base in source.parents:
            parts = source.relative_to(base).parts
            if len(parts) > 2 and parts[0] == "jobs" and parts[2] == "run":
                return base.joinpath(*parts[:3])
            if len(parts) > 1 and parts[0] == "artifacts":
                return base.joinpath(*parts[:2])
        for root in self._shared():
            if root == source or root in source.parents:
                return root
        raise MountRefused(
            f"{source} lies on the control plane's machine, and is no shared folder of {self._name}.",
            "See `navarch host set --shared-root`.",
            missing=False,
        )
