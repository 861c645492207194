"""Turns what a failed build printed into an error that says what to do next."""

from __future__ import annotations

from images.errors import ImageError
from images.recipes import Recipe

# (code, any of these in the output, what it means, what to do), first match wins
_CAUSES: tuple[tuple[str, tuple[str, ...], str, str], ...] = (
    (
        "disk_full",
        ("No space left on device", "no space left on device", "not enough free space"),
        "the disk of the Docker Engine is full",
        "Free some: `docker system df` shows what takes it, `navarch image rm` and `docker image prune` remove images. "
        "Then build again: finished steps are kept.",
    ),
    (
        "tls_not_trusted",
        ("CERTIFICATE_VERIFY_FAILED", "certificate verify failed", "ertificate verification failed"),
        "TLS certificates are not trusted; this network seems to sign them anew",
        "Give the network's certificate authorities with --ca-bundle FILE "
        "(default: the file in PIP_CERT, REQUESTS_CA_BUNDLE or SSL_CERT_FILE).",
    ),
    (
        "network_unreachable",
        (
            "Temporary failure resolving",
            "Temporary failure in name resolution",
            "Could not resolve",
            "Could not connect to",
            "Name or service not known",
            "NewConnectionError",
            "Network is unreachable",
        ),
        "a package source can't be reached from inside a build",
        "Check the engine's DNS and proxy settings, or name sources that can be reached: "
        "--apt-mirror URL, --index-url URL, --wheelhouse DIR.",
    ),
    (
        "package_missing",
        ("No matching distribution found", "Could not find a version that satisfies"),
        "a package is on none of the indexes",
        "Put its wheel into a folder and give that with --wheelhouse DIR, or name an index that has it with "
        "--index-url URL (torch for CUDA 11 is on https://download.pytorch.org/whl/cu118 only).",
    ),
    (
        "package_missing",
        ("Unable to locate package", "has no installation candidate"),
        "the base's distribution lacks a package",
        "Navarch images need a current Debian or Ubuntu as their base; see --base and --apt-mirror.",
    ),
)


def explain(recipe: Recipe, error: str, step: str, tail: list[str]) -> ImageError:
    """The error of a build: the engine's `error`, the `step` that failed, the last lines that it printed."""
    output = "\n".join([*tail, error])
    where = f"Building {recipe.name!r} failed" + (f" in the step `{shorten(step)}`" if step else "")
    shown = "\n".join(f"  {line}" for line in tail[-15:]) or f"  {error}"
    for code, marks, meaning, advice in _CAUSES:
        if any(mark in output for mark in marks):
            return ImageError(code, f"{where}: {meaning}.\n{shown}", advice)
    # The build scripts end with a sentence of their own when they know what is wrong.
    last = tail[-1] if tail else ""
    reason = last.removeprefix("navarch: ") if last.startswith("navarch: ") else error
    return ImageError(
        "build_failed", f"{where}: {reason}\n{shown}", "The whole log of the build shows what led to this."
    )


def shorten(step: str) -> str:
    """A Dockerfile step in one short line."""
    line = " ".join(step.split())
    return line if len(line) <= 100 else line[:99] + "…"
