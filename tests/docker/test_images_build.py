"""Images built from recipes on a real engine: what is in them, what is not, and what a failing build says."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import docker
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from docker.models.containers import Container

from images.build import STAGE_LABEL, BuildOptions, build, finish, with_network
from images.catalog import list_images, remove, remove_leftovers, resolve
from images.errors import ImageError
from images.recipes import Recipe, load_recipe

Run = Callable[..., Container]
MakeImage = Callable[[str], str]


@pytest.fixture(scope="module")
def make_image(docker_client: docker.DockerClient) -> Iterator[MakeImage]:
    """Builds a throw-away image from a Dockerfile's text."""
    tags = []

    def make(dockerfile: str) -> str:
        tag = f"navarch-test-{uuid.uuid4().hex[:8]}:latest"
        docker_client.images.build(fileobj=io.BytesIO(dockerfile.encode()), tag=tag, rm=True, forcerm=True)
        tags.append(tag)
        return tag

    yield make
    for tag in tags:
        docker_client.images.remove(tag, force=True)


@pytest.fixture
def tag(docker_client: docker.DockerClient) -> Iterator[str]:
    """A name for an image, removed after the test."""
    name = f"navarch-test-{uuid.uuid4().hex[:8]}:latest"
    yield name
    if docker_client.images.list(name=name):
        docker_client.images.remove(name, force=True)


def output(run_container: Run, image: str, script: str) -> str:
    container = run_container(image, ["bash", "-c", script])
    status = container.wait(timeout=60)["StatusCode"]
    log = container.logs().decode()
    assert status == 0, log
    return log


def layer_files(client: docker.DockerClient, image: str) -> Iterator[tuple[str, bytes]]:
    """Every file of every layer (also those that a later layer hides), and the image's own descriptions."""
    with tempfile.TemporaryFile() as file:
        for chunk in client.images.get(image).save():
            file.write(chunk)
        file.seek(0)
        with tarfile.open(fileobj=file) as archive:
            for member in archive:
                blob = archive.extractfile(member) if member.isfile() else None
                if blob is None:
                    continue
                if member.size < 512 or not tarfile.is_tarfile(blob):
                    blob.seek(0)
                    yield member.name, blob.read()
                    continue
                blob.seek(0)
                with tarfile.open(fileobj=blob) as layer:
                    for entry in layer:
                        content = layer.extractfile(entry) if entry.isfile() else None
                        if content is not None:
                            yield entry.name, content.read()


def test_an_unchanged_build_is_answered_at_once(docker_client: docker.DockerClient, system_image: str) -> None:
    again = finish(build(docker_client, "cpu", training=False))
    assert again.cached
    assert again.tag == system_image
    assert again.seconds < 5


def test_no_layer_of_an_image_holds_keys(docker_client: docker.DockerClient, system_image: str) -> None:
    names = []
    for name, content in layer_files(docker_client, system_image):
        names.append(name)
        assert not name.startswith("etc/ssh/ssh_host_"), name
        assert not name.endswith("authorized_keys"), name
        assert not content.startswith(b"-----BEGIN OPENSSH PRIVATE KEY-----"), name
    assert "usr/local/bin/navarch-entrypoint" in names


def test_what_the_base_brought_stays_first(
    docker_client: docker.DockerClient,
    system_image: str,
    make_image: Callable[[str], str],
    run_container: Run,
    tag: str,
) -> None:
    """A stand-in for hpcaitech/colossalai:0.3.0: conda's older Python first in PATH, a package list that is broken."""
    conda = "cd /opt/conda/bin && echo 'echo Python 3.9.16' > python && echo 'echo pip 21' > pip"
    base = make_image(
        f"FROM {system_image}\n"
        f"RUN rm /usr/local/bin/python && mkdir -p /opt/conda/bin && {conda} && chmod 755 python pip\n"
        "RUN echo 'deb http://expired.invalid/cuda /' > /etc/apt/sources.list.d/cuda.list\n"
        "ENV PATH=/opt/conda/bin:$PATH CUDA_HOME=/usr/local/cuda\n"
    )
    python = make_image(
        f"FROM {system_image}\n"
        "RUN cp /usr/bin/python3.11 /usr/local/bin/ && cp -a /usr/lib/python3.11 /usr/local/lib/\n"
    )
    recipe = replace(load_recipe("colossalai-0.3.0"), python=python, torch="cpu")  # saves fetching a compiler
    built = finish(build(docker_client, recipe, BuildOptions(tag=tag, base=base), training=False))
    assert built.tag == tag
    log = output(
        run_container,
        tag,
        "python; pip; /usr/local/bin/python --version; cat /etc/apt/sources.list.d/cuda.list; ls -d /packages /navarch;"
        " /opt/navarch-python/bin/python3 -c 'import ssl, sqlite3, sys; print(sys.prefix)'; echo $PATH $CUDA_HOME",
    )
    *lines, path = log.splitlines()
    assert lines == [
        "Python 3.9.16",
        "pip 21",
        "Python 3.9.16",
        "deb http://expired.invalid/cuda /",
        "ls: cannot access '/packages': No such file or directory",
        "ls: cannot access '/navarch': No such file or directory",
        "/opt/navarch-python",
    ]
    assert path.startswith("/opt/conda/bin:/usr/local/sbin:")
    assert path.endswith(":/opt/navarch/bin /usr/local/cuda")


