"""The client's side of server-sent events: what was logged comes out as it was, over broken connections, too."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from service.api.sse import encode
from service.client import Client, Unreachable
from service.contract.schemas import JobStatus, LogLine

LINES = [
    "plain",
    "line\u2028separator, next\x85line",
    "form\x0cfeed, \x1c\x1d\x1e",
    "Größe 你好",
    ": id: data: event:",
    "",
]


class Server(ThreadingHTTPServer):
    """Sends the lines after the one that the client had last, a few at a time, then breaks."""

    daemon_threads = True

    def __init__(self, content_type: str = "text/event-stream") -> None:
        self.asked: list[str | None] = []
        self.content_type = content_type
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        last = self.headers.get("Last-Event-ID")
        self.server.asked.append(last)
        self.send_response(200)
        self.send_header("Content-Type", self.server.content_type)
        self.end_headers()
        self.wfile.write(b"retry: 1000\n\n: still here\n\n")
        begin = int(last or 0)
        for number, text in list(enumerate(LINES, 1))[begin : begin + 2]:
            self.wfile.write(encode("log", LogLine(cursor=str(number), time=0.0, replica=0, line=text), str(number)))
        if begin >= len(LINES):
            self.wfile.write(encode("end", JobStatus(id="a", name="a", state="succeeded"), str(len(LINES))))
        else:
            self.wfile.write(encode("log", LogLine(cursor="x", time=0.0, replica=0, line="cut"), "x")[:-9])

    def log_message(self, *arguments: object) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.shutdown()


def test_lines_come_as_they_were_logged_each_once_over_broken_connections(server: Server) -> None:
    with Client(f"http://127.0.0.1:{server.server_address[1]}") as client:
        assert [line.line for line in client.follow_logs("a")] == LINES
    assert server.asked == [None, "2", "4", "6"]


def test_what_is_no_stream_is_no_control_plane() -> None:
    with Server("text/html") as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with Client(f"http://127.0.0.1:{server.server_address[1]}") as client, pytest.raises(Unreachable):
            list(client.follow_logs("a"))
        server.shutdown()
