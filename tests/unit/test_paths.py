"""Paths that jobs can write to are opened without ever leaving their folder, whatever links are put in the way."""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from pathlib import Path

import pytest

from service.access.paths import Outside, files_below, open_below, remove_tree


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with files and folders, beside something that it must not lead to."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("secret")
    root = tmp_path / "root"
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "b" / "file").write_text("inside")
    return root


def read(root: Path, relative: str) -> str:
    with open_below(root, relative) as opened, os.fdopen(opened.readable()) as file:
        return file.read()


@pytest.mark.parametrize(
    ("link", "target", "asked"),
    [
        ("to-folder", "a/b", "to-folder/file"),
        ("a/to-sibling", "b/file", "a/to-sibling"),
        ("a/b/up", "../../a/b/file", "a/b/up"),
        ("absolute", "{root}/a/b", "absolute/file"),
        ("chain", "to-chain", "chain/file"),
    ],
)
def test_links_that_stay_inside_are_followed(root: Path, link: str, target: str, asked: str) -> None:
    (root / "to-chain").symlink_to("a/./b//")
    (root / link).symlink_to(target.format(root=root))
    assert read(root, asked) == "inside"
    with open_below(root, asked) as opened:
        assert opened.path == root / "a/b/file"


@pytest.mark.parametrize(
    ("link", "target", "asked"),
    [
        ("out", "{root}/../outside", "out/secret"),
        ("out", "../outside", "out/secret"),
        ("out", "/etc", "out/passwd"),
        ("a/out", "../../outside/secret", "a/out"),
        ("out", "{root}-beside", "out"),
        ("out", "/proc/self/root/etc", "out/passwd"),
        ("out", "a/../../outside", "out/secret"),
    ],
)
def test_links_that_lead_out_are_refused(root: Path, link: str, target: str, asked: str) -> None:
    (root / link).symlink_to(target.format(root=root))
    with pytest.raises(Outside, match="leads out of"):
        open_below(root, asked)


def test_dots_do_not_climb_out(root: Path) -> None:
    with pytest.raises(Outside):
        open_below(root, "../outside/secret")
    with pytest.raises(Outside):
        open_below(root, "a/../../outside/secret")
    assert read(root, "a/../a/b/file") == "inside"


def test_loops_files_as_folders_and_missing_ones(root: Path) -> None:
    (root / "one").symlink_to("two")
    (root / "two").symlink_to("one")
    for asked, code in (("one", errno.ELOOP), ("a/b/file/x", errno.ENOTDIR), ("no", errno.ENOENT)):
        with pytest.raises(OSError) as refused:
            open_below(root, asked)
        assert refused.value.errno == code
        assert refused.value.filename == str(root / asked)


