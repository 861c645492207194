"""What all commands share: which control plane, the client to it, and completion of names."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.contract.errors import Problem
from service.locations import Endpoint

if TYPE_CHECKING:
    from service.client import Client
    from service.contract.schemas import Place


@dataclass
class Chosen:
    """Options given before the command's name."""

    url: str | None = None
    machine: bool = False


chosen = Chosen()


def connect(timeout_s: float = 30.0) -> Client:
    """A client to the chosen control plane."""
    from service.client import Client

    return Client(chosen.url, timeout_s=timeout_s)


def asked_url() -> str | None:
    """The control plane that --url or NAVARCH_URL names, if either does."""
    return chosen.url or os.environ.get("NAVARCH_URL") or None


def runs_here(place: Place) -> bool:
    """Whether its data folder is one of this machine: then it holds that very process's note."""
    endpoint = Endpoint.read(Path(place.data_dir))
    return endpoint is not None and endpoint.pid == place.pid


def asked_data_dir(given: Path | None) -> Path | None:
    """--data-dir, else that of the control plane that --url or NAVARCH_URL names, else None: the default.

    Raises Problem when that one runs elsewhere.
    """
    if given is not None or asked_url() is None:
        return given
    with connect(timeout_s=10) as client:
        place = client.place()
    if not runs_here(place):
        raise Problem(
            "not_found",
            f"The control plane's data folder {place.data_dir} is not on this machine, or not yours to read.",
            "Run this command where it runs, or name the folder of another one with --data-dir.",
        )
    return Path(place.data_dir)


def _remember(value: bool) -> bool:
    chosen.machine = chosen.machine or value
    return value


Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.", callback=_remember)]


def complete_jobs(incomplete: str) -> list[tuple[str, str]]:
    """Names of the newest jobs; silent when the control plane doesn't answer at once."""
    from service.client import ClientError

    try:
        with connect(timeout_s=1.0) as client:
            jobs = list(client.jobs(limit=100))
    except ClientError:
        return []
    seen: dict[str, str] = {}
    for job in jobs:
        if job.name.startswith(incomplete):
            seen.setdefault(job.name, f"{job.type}, {job.state}")
    return list(seen.items())


def complete_active_jobs(incomplete: str) -> list[tuple[str, str]]:
    return [
        (name, said)
        for name, said in complete_jobs(incomplete)
        if not said.endswith(("succeeded", "failed", "stopped"))
    ]


def complete_recipes(incomplete: str) -> list[str]:
    from images.recipes import builtin_recipes

    return [name for name in builtin_recipes() if name.startswith(incomplete)]


def complete_artifacts(incomplete: str) -> list[str]:
    from service.client import ClientError

    try:
        with connect(timeout_s=1.0) as client:
            found = client.artifacts()
    except ClientError:
        return []
    names = [f"{item.name}@{item.version}" if "@" in incomplete else item.name for item in found]
    return [name for name in dict.fromkeys(names) if name.startswith(incomplete)]


JobName = Annotated[str, typer.Argument(help="A job's name or id.", metavar="JOB", autocompletion=complete_jobs)]
ActiveJob = Annotated[
    str, typer.Argument(help="A job's name or id.", metavar="JOB", autocompletion=complete_active_jobs)
]
