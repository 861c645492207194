"""Says what became of a source's rows, and refuses a run that would lose too many of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from training.errors import DataError


@dataclass(frozen=True)
class Report:
    """What became of a source's rows.

    rows: read; documents: kept (two per pair); bad: unusable, skipped because `bad_rows: skip`; truncated, split: over
    max_length; too_long: left out for it; unlearnable: left out because nothing to learn remained. answers: assistant's
    turns that are to be learned; lost: those of them that aren't, cut off or without a mark. longest: tokens of the
    longest document before cutting; unused: rows that have a field of which nothing is made.
    """

    path: str
    format: str
    rows: int
    documents: int
    tokens: int
    targets: int
    bad: int = 0
    truncated: int = 0
    split: int = 0
    too_long: int = 0
    unlearnable: int = 0
    answers: int = 0
    lost: int = 0
    longest: int = 0
    unused: dict[str, int] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    @property
    def left_out(self) -> int:
        return self.too_long + self.unlearnable + self.bad

    def __str__(self) -> str:
        left = [
            f"{value:,} {text}"
            for value, text in (
                (self.truncated, "cut to max_length"),
                (self.split, "split at max_length"),
                (self.too_long, "left out: over max_length"),
                (self.unlearnable, "left out: nothing to learn"),
                (self.bad, "bad and skipped"),
            )
            if value
        ]
        if self.lost:
            left.append(f"{self.lost:,} of {self.answers:,} answers not learned")
        if self.unused:
            left.append("fields not used: " + ", ".join(self.unused))
        main = (
            f"{self.path} ({self.format}): {self.rows:,} rows, {self.documents:,} documents, {self.tokens:,} tokens, "
        )
        return main + f"{self.targets:,} to learn" + ("; " + "; ".join(left) if left else "")


def refuse_losses(report: Report, limit: float, max_length: int, *, key: str = "train.max_length") -> None:
    """Raises DataError when more than the share `limit` of a source's rows or answers would go unlearned.

    key: what sets max_length.
    """
    for lost, whole, what in (
        (report.left_out, report.rows, "rows are left out"),
        (report.lost, report.answers, "answers of the assistant would not be learned"),
    ):
        if whole and lost / whole > limit:
            longer = f" (now {max_length:,}; the longest row has {report.longest:,} tokens)"
            remedy = f"Raise {key}{longer}" if report.longest > max_length else "Mend the data"
            if what.startswith("answers") and report.longest <= max_length:
                remedy = "Choose a data.template whose generation marks hold every answer"
            raise DataError(
                f"{report}. That {lost:,} of {whole:,} {what} is more than data.max_left_out ({limit:g}) allows. "
                f"{remedy}, or allow it with a higher data.max_left_out."
                + (f" First problem: {report.problems[0]}." if report.problems else "")
            )
