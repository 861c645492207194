"""Tells a run's figures to Weights & Biases, which never delays the training by more than seconds nor ends it."""

from __future__ import annotations

import json
import os
import re
import secrets
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from training.errors import Stopped

STATE_FILE = "wandb.json"
"""In the run folder: which wandb run this is, for the attempt that resumes it."""
ANSWER_S, OPEN_S, UPLOAD_S = 4.0, 8.0, 10.0
"""How long the server may take to answer at all, to open the run, and to take what is left at the end."""
_SECRET_KEY = re.compile(r"(api_?key|token|secret|password|passwd|credential)s?$", re.IGNORECASE)
_LOGIN_IN_URL = re.compile(r"(?<=://)[^/@\s]+@")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Identity:
    """One run as Weights & Biases knows it, kept over the attempts of a job."""

    id: str
    project: str
    name: str | None = None
    on_server: bool = True
    """False: some of it exists only as files in the run folder."""


class WandbLog:
    """An open wandb run. Whatever goes wrong in it is said once, and then it is left alone."""

    def __init__(self, run: Any, identity: Identity, run_dir: Path, *, told: int, say: Say) -> None:
        self._run, self._identity, self._run_dir, self._told, self._say = run, identity, run_dir, told, say

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Tell a step's figures, except for steps that an earlier attempt has told already."""
        if self._run is None or step <= self._told:
            return
        try:
            self._run.log(
                {name if "/" in name else f"train/{name}": value for name, value in values.items()}, step=step
            )
        except Exception as error:  # whatever it is, the training goes on
            self._run = None
            self._say(f"Weights & Biases stopped working ({_brief(error)}): the run goes on without it.")

    def finish(self, exit_code: int) -> None:
        """End the run there: finished, failed, or (stopped with a checkpoint) preempted, to be resumed."""
        if self._run is None:
            return
        run, self._run = self._run, None
        folder = Path(run.dir).parent
        try:
            if exit_code == Stopped.exit_code:
                run.mark_preempting()
            run.finish(exit_code=exit_code)
        except Exception as error:
            write_identity(self._run_dir, self._identity, on_server=False)
            why = f"not everything arrived in {UPLOAD_S:g} s" if isinstance(error, TimeoutError) else _brief(error)
            self._say(f"Weights & Biases: {why}. The rest is on disk; upload it with `{_sync(folder)}`.")
        else:
            if not self._identity.on_server:
                self._say(f"Weights & Biases: recorded in {folder}; upload it with `{_sync(folder)}`.")


def open_wandb(
    project: str | None, run_dir: Path, *, config: Mapping[str, Any], first_step: int, say: Say
) -> WandbLog | None:
    """The run's log there; None, with a sentence about why, where there is none to be had.

    project: `name` or `entity/name`. first_step: where this attempt goes on; above 0 it continues the wandb run of the
    attempt before it. A server that does not answer, or refuses the key, leaves a recording on disk.
    """
    mode = os.environ.get("WANDB_MODE", "online").lower()
    given = project or os.environ.get("WANDB_PROJECT")
    if mode == "disabled" or os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1"):
        return None
    if not given:
        if os.environ.get("WANDB_API_KEY"):
            say("WANDB_API_KEY is set but log.wandb names no project: nothing goes to Weights & Biases.")
        return None
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # reports about wandb itself, which a dead server holds up
    try:
        import wandb
    except Exception as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == "wandb"
        why = "the package is not installed (pip install wandb)" if missing else f"it can't be imported: {error}"
        say(f"log.wandb names the project {given}, but {why}. The run goes on without Weights & Biases.")
        return None
    try:
        return _open(wandb, given, run_dir, config, first_step, say, offline=mode in ("offline", "dryrun"))
    except Exception as error:
        say(f"Weights & Biases could not be started ({_brief(error)}): the run goes on without it.")
        return None


def _open(
    wandb: ModuleType,
    project: str,
    run_dir: Path,
    config: Mapping[str, Any],
    first_step: int,
    say: Say,
    *,
    offline: bool,
) -> WandbLog | None:
    server = str(wandb.setup().settings.base_url).rstrip("/")
    before = read_identity(run_dir, project) if first_step > 0 else None
    identity = before or Identity(os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4), project, _run_name(run_dir))
    folder = run_dir / "wandb"
    if not offline:
        key = _key(server)
        if not key:
            say(
                f"log.wandb names the project {project}, but there is no WANDB_API_KEY: put it into the job's "
                "`secrets`, or set WANDB_MODE=offline to record files. The run goes on without Weights & Biases."
            )
            return None
        if before is not None and not before.on_server and not _uploaded(folder, before.id):
            offline = True
            say(f"The earlier part of this wandb run is only on disk, so this part is too: later, `{_sync(folder)}`.")
        elif (problem := _refusal(server, key)) is not None:
            offline = True
            say(f"Weights & Biases: {problem}. The run goes on and is recorded in {folder} instead.")
    run = None
    if not offline:
        try:
            run = _init(wandb, identity, run_dir, config, "online")
        except Exception as error:
            wandb.teardown()
            say(f"Weights & Biases at {server}: {_brief(error)}. The run goes on and is recorded in {folder} instead.")
    if run is None:
        offline = True
        run = _init(wandb, identity, run_dir, config, "offline")
    if not offline:
        say(f"Weights & Biases: {run.url}")
    written = write_identity(run_dir, identity, on_server=not offline)
    told = last_told(run_dir) if before is not None else -1
    if told > first_step:
        say(f"Weights & Biases has figures up to step {told} already: those of steps that run again are not sent.")
    return WandbLog(run, written, run_dir, told=told, say=say)


