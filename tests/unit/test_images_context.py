"""A build's context: byte for byte the same for the same inputs; and the wheel of the training package."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from images.context import Context, make_context
from images.errors import ImageError
from images.network import Network
from images.recipes import load_recipe
from images.wheel import build_wheel

CPU = load_recipe("cpu")
PEM = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"


def names(context: Context) -> set[str]:
    with context.open_tar() as file, tarfile.open(fileobj=file) as archive:
        return set(archive.getnames())


def content(context: Context) -> bytes:
    with context.open_tar() as file:
        return file.read()


def test_the_system_layer_needs_nothing_of_the_training_layer() -> None:
    assert names(make_context(CPU, Network(), None, training=False)) == {
        "Dockerfile",
        "export-python.sh",
        "fetch-packages.sh",
        "install-system.sh",
        "keep.tar",
        "navarch-entrypoint",
        "navarch-supervise",
        "network",
        "sshd_config",
        "training-wheel",
        "wheelhouse",
    }


def test_the_same_inputs_give_the_same_bytes_and_digest(tmp_path: Path) -> None:
    (tmp_path / "b-1-py3-none-any.whl").write_bytes(b"b")
    (tmp_path / "a-1-py3-none-any.whl").write_bytes(b"a")
    (tmp_path / "log").write_text("not a wheel")
    first = make_context(CPU, Network(), tmp_path, training=True)
    (tmp_path / "a-1-py3-none-any.whl").touch()
    again = make_context(CPU, Network(), tmp_path, training=True)
    before = first.digest
    assert before == again.digest
    assert content(first) == content(again)
    assert {"wheelhouse/a-1-py3-none-any.whl", "wheelhouse/b-1-py3-none-any.whl"} <= names(first)
    assert "wheelhouse/log" not in names(first)

    (tmp_path / "a-1-py3-none-any.whl").write_bytes(b"changed")
    assert make_context(CPU, Network(), tmp_path, training=True).digest != before


def test_scripts_can_be_run_whatever_the_modes_on_this_disk() -> None:
    with make_context(CPU, Network(), None, training=True).open_tar() as file, tarfile.open(fileobj=file) as archive:
        modes = {member.name: member.mode for member in archive}
    assert modes["navarch-entrypoint"] == modes["navarch-supervise"] == modes["install-training.sh"] == 0o755
    assert modes["sshd_config"] == 0o644


def test_each_recipe_gets_its_own_torch() -> None:
    found = {
        name: make_context(load_recipe(name), Network(), None, training=True).contents["torch.txt"].decode()
        for name in ("cpu", "colossalai-0.3.0", "colossalai-0.5.0")
    }
    assert "+cu118" in found["colossalai-0.3.0"]
    assert len(set(found.values())) == 3


def test_authorities_go_in_for_the_build_and_stay_only_when_asked(tmp_path: Path) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.write_text(PEM + PEM)

    def kept(network: Network) -> list[str]:
        packed = make_context(CPU, network, None, training=False)
        assert packed.contents["network/ca-bundle.pem"] == bundle.read_bytes()
        with tarfile.open(fileobj=io.BytesIO(packed.contents["keep.tar"])) as archive:
            return archive.getnames()

    assert kept(Network(ca_bundle=bundle)) == []
    assert kept(Network(ca_bundle=bundle, index_url="https://index.example/simple", keep=True)) == [
        "etc/pip.conf",
        "usr/local/share/ca-certificates/navarch/000.crt",
        "usr/local/share/ca-certificates/navarch/001.crt",
    ]


@pytest.mark.parametrize(
    ("text", "told"), [(None, "can't be read"), ("no certificate\n", "no certificates in PEM form")]
)
def test_a_wrong_ca_bundle_is_named(tmp_path: Path, text: str | None, told: str) -> None:
    bundle = tmp_path / "ca.pem"
    if text is not None:
        bundle.write_text(text)
    with pytest.raises(ImageError, match=told) as caught:
        make_context(CPU, Network(ca_bundle=bundle), None, training=False)
    assert str(bundle) in str(caught.value)


def test_a_wheelhouse_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="is not a folder"):
        make_context(CPU, Network(), tmp_path / "absent", training=True)


def test_pip_installs_the_training_package_from_the_wheel(tmp_path: Path) -> None:
    source = tmp_path / "training"
    (source / "stages/__pycache__").mkdir(parents=True)
    (source / "__init__.py").write_text("")
    (source / "stages/__init__.py").write_text("")
    (source / "stages/__pycache__/x.pyc").write_bytes(b"")
    (source / "template.jinja").write_text("{{ messages }}")
    (source / "cli.py").write_text("def main():\n    print('trained')\n    return 3\n")
    name, wheel = build_wheel(source)
    assert wheel == build_wheel(source)[1]
    assert not [entry for entry in zipfile.ZipFile(io.BytesIO(wheel)).namelist() if "__pycache__" in entry]

    (tmp_path / name).write_bytes(wheel)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(tmp_path / "site")]
    subprocess.run([*pip, str(tmp_path / name)], check=True, timeout=60)
    assert (tmp_path / "site/training/template.jinja").is_file()
    program = subprocess.run([tmp_path / "site/bin/navarch-train"], env={"PYTHONPATH": str(tmp_path / "site")},
                             capture_output=True, text=True, timeout=60, check=False)  # fmt: skip
    assert (program.stdout, program.returncode) == ("trained\n", 3)


def test_the_real_training_package_is_packed_whole() -> None:
    _, wheel = build_wheel()
    packed = set(zipfile.ZipFile(io.BytesIO(wheel)).namelist())
    source = Path(__file__).parents[2] / "training"
    assert {path.relative_to(source.parent).as_posix() for path in source.rglob("*.py")} <= packed
