"""Says what is being waited for: a spinner with a clock on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from service.cli import output

FIRST_S = 2.0
AGAIN_S = 20.0


@contextmanager
def busy(what: str) -> Iterator[None]:
    """While the block runs; on standard error, and nothing where it is quick. `what` is plain text."""
    if sys.stderr.isatty():
        with _spinner(what):
            yield
        return
    over = threading.Event()
    thread = threading.Thread(target=_tell, args=(what, over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def _spinner(what: str) -> Iterator[None]:
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(style="cyan"), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=output.errors(), transient=True) as progress:
        progress.add_task(output.escape(what))
        yield


def _tell(what: str, over: threading.Event) -> None:
    began, wait_s = time.monotonic(), FIRST_S
    while not over.wait(wait_s):
        output.note(f"[dim]{output.escape(what)} … {output.duration(time.monotonic() - began)}[/]")
        wait_s = AGAIN_S
