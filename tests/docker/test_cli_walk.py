"""The command line as a newcomer types it, against a real control plane and a real Docker Engine."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import time
from pathlib import Path

import pytest

from service.locations import Endpoint
from tests.docker.front_door import FrontDoor, until

SPEC = """\
type: command
name: {name}
image: {image}
command: |
{script}
grace: 2s
"""


@pytest.fixture
def spec(door: FrontDoor, system_image: str, request: pytest.FixtureRequest) -> SpecWriter:
    return SpecWriter(door.folder, system_image)


class SpecWriter:
    """Writes specs of command jobs."""

    def __init__(self, folder: Path, image: str) -> None:
        self.folder, self.image = folder, image

    def __call__(self, name: str, script: str) -> str:
        file = self.folder / f"{name}.yaml"
        indented = "".join(f"  {line}\n" for line in script.splitlines())
        file.write_text(SPEC.format(name=name, image=self.image, script=indented))
        return str(file)


def refused(done: subprocess.CompletedProcess[str], code: int, *fragments: str) -> None:
    """One sentence and a hint on standard error, nothing else, and the exit code."""
    assert done.returncode == code, done.stderr
    lines = done.stderr.splitlines()
    assert lines[0].startswith("error: ") and "Traceback" not in done.stderr and done.stdout == ""
    assert any(line.startswith("hint: ") for line in lines[1:]), done.stderr
    for fragment in fragments:
        assert fragment in done.stderr


def test_a_job_from_submit_to_rm(door: FrontDoor, spec: SpecWriter) -> None:
    file = spec(
        "walk",
        "echo first; echo second\n"
        'for step in 1 2 3; do echo \'@navarch {"event": "metrics", "step": \'$step\', '
        '"total_steps": 3, "values": {"loss": 0.\'$step\', "lr": 0.1}}\'; done',
    )
    done = door.navarch("submit", file, "--follow")
    assert done.returncode == 0, done.stderr
    assert "first\nsecond\n" in done.stdout and "@navarch" not in done.stdout
    assert "walk succeeded after" in done.stdout and "step 3/3" in done.stdout
    assert "walk is " in done.stderr
    assert "No active jobs" in door.navarch("ps").stdout
    assert "walk  command  succeeded" in door.navarch("ps", "-a").stdout
    shown = door.navarch("show", "walk").stdout
    assert "completed" in shown and "attempt 1" in shown and "command: |" in shown
    assert door.navarch("logs", "walk").stdout == "first\nsecond\n"
    assert door.navarch("logs", "walk", "--tail", "1").stdout == "second\n"
    assert "@navarch" in door.navarch("logs", "walk", "--raw").stdout
    plot = door.navarch("metrics", "walk").stdout
    assert "loss  0.1 → 0.3" in plot and "┤" in plot and "lr" in plot and "\x1b" not in plot
    assert "walk was submitted" in door.navarch("events", "walk").stdout
    (door.folder / "again.yaml").write_text(door.navarch("show", "walk", "--spec").stdout)
    assert "It would start now." in door.navarch("submit", str(door.folder / "again.yaml"), "--dry-run").stdout
    assert "removed" in door.navarch("rm", "walk").stdout
    refused(door.navarch("show", "walk"), 1, "There is no job 'walk'", "navarch ps -a")


def test_everything_speaks_json(door: FrontDoor, spec: SpecWriter) -> None:
    job = json.loads(door.navarch("submit", spec("json", "echo {}"), "--json").stdout)
    assert job["state"] == "queued"
    lines = [json.loads(line) for line in door.navarch("logs", "json", "-f", "--json").stdout.splitlines()]
    assert lines[0]["line"] == "{}" and lines[-1]["job"]["state"] == "succeeded"
    for command in (["ps", "-a"], ["show", "json"], ["metrics", "json"], ["events"], ["host", "ls"], ["image", "ls"],
                    ["artifact", "ls"], ["version"], ["doctor"], ["token", "ls"]):  # fmt: skip
        done = door.navarch(*command, "--json")
        assert done.returncode == 0, (command, done.stderr)
        json.loads(done.stdout)
    error = door.navarch("show", "nobody", "--json")
    assert error.returncode == 1 and json.loads(error.stderr)["code"] == "job_not_found"


def test_the_exit_code_of_a_followed_job_is_its_end(door: FrontDoor, spec: SpecWriter) -> None:
    done = door.navarch("submit", spec("fails", "echo before; exit 3"), "--follow")
    assert done.returncode == 1
    assert "before" in done.stdout and "fails failed" in done.stdout and "exit code 3" in done.stdout


def test_a_dry_run_shows_the_plan_and_submits_nothing(door: FrontDoor, spec: SpecWriter) -> None:
    done = door.navarch("submit", spec("dry", "echo hi"), "env.A=1", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "It would start now." in done.stdout and "bash -c" in done.stdout and "A=1" in done.stdout
    refused(door.navarch("show", "dry"), 1)
    missing = door.navarch("submit", spec("dry", "echo hi"), "image=navarch/rocm", "--dry-run")
    assert missing.returncode == 1 and "start now" not in missing.stdout
    assert (
        "It would fail: Image navarch/rocm is not on local" in missing.stdout
        and "navarch image build" in missing.stdout
    )


def test_paths_are_relative_to_the_file_and_those_that_are_not_there_are_named(
    door: FrontDoor, system_image: str
) -> None:
    folder = door.folder / "shared" / "specs"
    folder.mkdir()
    (folder / "data").mkdir()
    (folder / "data" / "hello").write_text("from the file's folder\n")
    (folder / "job.yaml").write_text(
        f"type: command\nname: mounted\nimage: {system_image}\ncommand: cat /data/hello\nmounts: ['data:/data:ro']\n"
    )
    done = door.navarch("submit", "shared/specs/job.yaml", "--follow")
    assert done.returncode == 0 and "from the file's folder" in done.stdout
    missing = door.navarch("submit", "shared/specs/job.yaml", "mounts.0=shared/none:/data")
    refused(missing, 1, str(door.folder / "shared" / "none"), "does not exist")
    outside = door.navarch("submit", "shared/specs/job.yaml", "mounts.0=/etc:/data")
    refused(outside, 1, "/etc lies outside the folders", "--mount-root")


@pytest.mark.parametrize(
    ("arguments", "code", "fragment"),
    [
        (["none.yaml"], 1, "There is no file none.yaml"),
        (["{good}", "resources"], 2, "is not KEY=VALUE"),
        (["{good}", "comand=x"], 1, "did you mean `command`"),
        (["{good}", "resources.gpus=two"], 1, "must be a whole number"),
        (["{good}", "resources.gpus=16"], 1, "16 GPUs"),
        (["{good}", "type=sft"], 1, "`command`"),
        (["{good}", "ports=[99999]"], 1, "must be a port"),
    ],
)
def test_a_bad_submit_is_one_sentence_and_a_hint(
    door: FrontDoor, spec: SpecWriter, arguments: list[str], code: int, fragment: str
) -> None:
    good = spec("good", "true")
    refused(door.navarch("submit", *(word.replace("{good}", good) for word in arguments)), code, fragment)


def test_a_running_job_is_not_removed_but_stopped_first_on_request(door: FrontDoor, spec: SpecWriter) -> None:
    door.navarch("submit", spec("busy", "echo up; sleep 300"))
    refused(door.navarch("rm", "busy"), 1, "busy is", "navarch stop busy")
    done = door.navarch("rm", "--force", "busy")
    assert done.returncode == 0 and "busy removed" in done.stdout


def test_ctrl_c_leaves_the_job_running_and_says_so(door: FrontDoor, spec: SpecWriter) -> None:
    follower = subprocess.Popen(
        door.command("submit", spec("kept", "while true; do echo tick; sleep 0.1; done"), "--follow"),
        env=door.environ(), cwd=door.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # even if it is ignored here
    )  # fmt: skip
    assert follower.stdout is not None
    while "tick" not in follower.stdout.readline():
        assert follower.poll() is None
    follower.send_signal(signal.SIGINT)
    _, said = follower.communicate(timeout=20)
    assert follower.returncode == 130
    assert "Left kept running." in said and "navarch logs -f kept" in said and "Traceback" not in said
    with door.client() as client:
        until(lambda: client.job("kept").state != "provisioning", "the job's state to follow its first line")
        assert client.job("kept").state == "running"
    assert "kept is stopped" in door.navarch("stop", "kept", "--wait").stdout


def test_a_terminal_sees_progress_below_the_log(door: FrontDoor, spec: SpecWriter) -> None:
    script = (
        'for step in $(seq 1 20); do echo \'@navarch {"event": "metrics", "step": \'$step\', "total_steps": 20, '
        '"values": {"loss": 1.5}}\'; echo line $step; sleep 0.1; done'
    )
    shown = on_a_terminal(door, "submit", spec("bar", script), "--follow")
    assert "line 20" in shown and "step 20/20" in shown and "bar" in shown and "━" in shown
    assert "succeeded" in shown


SPITEFUL = r"""
printf 'log \033]52;c;ZXZpbA==\007\033[2J\302\233 end\n'
C='\u001b]52;c;ZXZpbA==\u0007\u001b[2J\u009b'
echo '@navarch {"event": "metrics", "step": 1, "total_steps": 1, "values": {"loss": 1, "acc'$C'": 1}}'
echo '@navarch {"event": "metrics", "step": 2, "total_steps": 2, "values": {"loss": 2, "acc'$C'": 2}}'
echo '@navarch {"event": "sample", "title": "t'$C'", "columns": ["c'$C'", "d"], "rows": [["r'$C'", "[link=http://x]s[/]"]]}'
mkdir -p "$NAVARCH_RUN_DIR/model$(printf '\033')[2J"
echo '@navarch {"event": "artifact", "kind": "model", "path": "model'$C'"}'
echo '@navarch {"event": "error", "kind": "bad_config", "message": "m'$C'"}'
exit 3
"""


def test_nothing_that_a_job_says_is_obeyed_by_the_terminal(door: FrontDoor, spec: SpecWriter) -> None:
    file = spec("spiteful", SPITEFUL.strip())
    followed = door.navarch("submit", file, 'env.EVIL="\\e[2J[/] [link=http://x]"', "--follow")
    assert followed.returncode == 1, followed.stderr
    controls = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
    assert not controls.search(followed.stdout + followed.stderr) and "log  end" in followed.stdout
    for command in (
        "ps -a", "show spiteful", "show spiteful --samples", "show spiteful --spec", "show spiteful --json",
        "logs spiteful", "logs -t spiteful", "metrics spiteful", "metrics --all spiteful", "events spiteful",
        "artifact ls",
    ):  # fmt: skip
        shown = on_a_terminal(door, *command.split())
        ours = re.sub(r"\x1b\[[0-9;]*m|\r\n", "", shown)
        assert not controls.search(ours), (command, ours)
    raw = door.navarch("logs", "spiteful", "--raw").stdout
    assert "log \x1b]52;c;ZXZpbA==\x07\x1b[2J\x9b end" in raw, "that is what --raw is for"


def on_a_terminal(door: FrontDoor, *arguments: str) -> str:
    """What a person sees: the command runs on a pseudo-terminal."""
    ours, theirs = pty.openpty()
    environment = {**door.environ(), "TERM": "xterm", "LINES": "40"}
    process = subprocess.Popen(
        door.command(*arguments), env=environment, cwd=door.folder, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    got = b""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if select.select([ours], [], [], 0.2)[0]:
            try:
                chunk = os.read(ours, 65536)
            except OSError:
                break
            if not chunk:
                break
            got += chunk
    assert process.wait(timeout=10) == 0
    os.close(ours)
    return got.decode(errors="replace")


def test_names_of_jobs_are_completed(door: FrontDoor, spec: SpecWriter) -> None:
    door.navarch("submit", spec("complete-me", "true"), "--follow")
    words = {"_NAVARCH_COMPLETE": "complete_bash", "COMP_WORDS": "navarch show compl", "COMP_CWORD": "2"}
    done = subprocess.run(
        [str(Path(door.command()[0]).with_name("navarch"))],
        env={**door.environ(), **words}, cwd=door.folder, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert "complete-me" in done.stdout, done.stderr


def test_an_artifact_is_imported_used_by_its_name_and_removed(door: FrontDoor) -> None:
    model = door.folder / "shared" / "tiny-model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    done = door.navarch("artifact", "import", "shared/tiny-model", "--name", "tiny")
    assert done.returncode == 0 and "model: artifact:tiny" in done.stdout, done.stderr
    assert re.search(r"tiny +1 +model", door.navarch("artifact", "ls").stdout)
    assert str(model) in door.navarch("artifact", "show", "tiny").stdout
    refused(door.navarch("artifact", "import", "shared/tiny-model", "--name", "tiny"), 1, "'tiny' exists")
    again = door.navarch("artifact", "import", "shared/tiny-model", "--name", "tiny", "--new-version")
    assert again.returncode == 0 and "tiny@2 model" in again.stdout, again.stderr
    refused(door.navarch("artifact", "rm", "tiny"), 1, "versions 1, 2", "navarch artifact rm tiny@1")
    assert door.navarch("artifact", "rm", "tiny@2").returncode == 0
    refused(door.navarch("artifact", "import", "shared/none.gguf"), 1, "no file or folder shared/none.gguf")
    (door.folder / "shared" / "broken.gguf").write_bytes(b"GGUF, but not really")
    refused(door.navarch("artifact", "import", "shared/broken.gguf"), 1, "broken.gguf could not be converted")
    assert door.navarch("artifact", "rm", "tiny").returncode == 0 and model.is_dir()
    refused(door.navarch("artifact", "show", "tiny"), 1, "There is no artifact 'tiny'")


def test_images_are_listed_and_shown(door: FrontDoor, system_image: str) -> None:
    assert system_image in door.navarch("image", "ls").stdout
    assert "sha256:" in door.navarch("image", "show", system_image).stdout
    refused(door.navarch("image", "show", "nobody/built-this"), 1, "nobody/built-this")
    refused(door.navarch("image", "build", "colosalai-0.3.0"), 1, "Did you mean 'colossalai-0.3.0'")


def test_without_a_control_plane_every_command_says_how_to_start_one(tmp_path: Path, door: FrontDoor) -> None:
    elsewhere = {"NAVARCH_URL": "http://127.0.0.1:9"}
    for command in (["ps"], ["logs", "x", "-f"], ["host", "ls"], ["stop", "x"], ["ssh", "x"]):
        refused(door.navarch(*command, environment=elsewhere), 3, "No control plane answers", "navarch up")


def test_up_refuses_what_can_not_work(door: FrontDoor, tmp_path: Path) -> None:
    other = str(tmp_path / "other")
    refused(door.navarch("up", "--port", str(door.port), "--data-dir", other), 1, f"Port {door.port}", "--port")
    refused(door.navarch("up", "--port", "0"), 1, "already uses", "navarch down")


def test_in_the_background_and_with_a_token(tmp_path: Path) -> None:
    door = FrontDoor(tmp_path)
    try:
        up = door.navarch("up", "--detach", "--port", "0", "--host", "0.0.0.0", "--json")
        assert up.returncode == 0, up.stderr
        token = json.loads(up.stdout)["token"]
        assert "already runs" in door.navarch("up", "--detach", "--port", "0").stdout
        assert door.navarch("ps").returncode == 0
        elsewhere = {"NAVARCH_DATA_DIR": str(tmp_path / "no"), "NAVARCH_CONFIG_DIR": str(tmp_path / "nowhere")}
        url = Endpoint.read(door.data_dir)
        assert url is not None
        elsewhere["NAVARCH_URL"] = url.url
        refused(door.navarch("ps", environment=elsewhere), 1, "no token", "NAVARCH_TOKEN")
        assert door.navarch("ps", environment={**elsewhere, "NAVARCH_TOKEN": token}).returncode == 0
        assert door.navarch("ps", environment={"NAVARCH_TOKEN": token}).returncode == 0
        for name in ("navarch.log", "start.log"):
            assert token not in (door.data_dir / name).read_text(), "it is shown once"
        assert "Navarch has ended." in door.navarch("down").stdout
        assert "No control plane was running on" in door.navarch("down").stdout
    finally:
        door.end()


PROBE = """
import sys
from service.cli.main import app
sys.argv = ["navarch", "ps"]
try:
    app()
except SystemExit:
    pass
heavy = ("fastapi", "sqlalchemy", "docker", "paramiko", "torch", "plotext")
print([name for name in heavy if name in sys.modules])
"""


def test_starting_the_command_is_quick(door: FrontDoor) -> None:
    """`navarch ps` must not load the server: the modules that would make it slow stay out."""
    probe = [door.command()[0], "-P", "-c", PROBE]
    done = subprocess.run(probe, env=door.environ(), capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr


def test_the_progress_of_waiting_is_shown(door: FrontDoor, spec: SpecWriter, system_image: str) -> None:
    door.navarch("submit", spec("first", "sleep 300"), "ports=['25980:80']")
    door.navarch("submit", spec("second", "true"), "ports=['25980:80']")
    until(
        lambda: "port 25980 of local belongs to job first" in door.navarch("ps").stdout.replace("\n", " "),
        "why it waits",
    )
    door.navarch("stop", "first", "second", "--wait")