def test_a_root_behind_a_link_is_that_folder(root: Path, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(root)
    (root / "spelled").symlink_to(tmp_path / "alias" / "a")
    assert read(tmp_path / "alias", "spelled/b/file") == "inside"


def test_what_was_opened_stays_when_its_name_is_given_to_something_else(root: Path, tmp_path: Path) -> None:
    with open_below(root, "a/b") as opened:
        (root / "a" / "b").rename(root / "moved")
        (root / "a" / "b").symlink_to(tmp_path / "outside")
        fd = opened.readable()
        try:
            assert [entry.name for entry in os.scandir(fd)] == ["file"]
        finally:
            os.close(fd)


def test_a_swapper_never_wins(root: Path, tmp_path: Path) -> None:
    """One thread swaps a folder for a link to outside as fast as it can; each opening is inside or refused."""
    stop = threading.Event()
    (root / "a" / "b" / "secret").write_text("inside")

    def swap() -> None:
        while not stop.is_set():
            (root / "a" / "b").rename(root / "a" / "c")
            (root / "a" / "b").symlink_to(tmp_path / "outside")
            (root / "a" / "b").unlink()
            (root / "a" / "c").rename(root / "a" / "b")

    thread = threading.Thread(target=swap)
    thread.start()
    seen: set[str] = set()
    try:
        deadline = time.monotonic() + 60
        while not {"inside", "Outside"} <= seen:
            assert time.monotonic() < deadline, seen
            try:
                seen.add(read(root, "a/b/secret"))
            except OSError as error:
                assert error.errno in (errno.ENOENT, errno.EXDEV, errno.EAGAIN), error
                seen.add(type(error).__name__)
    finally:
        stop.set()
        thread.join()
    assert "secret" not in seen


def test_no_descriptor_is_left_open(root: Path) -> None:
    (root / "out").symlink_to("/etc")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for asked in ("a/b/file", "out", "a/b/file/x", "no", "..", "a/b/.."):
        try:
            open_below(root, asked).close()
        except OSError:
            continue
    with open_below(root, "a") as folder:
        assert [name for name, _ in files_below(folder, root)] == [b"b/file"]
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_files_of_a_folder_pass_over_what_is_no_file(root: Path) -> None:
    os.mkfifo(root / "a" / "fifo")  # opening it would wait for ever
    (root / "a" / "to-file").symlink_to("b/file")
    (root / "a" / "to-folder").symlink_to("b")
    (root / "a" / "dangling").symlink_to("nothing")
    (root / "a" / "to-fifo").symlink_to("fifo")
    with open_below(root, "a") as folder:
        assert [name for name, _ in files_below(folder, root)] == [b"b/file", b"to-file"]


def test_a_link_to_a_file_outside_ends_the_listing(root: Path) -> None:
    (root / "a" / "stolen").symlink_to("/etc/passwd")
    with open_below(root, "a") as folder, pytest.raises(Outside):
        list(files_below(folder, root))


def deep(folder: Path, levels: int) -> None:
    """Folders in folders, deeper than any path may name."""
    at = os.open(folder, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("d", dir_fd=at)
        below = os.open("d", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=at))
    os.close(at)


def test_a_folder_is_removed_however_deep_and_links_are_removed_as_such(root: Path, tmp_path: Path) -> None:
    deep(root, 3000)
    (root / "to-folder").symlink_to(tmp_path / "outside")
    (root / "a" / "to-file").symlink_to(tmp_path / "outside" / "secret")
    (root / "a" / "b" / "up").symlink_to("..")
    os.mkfifo(root / "a" / "fifo")
    before = len(list(Path("/proc/self/fd").iterdir()))
    remove_tree(root)
    remove_tree(root)  # it is gone: nothing to do
    assert [path.name for path in tmp_path.iterdir()] == ["outside"]
    assert (tmp_path / "outside" / "secret").read_text() == "secret"
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_what_is_nested_too_deeply_to_be_a_model_is_not_read(root: Path) -> None:
    deep(root / "a", 3000)
    with open_below(root, "a") as folder, pytest.raises(OSError, match="nested too deeply"):
        list(files_below(folder, root))
    remove_tree(root)


def test_a_link_in_place_of_the_folder_is_not_followed(root: Path, tmp_path: Path) -> None:
    (root / "link").symlink_to(tmp_path / "outside")
    with pytest.raises(OSError, match="link"):
        remove_tree(root / "link")
    assert (tmp_path / "outside" / "secret").exists()


def test_what_can_not_be_removed_is_told_and_the_rest_goes(root: Path) -> None:
    """As an ordinary account: a folder that its owner may not write is opened up, another account's stays."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another account")
    for path in (root.parent, root, root / "a", root / "a" / "b"):
        os.chown(path, 1234, 1234)
    (root / "theirs").mkdir()
    (root / "theirs" / "file").touch()
    (root / "a" / "b").chmod(0o000)
    pid = os.fork()
    if pid == 0:  # pragma: no cover
        status = 1
        try:
            os.chdir(root.parent)
            os.setgid(1234)
            os.setuid(1234)
            try:
                remove_tree(Path("root"))
            except PermissionError:
                status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert sorted(path.name for path in root.iterdir()) == ["theirs"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a device node, as a job's container can")
def test_a_device_is_not_opened(root: Path) -> None:
    os.mknod(root / "a" / "tape", stat.S_IFCHR | 0o600, os.makedev(1, 5))
    with open_below(root, "a/tape") as opened, pytest.raises(OSError, match="neither a file nor a folder"):
        opened.readable()
    with open_below(root, "a") as folder:
        assert [name for name, _ in files_below(folder, root)] == [b"b/file"]
