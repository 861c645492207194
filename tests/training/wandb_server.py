"""A Weights & Biases server for wandb's own client, and a reader of the recordings that the client leaves on disk."""

from __future__ import annotations

import base64
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

KEY = "5ecre7" * 6 + "0000"


@dataclass
class Uploaded:
    """What the server was told of one run."""

    history: dict[int, dict[str, Any]] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    name: str = ""
    group: str = ""
    exit_codes: list[int] = field(default_factory=list)
    preempting: bool = False

    def rows(self) -> list[dict[str, Any]]:
        """History by step, without wandb's own columns but `_step`."""
        return [_plain(self.history[line]) for line in sorted(self.history)]


@dataclass
class Server:
    """`mode`: works, hangs (takes requests and never answers), or a status that every request gets."""

    mode: str = "works"
    url: str = ""
    runs: dict[str, Uploaded] = field(default_factory=dict)
    asked: int = 0
    text: list[str] = field(default_factory=list)
    """Everything that clients sent, to look for what they should not."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state: Server

    def do_POST(self) -> None:
        state = self.server_state
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        state.asked += 1
        state.text.append(body.decode("utf-8", "replace"))
        if state.mode == "hangs":
            time.sleep(120)
        elif state.mode != "works":
            return self.answer(int(state.mode), {"errors": [{"message": "no"}]})
        login = base64.b64decode(self.headers.get("Authorization", "").removeprefix("Basic ") or b"").decode()
        if self.path == "/graphql":
            if not login.endswith(f":{KEY}"):
                return self.answer(401, {"errors": [{"message": "user is not logged in"}]})
            return self.answer(200, {"data": self.graphql(json.loads(body))})
        if "/file_stream" in self.path:
            self.file_stream(self.path.split("/")[-2], json.loads(body))
        return self.answer(200, {})

    do_GET = do_PUT = do_POST

    def graphql(self, asked: dict[str, Any]) -> dict[str, Any]:
        runs, values = self.server_state.runs, asked.get("variables") or {}
        found = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])
        name = found.group(1) if found else ""
        owner = {"id": "E", "name": "lab"}
        user = {"id": "U", "entity": "lab", "username": "someone", "flags": "{}", "teams": {"edges": []}}
        if name == "UpsertBucket":
            known = values["name"] in runs
            run = runs.setdefault(values["name"], Uploaded())
            run.name, run.group = values.get("displayName") or run.name, values.get("groupName") or run.group
            run.config.update(json.loads(values.get("config") or "{}"))
            project = {"id": "P", "name": "tests", "entity": owner}
            bucket = {"id": f"B{values['name']}", "name": values["name"], "displayName": run.name, "config": "{}",
                      "historyLineCount": len(run.history), "project": project}  # fmt: skip
            return {"upsertBucket": {"bucket": bucket, "inserted": not known}}
        if name == "RunResumeStatus":
            return {"model": {"id": "P", "name": "tests", "entity": owner, "bucket": self.resumed(values["name"])}}
        if name == "CreateRunFiles":
            files = [{"name": file, "uploadUrl": f"{self.server_state.url}/up/{file}"} for file in values["files"]]
            return {"createRunFiles": {"runID": values["run"], "uploadHeaders": [], "files": files}}
        facts = {"cliVersionInfo": {"max_cli_version": "99.0.0"}, "latestLocalVersionInfo": None, "features": []}
        return {"viewer": user, "serverInfo": facts, "entity": {"organization": None}, "model": None}

    def resumed(self, run_id: str) -> dict[str, Any] | None:
        run = self.server_state.runs.get(run_id)
        if run is None:
            return None
        tail = [json.dumps(run.history[line]) for line in sorted(run.history)][-1:]
        last = run.history[max(run.history)]["_step"] if run.history else 0
        return {
            "id": f"B{run_id}", "name": run_id, "displayName": run.name, "summaryMetrics": json.dumps({"_step": last}),
            "logLineCount": 0, "eventsLineCount": 0, "historyLineCount": len(run.history), "tags": [],
            "historyTail": json.dumps(tail), "eventsTail": "[]", "config": json.dumps(run.config),
            "wandbConfig": '{"t": 1}',
        }  # fmt: skip

    def file_stream(self, run_id: str, sent: dict[str, Any]) -> None:
        run = self.server_state.runs.setdefault(run_id, Uploaded())
        chunk = (sent.get("files") or {}).get("wandb-history.jsonl")
        for place, line in enumerate(chunk["content"] if chunk else []):
            run.history[chunk["offset"] + place] = json.loads(line)
        run.preempting = run.preempting or bool(sent.get("preempting"))
        if sent.get("complete"):
            run.exit_codes.append(int(sent["exitcode"]))

    def answer(self, status: int, value: object) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        """Quiet."""


class QuietServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *arguments: object) -> None:
        """Clients hang up when they have what they want."""


@contextmanager
def serve_wandb(mode: str = "works") -> Iterator[Server]:
    """The server on a free port of loopback; its `url` is what WANDB_BASE_URL names."""
    state = Server(mode)
    with QuietServer(("127.0.0.1", 0), type("WandbHandler", (Handler,), {"server_state": state})) as server:
        state.url = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield state
        server.shutdown()


# recordings

_HEADER, _BLOCK = 7, 32768


@dataclass
class Recording:
    """One .wandb file: wandb's records in the log format of LevelDB, each a protocol buffer."""

    run_id: str = ""
    name: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    exit_code: int | None = None
    preempting: bool = False
    raw: bytes = b""


def read_recording(path: Path) -> Recording:
    """Parsed with wandb's own message classes."""
    from wandb.proto.wandb_internal_pb2 import Record

    found = Recording(raw=path.read_bytes())
    for data in _records(found.raw):
        record = Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found.run_id, found.name = record.run.run_id, record.run.display_name
            found.config.update({item.key: json.loads(item.value_json) for item in record.run.config.update})
        elif kind == "history":
            row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            found.history.append(_plain(row))
        elif kind == "exit":
            found.exit_code = record.exit.exit_code
        elif kind == "preempting":
            found.preempting = True
    return found


def _records(content: bytes) -> Iterator[bytes]:
    assert content[:4] == b":W&B"
    place, parts = _HEADER, b""
    while place + 7 <= len(content):
        if _BLOCK - place % _BLOCK < 7:  # what is left of a block is too short for a chunk's header
            place += _BLOCK - place % _BLOCK
            continue
        size, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        if kind == 0:
            return
        parts += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key == "_step" or not key.startswith("_")}
