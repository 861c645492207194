"""Which paths jobs may use: below a root, and never the data folder or the engine's socket, however it is spelled."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from service.access.mounts import MountRules
from service.contract.errors import Problem


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home that is a mount root and has the data folder in it, as the defaults make it."""
    home = tmp_path / "home"
    (home / ".navarch" / "jobs" / "j1" / "run" / "model").mkdir(parents=True)
    (home / ".navarch" / "secret.key").write_text("k")
    (home / "data").mkdir()
    (home / "data" / "train.jsonl").write_text("{}")
    (home / "top.jsonl").write_text("{}")
    return home


@pytest.fixture
def rules(home: Path) -> MountRules:
    return MountRules(home / ".navarch", [home])


def refusal(rules: MountRules, path: Path | str) -> Problem:
    with pytest.raises(Problem) as refused:
        rules.check(path, "The mount")
    return refused.value


def test_what_lies_below_a_root_is_allowed(rules: MountRules, home: Path) -> None:
    assert rules.check(home / "data", "The mount") == home / "data"
    assert rules.check(f"/{home}//data/./train.jsonl", "The mount") == home / "data/train.jsonl"


@pytest.mark.parametrize(
    "spelled",
    [".navarch", ".navarch/jobs", ".navarch/secret.key", ".", "data/../.navarch", "link", "link/jobs/j1/run", "up"],
)
def test_the_data_folder_and_what_contains_it_are_not(rules: MountRules, home: Path, spelled: str) -> None:
    (home / "link").symlink_to(".navarch")
    (home / "up").symlink_to("data/..")
    for text in (f"{home}/{spelled}", f"//{str(home).lstrip('/')}//{spelled}/"):
        problem = refusal(rules, text)
        assert problem.code == "mount_not_allowed" and "data folder" in problem.detail


def test_a_root_above_the_home_is_no_way_round(home: Path) -> None:
    for root in (home.parent, Path("/")):
        rules = MountRules(home / ".navarch", [root])
        for path in (home, home.parent, root):
            assert "data folder" in refusal(rules, path).detail
        assert rules.check(home / "data", "It") == home / "data"


def test_a_file_beside_the_data_folder_comes_with_its_folder(rules: MountRules, home: Path) -> None:
    problem = refusal(rules, home / "top.jsonl")
    assert problem.code == "mount_not_allowed" and "comes with its folder" in problem.detail


def test_the_engines_socket_is_not_given_away(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "other").mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(run / "docker.sock"))
        rules = MountRules(tmp_path / "data", [tmp_path], f"unix://{run}/docker.sock")
        assert "engine's socket" in refusal(rules, run).detail
        assert "neither a folder nor a file" in refusal(rules, run / "docker.sock").detail
        assert rules.check(run / "other", "It") == run / "other"


def test_links_out_of_the_root_are_named(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "d").symlink_to("/etc")
    problem = refusal(MountRules(tmp_path / "data", [root]), root / "d")
    assert problem.code == "mount_not_allowed" and "leads to /etc" in problem.detail


@pytest.mark.parametrize("bad", ["{root}/a\0b", "{root}/loop", "{root}/" + "x" * 300, "{root}/missing", "relative"])
def test_bad_paths_are_problems(tmp_path: Path, bad: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "loop").symlink_to("loop")
    problem = refusal(MountRules(tmp_path / "data", [root]), bad.format(root=root))
    assert problem.code in ("path_missing", "mount_not_allowed") and problem.hint


def test_artifacts_in_run_folders_are_navarchs_own(rules: MountRules, home: Path) -> None:
    run = home / ".navarch" / "jobs" / "j1" / "run"
    checked = rules.open_any(run / "model", "The mount")
    assert (checked.opened.path, checked.anchor) == (run / "model", run)
    checked.close()
    for outside in ("jobs/j1", "jobs", "secret.key", "jobs/j1/run/../../..", "jobs/j1/ssh"):
        with pytest.raises(Problem):
            rules.open_any(home / ".navarch" / outside, "The mount")
    (run / "stolen").symlink_to(home / ".navarch")
    with pytest.raises(Problem, match="leads out of"):
        rules.open_any(run / "stolen", "The mount")


@pytest.fixture
def alias(home: Path, tmp_path: Path) -> Iterator[Callable[[Path], Path]]:
    """Bind-mounts a folder under another name; only root can."""
    if os.geteuid() != 0:
        pytest.skip("bind mounts need root")
    made: list[Path] = []

    def bind(source: Path) -> Path:
        target = tmp_path / f"alias-{len(made)}" / "here"
        target.mkdir(parents=True)
        subprocess.run(["mount", "--bind", str(source), str(target)], check=True)
        made.append(target)
        return target

    yield bind
    for target in made:
        subprocess.run(["umount", str(target)], check=True)


def test_bind_mounts_of_the_data_folder_are_it(home: Path, alias: Callable[[Path], Path], tmp_path: Path) -> None:
    (home / ".navarch" / "jobs" / "other").mkdir()
    rules = MountRules(home / ".navarch", [tmp_path])
    for source in (home / ".navarch", home, home / ".navarch" / "jobs"):
        there = alias(source)
        for path in (there, there.parent):
            problem = refusal(rules, path)
            assert "data folder" in problem.detail, path
    inner = alias(home / ".navarch" / "jobs") / "other"
    assert "data folder" in refusal(rules, inner).detail
    harmless = alias(home / "data")
    assert rules.check(harmless, "The mount") == harmless
