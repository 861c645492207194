"""The serve command as it really runs: several processes, a drain on SIGTERM, and what happens when one is killed."""

from __future__ import annotations

import concurrent.futures
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

from tests.training.test_serving import make_folder, say

pytestmark = pytest.mark.timeout(900)
"""Servers start in processes of their own, which takes minutes on a busy machine."""


class Command:
    """`navarch-train serve` in a process of its own, with its output."""

    def __init__(self, *arguments: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        words = ["serve", f"port={self.port}", "host=127.0.0.1", *arguments]
        program = f"import sys; from training.cli import main; sys.exit(main({words!r}))"
        self.process = subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "NAVARCH_EVENTS": "1"},
        )  # fmt: skip
        self.lines: list[str] = []
        assert self.process.stdout is not None
        self._reader = threading.Thread(target=lambda out: self.lines.extend(out), args=(self.process.stdout,))
        self._reader.start()
        self.base = f"http://127.0.0.1:{self.port}"
        self.client = openai.OpenAI(base_url=f"{self.base}/v1", api_key="x", max_retries=0, timeout=60)

    def wait_until_ready(self) -> dict[str, Any]:
        wait_for(lambda: self.process.poll() is not None or any('"ready"' in line for line in self.lines), 240)
        assert self.process.poll() is None, self.lines
        found: dict[str, Any] = json.loads(self.line('"ready"').removeprefix("@navarch "))
        return found

    def line(self, words: str) -> str:
        found = [line for line in self.lines if words in line]
        assert found, (words, self.lines)
        return found[0]

    def pids(self) -> dict[str, int]:
        return {name: int(pid) for name, pid in re.findall(r"(decoder|http-\d+) (\d+)", self.line("processes"))}

    def wait(self) -> int:
        code = self.process.wait(timeout=40)
        self._reader.join(timeout=10)
        return code

    def close(self) -> None:
        for child in _children(self.process.pid):
            child.kill()
        self.process.kill()
        self.process.wait()
        self._reader.join(timeout=10)


def _children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def wait_for(done: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def command(folder: Path) -> Iterator[Command]:
    found = Command("--model", str(folder), "max_length=512", "http_processes=2")
    yield found
    found.close()


def test_a_running_request_ends_as_it_should_when_sigterm_comes(command: Command) -> None:
    ready = command.wait_until_ready()
    assert ready["url_path"] == "/v1" and ready["port"] == command.port
    assert sorted(command.pids()) == ["decoder", "http-0", "http-1"]

    def ask(_: int) -> str:  # a new connection each: both HTTP processes get some
        with httpx.Client(base_url=command.base, timeout=60) as client:
            body = {"messages": say("same"), "temperature": 0, "max_tokens": 12}
            return str(client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"])

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        assert len(set(pool.map(ask, range(16)))) == 1
    metrics = httpx.get(f"{command.base}/metrics").text
    spent = {name: float(value) for name, value in re.findall(r'cpu_seconds\{process="([^"]+)"\} (\S+)', metrics)}
    assert sorted(spent) == ["decoder", "http-0", "http-1"] and all(value > 0 for value in spent.values())
    assert 'device_seconds_total{doing="decode"}' in metrics and "navarch_serve_steps_total" in metrics

    stream = command.client.chat.completions.create(
        model="tiny", messages=say("keep on"), max_tokens=400, temperature=0.9, seed=5, stream=True
    )
    events: list[Any] = [next(iter(stream)), next(iter(stream))]
    command.process.send_signal(signal.SIGTERM)
    events += list(stream)
    assert events[-1].choices[0].finish_reason in ("length", "stop")
    assert command.wait() == 0, command.lines
    assert command.line("draining")


def test_when_the_decoder_is_killed_requests_get_503_and_the_server_ends(command: Command) -> None:
    command.wait_until_ready()

    def ask() -> Any:
        body = {"messages": say("long"), "max_tokens": 400, "temperature": 1.5, "ignore_eos": True}
        return httpx.post(f"{command.base}/v1/chat/completions", json=body, timeout=60)

    events: list[str] = []

    def listen() -> None:
        body = {"messages": say("x"), "max_tokens": 400, "temperature": 1.5, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", f"{command.base}/v1/chat/completions", json=body, timeout=60) as answer:
            events.extend(line for line in answer.iter_lines() if line)

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        running, listening = pool.submit(ask), pool.submit(listen)
        wait_for(lambda: httpx.get(f"{command.base}/health").json()["running"] == 2, 20)
        os.kill(command.pids()["decoder"], signal.SIGKILL)
        answer = running.result()
        listening.result()
        new = ask()
        health = httpx.get(f"{command.base}/health")
    for found in (answer, new):
        assert found.status_code == 503, found.text
        error = found.json()["error"]
        assert error["type"] == "server_error" and error["code"] == "decoder_gone"
        assert "decoder process has ended" in error["message"]
    assert json.loads(events[-1].removeprefix("data: "))["error"]["code"] == "decoder_gone"
    assert health.status_code == 503 and health.json()["status"] == "failed"
    assert command.wait() == 70
    assert "the decoder process was killed by SIGKILL" in command.line('"error"')


def test_nothing_is_left_running_when_the_supervisor_is_killed(command: Command) -> None:
    command.wait_until_ready()
    parts = [psutil.Process(pid) for pid in command.pids().values()]
    command.process.kill()
    assert psutil.wait_procs(parts, timeout=20)[1] == []


def test_a_part_that_cannot_start_gives_its_own_exit_code(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    command = Command("--model", str(tmp_path / "empty"))
    try:
        assert command.wait() in (64, 66), command.lines
        assert command.line("error: ")
    finally:
        command.close()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        command = Command("--model", str(folder), f"port={taken.getsockname()[1]}")
        try:
            assert command.wait() == 64
            assert "choose another port" in command.line("error: ")
        finally:
            command.close()
