"""Whether an image can run a job or a workspace, in a sentence that names the key; and how containers are started."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import images
from images import gang
from jobs.gang import GANG_FILE
from jobs.launch import CONTAINER_DIR, TRAINING_BIN, Asked, ContainerPlan
from service.backends.engines import ImageFacts
from service.backends.references import SYSTEM_LABEL

TARGET_LABEL = "navarch.target"
LAYER_START = ("/usr/bin/tini", "--", "/usr/local/bin/navarch-entrypoint")
SUPERVISE = "supervise"
"""The file in /run/navarch by which images without Navarch's layer start a job."""
TRAIN = f"{TRAINING_BIN}/navarch-train"
GANG_PROGRAM = "gang.pyz"
"""The file in /run/navarch that readies a member of a gang."""
SHELLS = ("/bin/bash", "/usr/bin/bash", "/usr/local/bin/bash", "/bin/sh")
"""Where the shell lies that runs it, the better ones first."""
LOOKED_FOR = (*SHELLS, TRAIN)
"""Files that an image without Navarch's layer is looked through for."""
_ROOT = ("", "0", "root")

Programs = Callable[[], frozenset[str]]
"""Which of LOOKED_FOR the image has; asked only where it matters, as it takes a container."""


@dataclass(frozen=True)
class Misfit:
    """Why an image can't run a job: no retry helps."""

    message: str
    hint: str


def misfit(spec: Asked, image: ImageFacts, programs: Programs) -> Misfit | None:
    """What keeps the job from running in this image; None: nothing that is known."""
    name = f"Image {spec.image}"
    ours = SYSTEM_LABEL in image.labels
    if spec.ssh and not ours:
        return Misfit(
            f"{name} has no Navarch layer (sshd, entrypoint).",
            f"Build one on it with `navarch image build RECIPE --base {spec.image}`, or say `ssh: false` in the job.",
        )
    if spec.ssh and not is_root(image):
        return Misfit(
            f"{name} runs as its USER {image.user}, and its sshd and the job's run folder need root.",
            "End its Dockerfile with `USER root`, or say `ssh: false` in the job: it then runs as that user.",
        )
    if spec.secrets and not is_root(image):
        return Misfit(
            f"{name} runs as its USER {image.user}, who may not read the job's `secrets`.",
            "End its Dockerfile with `USER root`, or leave `secrets` out.",
        )
    if spec.trains and ours and image.labels.get(TARGET_LABEL) == "system":
        return _no_training(spec)
    return None if ours else _lacks(spec, name, programs())


def _lacks(spec: Asked, name: str, programs: frozenset[str]) -> Misfit | None:
    """What a plain image lacks."""
    if spec.trains and TRAIN not in programs:
        return _no_training(spec)
    bash = any(program.endswith("/bash") for program in programs)
    if spec.command is not None and spec.command[:2] == ["bash", "-c"] and not bash:
        return Misfit(
            f"{name} has no bash, in which a `command` that is text runs.",
            'Write `command` as a list, such as [sh, -c, "…"], or name an image with bash.',
        )
    if spec.secrets and not programs.intersection(SHELLS):
        return Misfit(
            f"{name} has no shell, by which a program gets the job's `secrets`.",
            "Leave `secrets` out, or name an image with /bin/sh.",
        )
    return None


def _no_training(spec: Asked) -> Misfit:
    return Misfit(
        f"Image {spec.image} has no training environment, and a job of type {spec.type} needs one.",
        f"Build one on it: `navarch image build RECIPE --base {spec.image}`.",
    )


def remarks(spec: Asked, image: ImageFacts) -> list[str]:
    """What a person may not expect of this image, a sentence each."""
    name = f"Image {spec.image}"
    said = []
    if image.entrypoint and not any("navarch-entrypoint" in word for word in image.entrypoint):
        said.append(f"{name}: its ENTRYPOINT ({' '.join(image.entrypoint)}) is not run; the job's command is.")
    if not is_root(image):
        said.append(f"{name}: the job runs as its USER {image.user}.")
    if image.healthcheck:
        said.append(f"{name}: its HEALTHCHECK is not run; a job ends when its command does.")
    if image.volumes:
        said.append(f"{name}: what is written to its VOLUME {', '.join(image.volumes)} goes with the container.")
    return said


def is_root(image: ImageFacts) -> bool:
    return image.user.partition(":")[0] in _ROOT


def _environment(plan: ContainerPlan, image: ImageFacts) -> dict[str, str]:
    """The job's variables, `$PATH` in its PATH being the image's own."""
    environment = dict(plan.environment)
    if "PATH" in environment:
        parts = environment["PATH"].split(":")
        environment["PATH"] = ":".join(image.search_path if part in ("$PATH", "${PATH}") else part for part in parts)
    return environment


def started_in(plan: ContainerPlan, image: ImageFacts, programs: Programs) -> ContainerPlan:
    """The plan with this image, and with what starts the command in it, whatever ENTRYPOINT the image has."""
    plan = replace(plan, image=image.reference, environment=_environment(plan, image))
    if GANG_FILE in plan.files:
        plan = replace(plan, files={**plan.files, GANG_PROGRAM: gang.program()})
    if SYSTEM_LABEL in image.labels:
        return replace(plan, entrypoint=LAYER_START)
    found = programs()
    shell = next((shell for shell in SHELLS if shell in found), None)
    if shell is None:
        return replace(plan, entrypoint=plan.command[:1], command=plan.command[1:], init=True)
    files = {**plan.files, SUPERVISE: (Path(images.__file__).parent / "navarch-supervise").read_bytes()}
    return replace(plan, entrypoint=(shell, f"{CONTAINER_DIR}/{SUPERVISE}"), init=True, files=files)
