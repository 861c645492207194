"""The control plane's own log: one JSON line an event, no local variables, no secrets, files of bounded size."""

from __future__ import annotations

import logging
import logging.handlers
import os
import sys
import threading
import traceback
from collections.abc import MutableMapping
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import structlog
from pydantic import ValidationError
from structlog.typing import Processor

from service.access import redaction

LOG_NAME = "navarch.log"
MAX_BYTES = 10 << 20
BACKUPS = 3
_MAX_TEXT = 2000
_FRAMES = 25
_CHAIN = 4
"""Exceptions that are told of a chain of causes."""
_QUIET = {
    "alembic": logging.WARNING,
    "docker": logging.WARNING,
    "httpx": logging.WARNING,
    "paramiko": logging.CRITICAL,  # a handshake that fails is an answer, not an error
    "urllib3": logging.WARNING,
    "uvicorn": logging.WARNING,
}
log = structlog.get_logger("process")


def configure(file: Path | None, echo: TextIO | None = None) -> None:
    """Has everything that is logged in this process, ours and the libraries', go to `file` and to `echo`.

    `echo` gets JSON lines, too, unless it is a terminal. Calling it again replaces what was set before.
    """
    before: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _exceptions,
        _clean,
    ]
    structlog.configure(
        processors=[*before, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    root = logging.getLogger()
    for old in root.handlers[:]:
        if isinstance(old, _LogFile | _Echo):
            root.removeHandler(old)
            old.close()
    if file is not None:
        root.addHandler(_formatted(_LogFile(file), before, structlog.processors.JSONRenderer(ensure_ascii=False)))
    if echo is not None:
        shown: Processor = (
            structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
            if echo.isatty()
            else structlog.processors.JSONRenderer(ensure_ascii=False)
        )
        root.addHandler(_formatted(_Echo(echo), before, shown))
    root.setLevel(logging.INFO)
    for name, level in _QUIET.items():
        logging.getLogger(name).setLevel(level)
    logging.captureWarnings(True)
    threading.excepthook = _thread_ended


class _LogFile(logging.handlers.RotatingFileHandler):
    """Only its owner can read it; a full disk stops nothing but the log."""

    def __init__(self, file: Path) -> None:
        super().__init__(file, maxBytes=MAX_BYTES, backupCount=BACKUPS, encoding="utf-8", errors="replace", delay=True)

    def _open(self) -> Any:
        handle = os.open(self.baseFilename, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.fchmod(handle, 0o600)
        return os.fdopen(handle, "a", encoding="utf-8", errors="replace")

    def handleError(self, record: logging.LogRecord) -> None:
        return


class _Echo(logging.StreamHandler[TextIO]):
    def handleError(self, record: logging.LogRecord) -> None:
        return


def _formatted(handler: logging.Handler, before: list[Processor], renderer: Processor) -> logging.Handler:
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=before,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    return handler


def _exceptions(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """An exception as a few words and the places that it passed: no source, no variables."""
    given = event.pop("exc_info", None)
    error = given if isinstance(given, BaseException) else given[1] if isinstance(given, tuple) else None
    if given is True:
        error = sys.exc_info()[1]
    if error is not None:
        event["exception"] = told(error)
    event.pop("stack_info", None)
    return event


def told(error: BaseException) -> list[dict[str, Any]]:
    """An exception and its causes, the outermost first."""
    chain: list[dict[str, Any]] = []
    current: BaseException | None = error
    while current is not None and len(chain) < _CHAIN:
        chain.append({"type": type(current).__name__, "message": _message(current), "at": _places(current)})
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return chain


def _message(error: BaseException) -> str:
    if isinstance(error, ValidationError):  # its own words quote what came in
        where = [".".join(map(str, item["loc"])) for item in error.errors(include_input=False, include_context=False)]
        return f"{error.error_count()} values don't fit {error.title}: {', '.join(where)[:300]}"
    try:
        return str(error)[:_MAX_TEXT]
    except Exception:
        return "(its message can't be read)"


def _places(error: BaseException) -> list[str]:
    frames = [
        f"{_short(code.co_filename)}:{line} {code.co_name}"
        for code, line in ((frame.f_code, line) for frame, line in traceback.walk_tb(error.__traceback__))
    ]
    left_out = len(frames) - _FRAMES
    return frames if left_out <= 0 else [*frames[:5], f"… {left_out} more …", *frames[5 - _FRAMES :]]


def _short(path: str) -> str:
    return "/".join(Path(path).parts[-3:])


def _clean(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key in list(event):
        if key in ("_record", "_from_structlog", "timestamp", "level", "logger"):
            continue
        event[key] = redaction.HIDDEN if redaction.secret_key(key) else redaction.clean(event[key], _MAX_TEXT)
    return event


def _thread_ended(how: threading.ExceptHookArgs) -> None:
    if how.exc_type is SystemExit or how.exc_value is None:
        return
    name = how.thread.name if how.thread is not None else ""
    log.error("a thread ended with an error", thread=name, exc_info=how.exc_value)


def uncaught(kind: type[BaseException], error: BaseException, _at: TracebackType | None) -> None:
    """For `sys.excepthook` of a control plane's process."""
    log.critical("the process ended with an error", exc_info=error)
