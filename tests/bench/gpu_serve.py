"""Measures the model server beside its engine: the real command, with clients in processes of their own.

python -m tests.bench.gpu_serve --shape 135m --codec FOLDER --seconds 80
python -m tests.bench.gpu_serve --shape tiny --codec FOLDER --device cpu     a trial run without a GPU
python -m tests.bench.gpu_serve --http --codec FOLDER       what HTTP alone costs, with a decoder that costs nothing
python -m tests.bench.gpu_serve --generator                 what the load generator can drive
Prints one JSON line per figure. `seconds` limits the whole run.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

from tests.bench.gpu_serve_load import START_SECONDS, Plan, question, run_load
from training.config.generation import GenerationConfig
from training.config.serving import ServeConfig
from training.serving.messages import Accepted, Answer, Command, Facts, Query, Status, Submit, Update

LENGTH = 1024
QUOTE = '"'


def say(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


# --- the engine alone, and the folder that is served


def prepare(shape: str, codec_folder: str, device: str, bits: int, clients: int, new: int, folder: Path) -> float:
    """Save a model of random weights with the codec; returns the tokens a second of the engine on it."""
    import torch

    from tests.bench.gpu_rollout import SHAPES, make
    from training.data.template import TextCodec
    from training.rollout import RolloutEngine, fuse_projections
    from training.serving.quantize import quantize_model

    codec = TextCodec.load(codec_folder)
    config = copy.deepcopy(SHAPES[shape])
    config.vocab_size = max(config.vocab_size, len(codec.tokenizer))
    model = make(config, device, torch.bfloat16 if device == "cuda" else torch.float32)
    model.save_pretrained(folder)
    codec.save(folder)
    if bits < 16:
        quantize_model(model, bits)
    fuse_projections(model)
    prompts = [codec.encode_prompt([{"role": "user", "content": question(i)}]) for i in range(clients)]
    engine = RolloutEngine(model, max_batch=clients, max_length=LENGTH)
    generation = GenerationConfig(max_new_tokens=new, temperature=0.7)
    for _ in range(2):
        engine.generate(prompts, generation)
    start = time.perf_counter()
    for _ in range(3):
        engine.generate(prompts, generation).tokens.cpu()
    seconds = time.perf_counter() - start
    prompt_tokens = sum(map(len, prompts)) / clients
    rate = 3 * clients * new / seconds
    say(figure="engine", tokens_per_second=round(rate), batch=clients, new=new, mean_prompt=round(prompt_tokens, 1))
    return rate


def engine_alone(options: argparse.Namespace, folder: Path) -> float:
    """`prepare` in a process of its own: it leaves nothing on the device."""
    rates: Any = multiprocessing.get_context("spawn").Queue()
    arguments = (options.shape, options.codec, options.device, options.bits, options.clients, options.new, folder)
    process = multiprocessing.get_context("spawn").Process(target=_prepare, args=(rates, *arguments))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"the engine's run ended with code {process.exitcode}")
    rate: float = rates.get()
    return rate


def _prepare(rates: Any, *arguments: Any) -> None:
    rates.put(prepare(*arguments))


# --- the server


class Server:
    """The real command in a process of its own."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        arguments = ["serve", "--model", str(folder), "host=127.0.0.1", "port=0", "name=bench", f"max_length={LENGTH}"]
        arguments += [f"max_batch={options.clients}", f"http_processes={options.http_processes}"]
        arguments += [f"quantize=int{options.bits}"] if options.bits < 16 else []
        program = f"import sys; from training.cli import main; sys.exit(main({arguments!r}))"
        start = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True,
            env={**os.environ, "NAVARCH_EVENTS": "1"},
        )  # fmt: skip
        self.port = 0
        try:
            self._read_until_ready()
        except BaseException:  # the time limit too: nothing is left running
            self.process.kill()
            raise
        say(figure="start", seconds=round(time.perf_counter() - start, 1))

    def _read_until_ready(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            print(line, end="", flush=True)
            if line.startswith("@navarch") and '"ready"' in line:
                self.port = json.loads(line.removeprefix("@navarch "))["port"]
                break
        if not self.port:
            raise SystemExit(f"the server did not start: it ended with code {self.process.wait()}")

    def metrics(self) -> dict[str, float]:
        """Every counter and gauge, by its name and labels."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=20) as answer:
            text = answer.read().decode()
        found = re.findall(r"^navarch_serve_(\S+) ([-+.\deE]+)$", text, re.MULTILINE)
        return {name: float(value) for name, value in found}

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=40)


class Between:
    """The server's metrics at the window's two ends, read while the clients run."""

    def __init__(self, server: Server, plan: Plan) -> None:
        self._server, self._plan = server, plan
        self._found: list[dict[str, float]] = []
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        time.sleep(START_SECONDS + self._plan.warm)
        self._found.append(self._server.metrics())
        time.sleep(self._plan.seconds)
        self._found.append(self._server.metrics())

    def breakdown(self) -> dict[str, Any]:
        """Where the window's seconds went."""
        self._thread.join()
        before, after = self._found
        change = {name: after[name] - before.get(name, 0.0) for name in after}
        steps = change["steps_total"] or 1.0
        admitted = change["queue_seconds_count"] or 1.0
        labels = (("device_seconds_total", "device"), ("decoder_seconds_total", "loop"), ("cpu_seconds", "cpu"))
        labelled = {
            f"{short}_{name.split(QUOTE)[1]}_s": round(value, 3)
            for long, short in labels
            for name, value in change.items()
            if name.startswith(long + "{")
        }
        return {
            **labelled,
            "steps": int(steps),
            "mean_batch": round(change["slot_steps_total"] / steps, 1),
            "step_ms": round(change.get('device_seconds_total{doing="decode"}', 0.0) / steps * 1e3, 3),
            "prefills": int(change["prefills_total"]),
            "queue_ms": round(change["queue_seconds_sum"] / admitted * 1e3, 1),
            "server_ttft_ms": round(change["ttft_seconds_sum"] / (change["ttft_seconds_count"] or 1.0) * 1e3, 1),
        }


def bench_server(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "bench"
        alone = engine_alone(options, folder)
        server = Server(folder, options)
        try:
            for clients, stream in ((options.clients, False), (options.clients, True), (min(8, options.clients), True)):
                plan = Plan("127.0.0.1", server.port, clients, options.new, stream, options.warm, options.window)
                between = Between(server, plan)
                facts = run_load(plan)
                facts["of_engine"] = round(facts["tokens_per_second"] / alone, 3)
                say(figure="serve", shape=options.shape, bits=options.bits, **facts)
                say(figure="breakdown", clients=clients, stream=stream, window_s=plan.seconds, **between.breakdown())
        finally:
            code = server.stop()
        say(figure="drain", exit_code=code)


# --- parts alone


def bench_http(options: argparse.Namespace) -> None:
    """One HTTP process over a decoder that answers at once: CPU seconds a request."""
    from training.data.template import TextCodec
    from training.serving import http_process
    from training.serving.http_process import bind

    tokens = TextCodec.load(options.codec).encode_prompt([{"role": "user", "content": question(33) * 4}])
    tokens = (tokens * options.new)[: options.new]
    with bind("127.0.0.1", 0, shared=True) as reserved:
        port = reserved.getsockname()[1]
        ours, theirs = multiprocessing.Pipe()
        control, its_control = multiprocessing.Pipe()
        config = ServeConfig(model=options.codec, host="127.0.0.1", port=port, drain_s=1)
        context = multiprocessing.get_context("spawn")
        process = context.Process(target=http_process.main, args=(config, port, its_control, theirs), daemon=True)
        process.start()
        theirs.close()
        its_control.close()
        threading.Thread(target=_instant_decoder, args=(ours, tokens), daemon=True).start()
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
                break
            except OSError:
                time.sleep(0.1)
        for stream in (False, True):
            plan = Plan("127.0.0.1", port, 16, options.new, stream, options.warm, options.window, processes=1)
            before = _cpu_seconds(process.pid)
            facts = run_load(plan)
            spent = _cpu_seconds(process.pid) - before
            share = plan.seconds / (plan.seconds + plan.warm)
            facts["http_cpu_ms_per_request"] = round(spent * share / max(1, facts["requests"]) * 1e3, 2)
            facts["client_cpu_ms_per_request"] = round(facts["client_cpu_s"] / max(1, facts["requests"]) * 1e3, 2)
            say(figure="http", **facts)
        control.send(Command("stop"))
        process.join(timeout=20)


def _cpu_seconds(pid: int | None) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _instant_decoder(pipe: Any, tokens: list[int]) -> None:
    """Answers as the decoder process does, without decoding: streams get eight updates."""
    pipe.send([Facts("bench", LENGTH, 1 << 30, False)])
    while True:
        try:
            message = pipe.recv()
        except (EOFError, OSError):
            return
        if isinstance(message, Query):
            pipe.send([Answer(message.number, Status(True, 0, 0))])
        if isinstance(message, Submit):
            number = message.asks[0].number
            parts = 8 if message.asks[0].live else 1
            size = len(tokens) // parts
            pipe.send([Accepted(number)])
            for part in range(parts):
                chunk = tokens[part * size : (part + 1) * size if part < parts - 1 else len(tokens)]
                pipe.send([Update(number, chunk, finish="length" if part == parts - 1 else None)])


def bench_generator(options: argparse.Namespace) -> None:
    """The load generator against a server that does nothing."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body = json.dumps({"choices": ["x" * 600], "usage": {"completion_tokens": options.new}}).encode()
        reply = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                await reader.readexactly(int(head.split(b"content-length:")[1].split(b"\r\n")[0]))
                writer.write(reply)
        except asyncio.IncompleteReadError:
            writer.close()

    async def serve(port: Any) -> None:
        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        port.put(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    context = multiprocessing.get_context("fork")
    ports: Any = context.Queue()
    process = context.Process(target=lambda: asyncio.run(serve(ports)), daemon=True)
    process.start()
    plan = Plan("127.0.0.1", ports.get(timeout=20), options.clients, options.new, False, options.warm, options.window)
    facts = run_load(plan)
    process.terminate()
    say(figure="generator", **facts, cpu_ms_per_request=round(facts["client_cpu_s"] / facts["requests"] * 1e3, 3))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", default="135m", help="135m, 1.1b or tiny")
    parser.add_argument("--codec", default="/tmp/models/smollm2-135m", help="folder of a tokenizer")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--bits", type=int, default=16, choices=(16, 8, 4))
    parser.add_argument("--clients", type=int, default=0, help="concurrent chats (default: 64, 8 on cpu)")
    parser.add_argument("--new", type=int, default=0, help="tokens of an answer (default: 128, 8 on cpu)")
    parser.add_argument("--http-processes", type=int, default=0)
    parser.add_argument("--warm", type=float, default=1.5, help="untimed seconds before each window")
    parser.add_argument("--window", type=float, default=4.0, help="timed seconds of each figure")
    parser.add_argument("--seconds", type=int, default=90, help="limit of the whole run")
    parser.add_argument("--http", action="store_true")
    parser.add_argument("--generator", action="store_true")
    options = parser.parse_args()
    small = options.device == "cpu" and not (options.http or options.generator)
    options.clients = options.clients or (8 if small else 64)
    options.new = options.new or (8 if small else 128)

    def late(*_: object) -> None:
        raise SystemExit(f"over {options.seconds} s")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(options.seconds)
    (bench_http if options.http else bench_generator if options.generator else bench_server)(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
