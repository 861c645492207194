"""Turns the paths of a spec into mounts: artifacts by name, host paths under allowed roots, everything else as is."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.awaited import wait_sentence
from jobs.launch import RUN_TARGET
from jobs.placement import Need
from jobs.spec import JobSpec, Mount
from service.access.mounts import MountRules
from service.contract.errors import Problem
from service.intake.inputs import FindInput, Input

ARTIFACT_PREFIX = "artifact:"
_NO_PATHS = frozenset({"run_dir", "resume", "prompts", "stop", "system", "template"})
"""Training keys that hold text, or paths that the training itself makes inside the container."""


@dataclass
class Resolved:
    """The training sections as the container sees them, and what has to be mounted for that."""

    training: dict[str, Any] = field(default_factory=dict)
    mounts: dict[str, Mount] = field(default_factory=dict)
    inputs: dict[str, tuple[Input, str]] = field(default_factory=dict)
    """Key of the spec → the artifact there, and where the container sees it."""
    needs: list[Need] = field(default_factory=list)
    """What only some hosts have."""

    @property
    def why(self) -> str | None:
        """What has to be made before the job can be placed."""
        return wait_sentence(found.awaited for found, _ in self.inputs.values() if found.awaited)


def resolve_paths(spec: JobSpec, rules: MountRules, find_input: FindInput) -> Resolved:
    """Checks every host path of a spec and rewrites `artifact:NAME`. Raises Problem."""
    for mount in spec.mounts:
        rules.check(mount.source, "The mount")
    _check_workdir(spec, rules)
    resolved = Resolved()
    targets = [*(m.target for m in spec.mounts), RUN_TARGET]

    def walk(value: Any, where: str) -> Any:
        if isinstance(value, Mapping):
            return {k: v if k in _NO_PATHS else walk(v, f"{where}.{k}" if where else str(k)) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [walk(item, f"{where}[{index}]") for index, item in enumerate(value)]
        return path(value, where) if isinstance(value, str) else value

    def path(value: str, where: str) -> str:
        if value.startswith(ARTIFACT_PREFIX):
            reference, _, rest = value.removeprefix(ARTIFACT_PREFIX).partition("/")
            found, target = find_input(reference, where), f"/workspace/artifacts/{reference}"
            resolved.inputs[where] = (found, target)
            if found.path is not None:
                resolved.mounts[target] = Mount(source=found.path, target=target, read_only=True)
            return f"{target}/{rest}" if rest else target
        if not value.startswith("/"):
            return value
        file, colon, _ = value.partition(".py:")
        host_path = file + ".py" if colon else value
        if any(host_path == t or host_path.startswith(t + "/") for t in targets):
            return value
        try:
            rules.check(host_path, f"`{where}`:")
        except Problem as problem:
            if not Path(host_path).suffix and not colon:
                problem.hint = f"{problem.hint or ''} The Hugging Face hub's are written hf:org/name.".strip()
            raise
        resolved.mounts.setdefault(host_path, Mount(source=host_path, target=host_path, read_only=True))
        return value

    for key, section in spec.training.items():
        resolved.training[key] = section if key in _NO_PATHS else walk(section, key)
    return resolved


def _check_workdir(spec: JobSpec, rules: MountRules) -> None:
    """A working folder that lies in a mount must be one, or be makeable. Raises Problem."""
    within = [m for m in spec.mounts if spec.workdir == m.target or spec.workdir.startswith(f"{m.target}/")]
    if not within:
        return
    mount = max(within, key=lambda m: len(m.target))
    there = mount.source + spec.workdir.removeprefix(mount.target)
    try:
        with rules.open(there, "`workdir`:").opened as opened:
            is_dir = opened.is_dir
    except Problem as problem:
        if problem.code != "path_missing" or not mount.read_only:
            if problem.code == "path_missing":
                return
            raise
        detail = f"`workdir` {spec.workdir} does not exist: it would be {there}, and that is mounted read-only."
        raise Problem("path_missing", detail, "Make the folder first, or mount without :ro.", path=there) from None
    if not is_dir:
        detail = f"`workdir` {spec.workdir} is no folder: it is the file {there} of the host."
        raise Problem("invalid_spec", detail, "Name a folder in which the command is to run.")