def test_network_settings_stay_out_of_the_image_unless_asked(
    docker_client: docker.DockerClient, system_image: str, tmp_path: Path, tag: str, run_container: Run
) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.write_bytes(certificate("A Company's Authority"))
    secret_line = bundle.read_bytes().splitlines()[3]
    options = with_network(BuildOptions(tag=tag), ca_bundle=bundle, index_url="https://user:word@pypi.example/simple")
    recipe = Recipe(name="minimal", base=system_image, torch="cpu")

    finish(build(docker_client, recipe, options, training=False))
    for name, content in layer_files(docker_client, tag):
        assert secret_line not in content, name
        assert b"pypi.example" not in content, name

    finish(build(docker_client, recipe, with_network(options, keep=True), training=False))
    log = output(
        run_container, tag, "cat /etc/pip.conf; openssl verify -CApath /etc/ssl/certs /usr/local/share/ca-*/navarch/*"
    )
    assert "index-url = https://user:word@pypi.example/simple" in log
    assert log.rstrip().endswith(": OK")


def test_a_base_that_cannot_be_pulled_names_the_ways_out(docker_client: docker.DockerClient) -> None:
    options = BuildOptions(base="registry.invalid/team/cuda:12")
    with pytest.raises(ImageError) as caught:
        finish(build(docker_client, "colossalai-0.5.0", options))
    assert caught.value.code == "base_unavailable"
    assert "registry.invalid/team/cuda:12" in caught.value.message
    for way in ("--base", "docker load", "registry-mirrors", "`cpu`"):
        assert way in caught.value.hint


def test_a_failing_step_shows_its_last_lines(docker_client: docker.DockerClient, system_image: str, tag: str) -> None:
    recipe = Recipe(name="wrong", base=system_image, packages=("no-such-package",), torch="cpu")
    with pytest.raises(ImageError) as caught:
        finish(build(docker_client, recipe, BuildOptions(tag=tag), training=False))
    assert caught.value.code == "package_missing"
    assert "fetch-packages.sh" in caught.value.message
    assert "Unable to locate package no-such-package" in caught.value.message
    assert not docker_client.images.list(name=tag)


@pytest.fixture
def hanging(system_image: str, make_image: MakeImage) -> Recipe:
    """A recipe whose build hangs in a step: its base has an apt-get that sleeps."""
    base = make_image(
        f"FROM {system_image}\n"
        "RUN cd /usr/local/bin && printf '#!/bin/sh\\necho hanging; exec sleep 600\\n' > apt-get && chmod 755 apt-get\n"
    )
    return Recipe(name="hanging", base=base, torch="cpu")


def step_containers(client: docker.DockerClient) -> list[str]:
    """Containers in which a step of the hanging build runs."""
    found = client.api.containers(all=True, filters={"label": f"{STAGE_LABEL}=packages"})
    return [container["Id"] for container in found if "fetch-packages.sh" in container["Command"]]


def test_closing_a_build_stops_it_and_leaves_no_container(docker_client: docker.DockerClient, hanging: Recipe) -> None:
    events = build(docker_client, hanging, training=False)
    next(event for event in events if event.text == "hanging")
    assert step_containers(docker_client)
    events.close()
    gone_within(docker_client, 15)


def test_a_killed_build_leaves_no_container(docker_client: docker.DockerClient, hanging: Recipe) -> None:
    script = (
        "import docker\nfrom images.build import build\nfrom images.recipes import Recipe\n"
        f"for event in build(docker.from_env(timeout=600), {hanging!r}, training=False): print(event.text, flush=True)"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while process.stdout.readline() != "hanging\n":
        assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=10)
    gone_within(docker_client, 15)


def gone_within(client: docker.DockerClient, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while step_containers(client):
        remove_leftovers(client)
        assert time.monotonic() < deadline, "a container of the build is still there"
        time.sleep(0.2)


def test_a_second_build_of_a_recipe_waits_for_the_first(docker_client: docker.DockerClient, hanging: Recipe) -> None:
    first = build(docker_client, hanging, training=False)
    next(event for event in first if event.text == "hanging")
    second = build(docker_client, hanging, training=False)
    assert "waiting for it" in next(second).text
    assert len(step_containers(docker_client)) == 1
    first.close()
    next(event for event in second if event.text == "hanging")
    second.close()
    gone_within(docker_client, 15)


def test_an_image_in_use_is_not_removed(
    docker_client: docker.DockerClient, system_image: str, tag: str, run_container: Run
) -> None:
    docker_client.images.get(system_image).tag(tag)
    container = run_container(tag, ["true"])
    with pytest.raises(ImageError) as caught:
        remove(docker_client, tag)
    assert caught.value.code == "image_in_use"
    assert str(container.name) in caught.value.message


def test_images_are_listed_and_found_by_name(docker_client: docker.DockerClient, system_image: str) -> None:
    (listed,) = [image for image in list_images(docker_client) if system_image in image.tags]
    assert (listed.recipe, listed.target) == ("cpu", "system")
    assert resolve(docker_client, system_image).image_id == resolve(docker_client, listed.image_id).image_id
    with pytest.raises(ImageError) as caught:
        resolve(docker_client, "no-such-image")
    assert caught.value.code == "image_missing"
    assert system_image in caught.value.hint


def certificate(name: str) -> bytes:
    """A self-signed authority in PEM form."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=30))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
