"""Makes text from elsewhere harmless: what a terminal would obey is taken out, or written out in JSON."""

from __future__ import annotations

import json
import re
from typing import Any

#: Whole sequences, so that no litter stays: CSI (colours, cursor), strings up to their end (OSC: title, clipboard,
#: links; DCS, PM, APC, SOS), and the short ones. A string without an end loses its introducer only, and so does what
#: begins with one of C1, which is more often a badly decoded quotation mark.
_SEQUENCES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"
    r"|\x1b[\]PX^_][^\x07\x1b\n]*(?:\x07|\x1b\\)"
    r"|\x1b[ -/]*[0-~]"
)
#: Controls that stand alone, all but tab and line feed: C0, DEL, and C1, which terminals obey, too.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_NOT_IN_JSON = re.compile(r"[\x7f-\x9f]")


def clean(text: str) -> str:
    """The text without anything that a terminal would obey."""
    if text.isprintable():
        return text
    return _CONTROLS.sub("", _SEQUENCES.sub("", text))


def json_text(value: Any, indent: int | None = None) -> str:
    """JSON that is readable in every language and holds no control codes: those are written as \\u00xx."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return _NOT_IN_JSON.sub(lambda found: f"\\u{ord(found.group()):04x}", text)
