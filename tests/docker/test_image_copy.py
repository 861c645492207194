"""Images go from one engine to another without a registry, and only what the other lacks of them."""

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from service.access.mounts import MountRules
from service.backends.docker.engine import DockerHost
from service.backends.docker.image_copy import PARTIAL, ImageCopy
from service.backends.docker.mounting import Mounting
from service.backends.docker.spool import Spool
from tests.docker.engines import OwnEngine, own_engine

__all__ = ["own_engine"]


@pytest.fixture(scope="module")
def tagged(docker_client: docker.DockerClient, system_image: str) -> Iterator[str]:
    """The system image with one more layer of 3 MB."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        entry = tarfile.TarInfo("new")
        entry.size = 3_000_000
        archive.addfile(entry, io.BytesIO(os.urandom(entry.size)))
    container = docker_client.containers.create(system_image, ["true"])
    container.put_archive("/", content.getvalue())
    container.commit("navarch-test/copied", "2")
    container.remove()
    yield "navarch-test/copied:2"
    docker_client.images.remove("navarch-test/copied:2", force=True)


def test_only_missing_layers_move_and_a_copy_that_broke_off_goes_on(
    docker_client: docker.DockerClient, own_engine: OwnEngine, tagged: str, system_image: str, tmp_path: Path
) -> None:
    mounting = Mounting(MountRules(tmp_path, ()))
    source, target = DockerHost("unix:///var/run/docker.sock", mounting), DockerHost(own_engine.url, mounting)
    spool, there = Spool(tmp_path / "layers"), docker.DockerClient(base_url=own_engine.url, timeout=300)

    def copy() -> ImageCopy:
        made = target.copy(source, tagged, spool, "local")
        assert isinstance(made, ImageCopy)
        return made

    second = copy()
    says = list(second)
    assert second.moved.layers == 1 and 3_000_000 < second.moved.bytes < 3_100_000, says
    assert there.images.get(tagged).id == docker_client.images.get(tagged).id

    for reference in (tagged, system_image):
        there.images.remove(reference, force=True)
    first = copy()
    for _ in first:
        if first.moved.layers:
            first.close()
    layers = len(docker_client.api.inspect_image(tagged)["RootFS"]["Layers"])
    assert 1 <= first.moved.layers < layers and not there.images.list(tagged)
    rest = copy()
    assert any("MB/s" in line for line in list(rest))
    assert rest.moved.layers + first.moved.layers == layers
    assert there.images.get(tagged).id == docker_client.images.get(tagged).id
    assert not there.images.list(all=True, filters={"label": PARTIAL}) and not spool.present()
    there.close()
