"""What a failed build is told, by what it printed."""

from __future__ import annotations

import pytest

from images.failures import explain, shorten
from images.recipes import load_recipe

ERROR = "The command '/bin/sh -c sh x' returned a non-zero code: 1"


@pytest.mark.parametrize(
    ("line", "code", "advice"),
    [
        ("OSError: [Errno 28] No space left on device", "disk_full", "docker system df"),
        ("SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED]", "tls_not_trusted", "--ca-bundle"),
        ("E: Temporary failure resolving 'mirror.example'", "network_unreachable", "--apt-mirror"),
        ("ERROR: No matching distribution found for torch==2.5.1+cu118", "package_missing", "--wheelhouse"),
        ("E: Unable to locate package tini", "package_missing", "--base"),
        ("something else", "build_failed", "whole log"),
    ],
)
def test_causes_are_told_apart(line: str, code: str, advice: str) -> None:
    error = explain(load_recipe("cpu"), ERROR, "RUN sh install.sh", ["before", line])
    assert error.code == code
    assert "'cpu'" in error.message
    assert "`RUN sh install.sh`" in error.message
    assert line in error.message
    assert advice in error.hint


def test_a_full_disk_of_the_engine_itself_is_recognised() -> None:
    error = explain(
        load_recipe("cpu"), "write /var/lib/docker/tmp/x: no space left on device", "COPY wheelhouse/ /", []
    )
    assert error.code == "disk_full"


def test_a_sentence_of_our_own_scripts_is_the_reason() -> None:
    tail = ["Python 3.8", "navarch: Python 3.8 of this base is too old"]
    assert ": Python 3.8 of this base is too old\n" in explain(load_recipe("cpu"), ERROR, "RUN sh x", tail).message
    progress = ["navarch: installing torch", "Segmentation fault"]
    assert f": {ERROR}\n" in explain(load_recipe("cpu"), ERROR, "RUN sh x", progress).message


def test_long_steps_are_cut() -> None:
    assert len(shorten("RUN " + "x" * 500)) == 100
    assert shorten("RUN  a \\\n   b") == "RUN a \\ b"