def _init(wandb: ModuleType, identity: Identity, run_dir: Path, config: Mapping[str, Any], mode: str) -> Any:
    wanted = {"init_timeout": OPEN_S, "finish_timeout": UPLOAD_S, "finish_timeout_raises": True, "console": "off",
              "silent": True, "disable_git": True, "save_code": False}  # fmt: skip
    known = getattr(wandb.Settings, "model_fields", wanted)
    entity, _, project = identity.project.rpartition("/")
    with clean_arguments():
        return wandb.init(
            entity=entity or None, project=project, id=identity.id, dir=str(run_dir),
            config=without_secrets(dict(config)), name=None if os.environ.get("WANDB_NAME") else identity.name,
            mode=mode, resume="allow" if mode == "online" else None,
            settings=wandb.Settings(**{name: value for name, value in wanted.items() if name in known}),
        )  # fmt: skip


@contextmanager
def clean_arguments() -> Iterator[None]:
    """wandb notes the command line with the run: inside, what is secret in it can't be seen."""
    before = sys.argv
    sys.argv = [before[0], *(str(without_secrets(word)) for word in before[1:])]
    try:
        yield
    finally:
        sys.argv = before


def _run_name(run_dir: Path) -> str | None:
    """The job and its attempt; outside of a job the run folder's name, unless that says nothing."""
    job = os.environ.get("NAVARCH_JOB")
    if job:
        return f"{job}-{os.environ.get('NAVARCH_ATTEMPT', '1')}"
    name = run_dir.resolve().name
    return None if name == "run" else name


def without_secrets(value: Any, key: str = "") -> Any:
    """The config as it may leave the machine: no values of keys that sound secret, no logins in URLs."""
    if isinstance(value, Mapping):
        return {name: without_secrets(item, str(name)) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(item, key) for item in value]
    if isinstance(value, str) and value:
        hidden = {text for name, text in os.environ.items() if _SECRET_KEY.search(name) and len(text) >= 8}
        if _SECRET_KEY.search(key) or any(text in value for text in hidden):
            return "********"
        return _LOGIN_IN_URL.sub("", value)
    return value


# the server


def _key(server: str) -> str | None:
    """WANDB_API_KEY, or what `wandb login` left in ~/.netrc for this server."""
    if key := os.environ.get("WANDB_API_KEY", "").strip():
        return key
    import netrc

    with suppress(OSError, netrc.NetrcParseError):
        found = netrc.netrc(os.environ.get("NETRC")).authenticators(urlsplit(server).hostname or "")
        return found[2] if found else None
    return None


def _refusal(server: str, key: str) -> str | None:
    """Why this server can't be used now, asked in a thread since a name server can take its time too."""
    answers: list[str | None] = []
    thread = threading.Thread(target=lambda: answers.append(_ask(server, key)), daemon=True)
    thread.start()
    thread.join(ANSWER_S + 1)
    return answers[0] if answers else f"{server} does not answer within {ANSWER_S:g} s"


def _ask(server: str, key: str) -> str | None:
    import requests

    try:
        answer = requests.post(
            f"{server}/graphql", json={"query": "query Viewer { viewer { id } }"}, auth=("api", key), timeout=ANSWER_S
        )
        if answer.status_code in (401, 403) or (answer.ok and _nobody(answer.json())):
            return f"{server} refuses the key in WANDB_API_KEY (answer {answer.status_code})"
    except requests.Timeout:
        return f"{server} does not answer within {ANSWER_S:g} s"
    except requests.RequestException as error:
        return f"{server} can't be reached ({_brief(error)}); WANDB_BASE_URL names another server"
    return f"{server} is out of order (answer {answer.status_code})" if answer.status_code >= 500 else None


def _nobody(answer: Any) -> bool:
    data = answer.get("data") if isinstance(answer, Mapping) else None
    return isinstance(data, Mapping) and data.get("viewer", answer) is None


# what an attempt leaves for the next


def read_identity(run_dir: Path, project: str) -> Identity | None:
    """The wandb run that an earlier attempt began in this folder, if it was in this project."""
    with suppress(OSError, ValueError, TypeError):
        identity = Identity(**json.loads((run_dir / STATE_FILE).read_text(encoding="utf-8")))
        return identity if identity.project == project else None
    return None


def write_identity(run_dir: Path, identity: Identity, *, on_server: bool) -> Identity:
    written = Identity(identity.id, identity.project, identity.name, on_server)
    with suppress(OSError):
        (run_dir / STATE_FILE).write_text(json.dumps(asdict(written)) + "\n", encoding="utf-8")
    return written


def last_told(run_dir: Path) -> int:
    """The last step whose figures the events of the earlier attempts hold; -1 when there are none."""
    return max(_steps(run_dir / "events.jsonl"), default=-1)


def _steps(log: Path) -> Iterable[int]:
    with suppress(OSError), log.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            with suppress(ValueError, KeyError, TypeError):
                event = json.loads(line)
                if event["event"] in ("metrics", "eval"):
                    yield int(event["step"])


def _uploaded(folder: Path, run_id: str) -> bool:
    """Whether `wandb sync` has taken every recording of this run (it leaves a marker beside each)."""
    recordings = list(folder.glob(f"offline-run-*-{run_id}/*.wandb"))
    return all(Path(f"{recording}.synced").exists() for recording in recordings)


def _sync(folder: Path) -> str:
    return f"wandb sync {folder}" if folder.name != "wandb" else f"wandb sync --yes {folder}/*-run-*"


def _brief(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if found := re.search(r"\[Errno -?\d+\] ([^'\")]+)", text):  # what urllib3 wraps four times
        text = found.group(1)
    return text if len(text) <= 200 else text[:200] + "…"
