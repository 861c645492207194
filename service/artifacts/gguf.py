"""Converts GGUF files into Hugging Face folders: by navarch-train beside this Python, else in a container of `cpu`."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from service.access.paths import Opened
from service.contract.errors import Problem
from service.settings import Settings

TIMEOUT_S = 3600
_LOOK_EVERY_S = 0.3
_CHUNK = 1 << 22
IMAGE = "cpu"
_TRAIN = "/opt/navarch/bin/navarch-train"


def convert_gguf(source: Opened, target: Path, settings: Settings, ending: threading.Event) -> None:
    """Write the model in `source` to the new folder `target`; breaks off when `ending` is set.

    Raises Problem `import_failed`.

    The converter gets the open file under a name of ours in a folder beside `target`, whatever happens to its own.
    """
    name = source.path.name
    with TemporaryDirectory(prefix=".import-", dir=target.parent) as folder:
        given = Path(folder, name)
        local = local_command()
        if local is not None and hasattr(os, "O_PATH"):
            given.symlink_to(f"/proc/{os.getpid()}/fd/{source.fd}")
        else:
            with os.fdopen(source.readable(), "rb") as file, given.open("wb") as copy:
                shutil.copyfileobj(file, copy, _CHUNK)
        if local is not None:
            code, said = _run_here([*local, str(given), str(target)], ending)
        else:
            code, said = _run_in_container(given, target, settings, ending)
    if ending.is_set():
        raise Problem("import_failed", f"The conversion of {name} was broken off.", "Import it again.")
    if code != 0:
        raise Problem("import_failed", f"{name} could not be converted: {_reason(said)}", _hint(code))
    if not (target / "config.json").is_file():
        raise Problem("import_failed", f"The conversion of {name} left no model in {target}.", _hint(code))


def local_command() -> list[str] | None:
    """`navarch-train import-gguf` of this installation, if it has torch; None otherwise. (torch is not loaded.)"""
    script = Path(sys.executable).parent / "navarch-train"
    if script.exists() and find_spec("torch") is not None and find_spec("transformers") is not None:
        return [str(script), "import-gguf"]
    return None


def _run_here(command: Sequence[str], ending: threading.Event) -> tuple[int, str]:
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "CUDA_VISIBLE_DEVICES": ""}
    deadline = time.monotonic() + TIMEOUT_S
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            env=environment,
            umask=0o022,  # what it writes is read by programs of any account, in containers
            start_new_session=True,
        )
        try:
            while process.poll() is None:
                if time.monotonic() > deadline:
                    return 124, f"it took longer than {TIMEOUT_S // 60} minutes"
                if ending.wait(_LOOK_EVERY_S):
                    return 130, "it was broken off"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        said.seek(0)
        return process.returncode, said.read()


def _run_in_container(source: Path, target: Path, settings: Settings, ending: threading.Event) -> tuple[int, str]:
    import docker
    from docker.errors import DockerException

    from images.catalog import resolve
    from images.errors import ImageError

    client = docker.DockerClient(base_url=settings.engine_url, timeout=TIMEOUT_S)
    try:
        image = resolve(client, IMAGE)
        target.parent.mkdir(parents=True, exist_ok=True)
        container = client.containers.create(
            image.image_id,
            ["import-gguf", f"/in/{source.name}", f"/out/{target.name}"],
            entrypoint=[_TRAIN],
            user=f"{os.getuid()}:{os.getgid()}",
            environment={"HOME": "/tmp", "PYTHONSAFEPATH": "1"},
            network_mode="none",
            volumes={
                str(source.parent): {"bind": "/in", "mode": "ro"},
                str(target.parent): {"bind": "/out", "mode": "rw"},
            },
            labels={"navarch.purpose": "import"},
        )
        try:
            container.start()
            deadline = time.monotonic() + TIMEOUT_S
            while container.status in ("created", "running"):
                if time.monotonic() > deadline:
                    return 124, f"it took longer than {TIMEOUT_S // 60} minutes"
                if ending.wait(_LOOK_EVERY_S):
                    return 130, "it was broken off"
                container.reload()
            code = int(container.wait()["StatusCode"])
            return code, container.logs(tail=50).decode(errors="replace")
        finally:
            container.remove(force=True, v=True)
    except ImageError as error:
        hint = "Build it: `navarch image build cpu`; or install the training extra beside Navarch."
        raise Problem("import_failed", "Converting needs the image `cpu`, which is not there.", hint) from error
    except (DockerException, OSError) as error:
        raise Problem("import_failed", f"The container for the conversion failed: {error}", None) from error
    finally:
        client.close()


def _reason(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip() and not line.startswith("@navarch ")]
    last = lines[-1] if lines else "it said nothing"
    return last if last.endswith((".", "!", "?")) else last + "."


def _hint(code: int) -> str:
    if code == 74:
        return "Free some disk space and import it again."
    return "See that the file is a complete GGUF file of a LLaMA-like model."
