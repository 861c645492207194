"""An artifact's digest: what `sha256sum` says, filled in when its files don't change any more."""

import hashlib
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.access.mounts import MountRules
from service.artifacts import digests as reading
from service.artifacts.digests import Digests, Interrupted
from service.store.database import Database
from service.store.tables import Artifact, Job


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "sub" / "weights").write_bytes(bytes(range(256)) * 9000)
    (folder / "sub-a").write_text("sorts before sub/, by bytes")
    (folder / "linked").symlink_to(folder / "config.json")
    (folder / "two words").write_text("a name with a space")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_text("behind a linked folder: not counted")
    (folder / "folder").symlink_to(tmp_path / "elsewhere")
    return folder


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path}/test.db")
    database.migrate()
    yield database
    database.close()


def digest_of(path: Path, stopping: threading.Event | None = None) -> tuple[str, int]:
    with (checked := MountRules(path / "nowhere", [path.parent]).open(path, "It")).opened:
        return reading.digest_of(checked, stopping)


def test_digest_is_what_sha256sum_says(folder: Path) -> None:
    told = subprocess.run(
        "find . -xtype f -printf '%P\\0' | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum",
        shell=True, cwd=folder, capture_output=True, text=True, check=True,
    ).stdout.split()[0]  # fmt: skip
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    assert digest_of(folder) == (f"sha256:{told}", size)
    assert digest_of(folder / "config.json") == ("sha256:" + hashlib.sha256(b"{}").hexdigest(), 2)


def test_digest_changes_with_a_name_and_with_a_byte(folder: Path) -> None:
    seen = {digest_of(folder)[0]}
    (folder / "sub-a").rename(folder / "sub-b")
    seen.add(digest_of(folder)[0])
    (folder / "sub-b").write_text("Sorts before sub/, by bytes")
    seen.add(digest_of(folder)[0])
    assert len(seen) == 3


def test_an_end_of_the_control_plane_interrupts_it(folder: Path) -> None:
    stopping = threading.Event()
    stopping.set()
    with pytest.raises(Interrupted):
        digest_of(folder, stopping)


def test_filled_in_once_the_job_has_ended(database: Database, folder: Path, tmp_path: Path) -> None:
    with database.write() as session:
        session.add(Job(owner_id="local", id="j", name="j", type="sft", document={}, state="running"))
        session.add(Artifact(owner_id="local", id="a", name="a", kind="model", path=str(folder), job_id="j"))
        session.add(Artifact(owner_id="local", id="b", name="b", kind="model", path=str(folder)))
        session.add(Artifact(owner_id="local", id="c", name="c", kind="dataset", path=str(tmp_path / "gone")))
    digests = Digests(database, MountRules(tmp_path / "data", [tmp_path]))
    digests.start()
    try:
        assert wait(database, "b").digest == digest_of(folder)[0]
        gone = wait(database, "c")
        assert gone.digest is None and "does not exist" in (gone.message or "")
        with database.write() as session:
            row, job = session.get(Artifact, "a"), session.get(Job, "j")
            assert row is not None and job is not None and row.digest is None
            (folder / "config.json").write_text("{ }")  # what it wrote last
            job.state, job.finished_at = "succeeded", time.time()
        done = wait(database, "a")
        assert (done.digest, done.size) == digest_of(folder)
    finally:
        digests.stop()


def test_nothing_outside_of_the_root_is_read(database: Database, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "model").mkdir()
    (root / "model" / "shadow").symlink_to("/etc/passwd")
    (root / "swapped").symlink_to("/etc")
    with database.write() as session:
        session.add(Artifact(owner_id="local", id="a", name="a", kind="model", path=str(root / "model")))
        session.add(Artifact(owner_id="local", id="b", name="b", kind="model", path=str(root / "swapped")))
    digests = Digests(database, MountRules(tmp_path / "data", [root]))
    digests.start()
    try:
        assert "model/shadow" in (wait(database, "a").message or "")
        assert "leads to /etc" in (wait(database, "b").message or "")
        assert wait(database, "a").digest is wait(database, "b").digest is None
    finally:
        digests.stop()


def wait(database: Database, artifact: str) -> Artifact:
    """The artifact when it has a digest or a message."""
    deadline = time.monotonic() + 15
    while True:
        with database.read() as session:
            row = session.get(Artifact, artifact)
        assert row is not None and time.monotonic() < deadline
        if row.digest or row.message:
            return row
        time.sleep(0.02)
