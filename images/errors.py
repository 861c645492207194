"""What can go wrong with an image, in words that say what to do next."""

from __future__ import annotations


class ImageError(Exception):
    """An image could not be built, found, removed, committed or pushed.

    `code` is stable and for programs, `message` says what happened to which thing, `hint` what to do next.
    """

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message
