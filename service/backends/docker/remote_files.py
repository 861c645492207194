"""Run folders and artifacts on a remote host: they are made, read, kept and removed by short helper containers there.

Files that containers wrote are root's, and the account that logs in over SSH mostly isn't: whoever may use Docker can
be root in a container, and needs no more. A helper sees one folder and nothing else of the host, has no network, and is
made of an image that is there. It is also what makes paths safe: whatever a job made of links in its run folder, in a
helper they lead to the helper's own files at most, and one that leads out of the run folder is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from jobs.launch import LABEL_DEPLOYMENT, RUN_TARGET
from service.artifacts.keeping import Kept
from service.backends.docker.gpus import any_image
from service.backends.docker.handover import LABEL_PURPOSE
from service.backends.docker.refusals import engine_errors
from service.backends.errors import BadContainer, EngineError, NoSpace
from service.contract.errors import Problem
from service.store.places import remote_folder, remote_run
from service.store.tables import Artifact

_TIMEOUT_S = 550
"""Shorter than the age at which containers that nobody knows are swept."""
_HERE = "/navarch"
_MAY = ["CHOWN", "DAC_OVERRIDE", "FOWNER"]
_GONE = 44

_MAKE = """
chmod 700 /navarch
for folder; do umask 077; mkdir -p "$folder"; chmod 777 "$folder"; done
"""
"""The folder above is root's alone: what is open to all is open to this job's containers, whoever they run as."""
_INSIDE = """
added() { all=0; while read -r size; do all=$((all + size)); done; echo "$all"; }
real=$(realpath -e -- "$run/$1" 2>/dev/null) || exit 44
case "$real/" in "$run"/*) ;; *) echo "it leads out of the run folder" >&2; exit 1 ;; esac
if [ -d "$real" ]; then
  cd -- "$real"
  find . -type l -exec sh -c 'run=$1; shift; for link; do
    to=$(realpath -- "$link"); [ -f "$to" ] || continue
    case "$to/" in "$run"/*) ;; *) echo "$link leads out of the run folder" >&2; exit 1 ;; esac
  done' sh "$run" {} +
fi
"""
_DIGEST = (
    "run=$(realpath -e /workspace/run)\n"
    + _INSIDE
    + """
if [ -d "$real" ]; then
  find . -xtype f -printf '%P\\0' | LC_ALL=C sort -z | xargs -0 -r sha256sum -- | sha256sum | cut -d ' ' -f 1
  find . -xtype f -exec stat -L -c %s {} + | added
else
  sha256sum <"$real" | cut -d ' ' -f 1
  stat -c %s -- "$real"
fi
"""
)
_KEEP = (
    """
job=$1 name=$3 file=$4
ln -s "/navarch/jobs/$job/run" /workspace/run
cd /navarch
run=$(realpath -e "jobs/$job/run") || exit 44
set -- "$2"
"""
    + _INSIDE
    + """
cd /navarch
mkdir -p artifacts && chmod 755 artifacts
rm -rf -- "artifacts/.$name" && mkdir "artifacts/.$name"
if [ -d "$real" ]; then
  cd -- "$real"
  find . -xtype f -exec sh -ec 'to=$1; shift; for path; do
    mkdir -p "$to/${path%/*}"; cp -Ll -- "$path" "$to/$path"
  done' sh "/navarch/artifacts/.$name" {} +
  cd /navarch
else
  cp -Ll -- "$real" "artifacts/.$name/$file"
fi
chmod -R u+rwX,go+rX "artifacts/.$name"
rm -rf -- "artifacts/$name" && mv -T -- "artifacts/.$name" "artifacts/$name"
find "artifacts/$name" -type f -exec stat -c %s {} + | added
if [ -d "$real" ]; then echo folder; else echo file; fi
"""
)
_REMOVE = 'cd /navarch && rm -rf -- "$@"'
_THERE = 'for path; do [ -e "$path" ] || echo "$path"; done'


class Host(Protocol):
    """What is needed of an engine."""

    @property
    def api(self) -> Any: ...


def make_folders(api: Any, image: str, deployment: str, folders: Sequence[Path]) -> None:
    """Makes run folders before they are mounted; nothing happens to those that are there. Raises EngineError."""
    base = remote_folder(deployment)
    inside = [f"{_HERE}/{folder.relative_to(base)}" for folder in folders]
    _run(api, image, deployment, {str(base): (_HERE, "rw")}, _MAKE, inside)


def missing(api: Any, image: str, deployment: str, folder: Path, paths: Sequence[Path]) -> list[Path]:
    """Those of the paths below a folder that aren't there. Raises EngineError."""
    inside = {f"{_HERE}/{path.relative_to(folder)}": path for path in paths}
    said = _run(api, image, deployment, {str(folder): (_HERE, "ro")}, _THERE, list(inside))
    return [inside[line] for line in said.splitlines() if line in inside]


class RemoteFiles:
    """Implements `Files` for one host."""

    def __init__(self, host: Host, name: str, deployment: str) -> None:
        self._host, self._name, self._deployment = host, name, deployment
        self._base = remote_folder(deployment)

    def digest(self, row: Artifact) -> tuple[str, int]:
        what = f"Artifact {row.name}@{row.version}"
        if row.run_path is not None and row.job_id is not None:
            anchor, below = remote_run(self._deployment, row.job_id), row.run_path
        else:
            anchor, below = self._kept(row)
        said = self._ask(what, {str(anchor): (RUN_TARGET, "ro")}, _DIGEST, [below])
        if said is None:
            raise Problem("files_elsewhere", f"The files of {row.name}@{row.version} are gone from {self._name}.")
        hexadecimal, size = said.split()
        return f"sha256:{hexadecimal}", int(size)

    def keep(self, row: Artifact) -> Kept | None:
        assert row.run_path is not None and row.job_id is not None
        name = quote(f"{row.name}@{row.version}", safe="@")
        file = Path(row.path).name
        arguments = [row.job_id, row.run_path, name, file]
        said = self._ask(f"Artifact {row.name}@{row.version}", {str(self._base): (_HERE, "rw")}, _KEEP, arguments)
        if said is None:
            return None
        size, kind = said.split()
        folder = self._base / "artifacts" / name
        return Kept(folder if kind == "folder" else folder / file, int(size))

    def remove(self, row: Artifact) -> None:
        anchor, _ = self._kept(row)
        inside = str(anchor.relative_to(self._base))
        self._ask(f"Artifact {row.name}@{row.version}", {str(self._base): (_HERE, "rw")}, _REMOVE, [inside])

    def remove_job(self, job_id: str) -> None:
        self._ask("The run folder", {str(self._base): (_HERE, "rw")}, _REMOVE, [f"jobs/{job_id}"])

    def _kept(self, row: Artifact) -> tuple[Path, str]:
        """The folder of a kept artifact, and where in it that is. Raises Problem: a row names nothing else here."""
        shelf = self._base / "artifacts"
        path = Path(row.path)
        if shelf not in path.parents or ".." in path.parts:
            raise Problem("files_elsewhere", f"{row.name}@{row.version} lies where Navarch keeps nothing: {path}.")
        top = shelf / path.relative_to(shelf).parts[0]
        return top, str(path.relative_to(top))

    def _ask(self, what: str, binds: dict[str, tuple[str, str]], script: str, arguments: Sequence[str]) -> str | None:
        """What the helper printed; None where it found nothing."""
        try:
            with engine_errors(f"{what} on {self._name}"):
                image = any_image(self._host.api)
                if image is None:
                    raise BadContainer("there is no image left to look with: pull any there")
                return _run(self._host.api, image, self._deployment, binds, script, arguments)
        except _Nothing:
            return None
        except EngineError as error:
            raise Problem(
                "files_elsewhere",
                f"{what} can't be reached on host {self._name}: {error}.",
                f"See that the host answers (`navarch host show {self._name}`), then try again.",
            ) from error


class _Nothing(EngineError):
    """There is nothing at that path."""


def _run(
    api: Any,
    image: str,
    deployment: str,
    binds: dict[str, tuple[str, str]],
    script: str,
    arguments: Sequence[str],
) -> str:
    """Runs a fixed program in a helper; what it printed. Folders that are bound are made if need be."""
    host = api.create_host_config(
        binds=[f"{source}:{target}:{mode}" for source, (target, mode) in binds.items()],
        network_mode="none",
        cap_drop=["ALL"],
        cap_add=_MAY,
        read_only=True,
        tmpfs={
            "/tmp": "",
            **({} if any(to.startswith("/workspace") for to, _ in binds.values()) else {"/workspace": ""}),
        },
        security_opt=["no-new-privileges"],
        log_config={"Type": "json-file", "Config": {}},
    )
    container = api.create_container(
        image,
        ["-euc", script, "navarch", *arguments],
        entrypoint=["sh"],
        user="0:0",
        working_dir="/",
        host_config=host,
        labels={LABEL_DEPLOYMENT: deployment, LABEL_PURPOSE: "files"},
    )["Id"]
    try:
        api.start(container)
        code = api.wait(container, timeout=_TIMEOUT_S)["StatusCode"]
        if code == _GONE:
            raise _Nothing("there is nothing")
        if code != 0:
            said = api.logs(container, stdout=False, tail=3).decode("utf-8", "replace").strip()[:500]
            raise NoSpace(said) if "No space left" in said else BadContainer(f"exit code {code}: {said}")
        return str(api.logs(container, stderr=False).decode("utf-8", "replace"))
    finally:
        api.remove_container(container, v=True, force=True)
