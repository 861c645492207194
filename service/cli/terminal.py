"""A console that only our own styles can make escapes on: the one place through which everything is printed."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from service.cli.clean import clean


class CleanConsole(Console):
    """Whatever rich prints comes through `render`, piece by piece and apart from its style."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control is None and not segment.text.isprintable():
                segment = Segment(clean(segment.text), segment.style)
            yield segment
