"""How single keys of a spec are read: names, images, commands, ports, mounts, variables, limits."""

import re
from collections.abc import Mapping
from pathlib import PurePosixPath

from pydantic import BaseModel, ConfigDict

from jobs.mistakes import shown

MAX_ARGUMENT = 131_071
"""Bytes of one argument or of one NAME=value: Linux takes no longer one."""
MAX_PATH = 4095
MAX_NAME_IN_PATH = 255
_NAME = re.compile(r"[a-z0-9]([a-z0-9_-]{0,38}[a-z0-9])?")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_NOT_OVER = frozenset({"/", "/run", "/run/navarch", "/workspace/run"})
"""Places in the container that hold what Navarch puts there."""
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_HOST = r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*|\[[0-9a-fA-F:]+\])"
_IMAGE = re.compile(
    rf"(?:{_HOST}(?::[0-9]{{1,5}})?/)?{_PART}(?:/{_PART})*"
    r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(?:@[a-z0-9]+(?:[+._-][a-z0-9]+)*:[0-9a-fA-F]{32,128})?",
    re.ASCII,
)
_MAX_IMAGE = 400
#: The kernel's limits that Docker knows, with the largest number that each may be (None: unlimited is possible).
_ULIMITS: dict[str, int | None] = {
    **dict.fromkeys(("core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nproc", "rss"), None),
    **dict.fromkeys(("rttime", "sigpending", "stack"), None),
    "nice": 40,
    "nofile": 1 << 30,
    "rtprio": 99,
}
_SYSTEM_PATHS = frozenset({"/bin", "/usr/bin"})


class PortRequest(BaseModel):
    """One published port; `host` None means that the host's pool gives one."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    container: int
    host: int | None


class Mount(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    source: str
    target: str
    read_only: bool = False


def parse_name(value: object) -> object:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError(f"must be 1 to 40 of a-z, 0-9, - and _ (no mark first or last), not {shown(value)}")
    return value


def parse_image(value: object) -> object:
    """A tag, a digest, an id or a recipe's name, by the grammar of the registries' own references."""
    if not isinstance(value, str):
        raise ValueError(f"must be text, not {shown(value)}")
    if len(value) > _MAX_IMAGE or not _IMAGE.fullmatch(value):
        lower = value.lower()
        advice = f"; did you mean {lower}?" if len(value) <= _MAX_IMAGE and _IMAGE.fullmatch(lower) else ""
        example = "such as cpu, navarch/cpu or registry:5000/team/name:tag"
        raise ValueError(f"must be the name of an image, {example}, not {shown(value)}{advice}")
    return value


def parse_command(value: object) -> object:
    if isinstance(value, str):
        if not value.strip():
            raise ValueError("is empty; write the command that the container runs")
        value = ["bash", "-c", value]
    if not isinstance(value, list) or not value:
        raise ValueError(f"must be text or a list of texts, not {shown(value)}")
    for part in value:
        if not isinstance(part, str):
            raise ValueError(f"must be a list of texts; put quotes around {shown(part)}")
        if len(part.encode(errors="replace")) > MAX_ARGUMENT:
            raise ValueError(f"has an argument of more than {MAX_ARGUMENT:,} bytes; put it into a file and mount that")
        if "\0" in part:
            raise ValueError("has a NUL character in it")
    if not value[0].strip():
        raise ValueError("begins with an empty text; write the program that the container runs")
    return value


def parse_workdir(value: object) -> object:
    if not isinstance(value, str):
        raise ValueError(f"must be text, not {shown(value)}")
    return plain_path(value, "")


def _port_number(text: str, value: object) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= 65535):
        raise ValueError(f"must be a port from 1 to 65535, HOST:CONTAINER or auto:CONTAINER, not {shown(value)}")
    return int(text)


def parse_port(value: object) -> object:
    """7000 publishes 7000 as itself, "8095:22" 22 as 8095, "auto:22" 22 as a free one of the host's pool."""
    if isinstance(value, PortRequest):
        return value
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"must be a port such as 7000, '8095:22' or 'auto:8000', not {shown(value)}")
    if isinstance(value, int) and not 1 <= value <= 65535:
        raise ValueError(f"must be a port from 1 to 65535, HOST:CONTAINER or auto:CONTAINER, not {shown(value)}")
    host, _, container = str(value).strip().rpartition(":")
    inner = _port_number(container, value)
    if host == "auto":
        return PortRequest(container=inner, host=None)
    return PortRequest(container=inner, host=_port_number(host, value) if host else inner)


def parse_mount(value: object) -> object:
    """ "HOST:CONTAINER" or "HOST:CONTAINER:ro"; both absolute."""
    if isinstance(value, Mount):
        return value
    if not isinstance(value, str):
        raise ValueError(f"must be HOST_PATH:CONTAINER_PATH, or that with :ro, not {shown(value)}")
    parts = value.split(":")
    if len(parts) not in (2, 3) or (len(parts) == 3 and parts[2] not in ("ro", "rw")):
        raise ValueError(f"must be HOST_PATH:CONTAINER_PATH, or that with :ro, not {shown(value)}")
    source, target = plain_path(parts[0], "host "), plain_path(parts[1], "container ")
    meant = f"/{target.removeprefix('/var/')}" if target == "/var/run" or target.startswith("/var/run/") else target
    if meant in _NOT_OVER or meant.startswith("/run/navarch/"):
        raise ValueError(f"can't be mounted over {target} in the container")
    return Mount(source=source, target=target, read_only=parts[2:] == ["ro"])


def plain_path(path: str, side: str) -> str:
    """One spelling of an absolute path: no double slashes, dots or slash at its end. `side` is for the sentence."""
    if not path.startswith("/") or ".." in PurePosixPath(path).parts:
        raise ValueError(f"has a {side}path that isn't absolute: {shown(path)}; write it from / on, without ..")
    if _CONTROL.search(path):
        raise ValueError(f"has a {side}path with a control character in it: {shown(path)}")
    names = [part for part in path.split("/") if part not in ("", ".")]
    if len(path.encode(errors="replace")) > MAX_PATH or any(
        len(name.encode(errors="replace")) > MAX_NAME_IN_PATH for name in names
    ):
        limit = f"{MAX_PATH:,} bytes, {MAX_NAME_IN_PATH} a name"
        raise ValueError(f"has a {side}path that is longer than Linux takes ({limit}): {shown(path)}")
    return "/" + "/".join(names)


def parse_secrets(value: object) -> object:
    """Like `env`; they are handed over line by line."""
    result = parse_env(value)
    if "PATH" in result:
        raise ValueError("has PATH in it, which is no secret; write it under `env`")
    for name, text in result.items():
        if "\n" in text:
            raise ValueError(f"has a line break in the value of {name!r}; put it into a file and mount that")
    return result


def parse_env(value: object) -> dict[str, str]:
    """Names to values; numbers and truth values become the texts that one would write."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError(f"must be a mapping of names to values, not {shown(value)}")
    result = {}
    for name, item in value.items():
        if not _ENV_NAME.fullmatch(str(name)):
            raise ValueError(f"has the name {str(name)[:60]!r}; a variable's name holds letters, digits and _ only")
        if not isinstance(item, str | int | float):
            raise ValueError(f"has the name {name!r} with {shown(item)} as its value; write it as text")
        text = str(item).lower() if isinstance(item, bool) else str(item)
        if "\0" in text:
            raise ValueError(f"has a NUL character in the value of {name!r}, which a variable can't carry")
        if len(text.encode(errors="replace")) + len(str(name)) >= MAX_ARGUMENT:
            limit = f"more than the {MAX_ARGUMENT:,} bytes that a variable can carry"
            raise ValueError(f"has a value of {name!r} of {limit}; put it into a file and mount that")
        if str(name).startswith("NAVARCH_"):
            raise ValueError(f"has the name {name!r}; those that begin with NAVARCH_ are set by Navarch")
        if str(name) == "PATH":
            _check_search_path(text)
        result[str(name)] = text
    return result


def _check_search_path(text: str) -> None:
    parts = text.split(":")
    if not {"$PATH", "${PATH}"} & set(parts) and not set(parts) >= _SYSTEM_PATHS:
        raise ValueError("has a PATH that hides the image's own programs; write it with the old one, as /my/bin:$PATH")


def parse_ulimits(value: object) -> object:
    if not isinstance(value, Mapping):
        raise ValueError(f"must be a mapping such as {{memlock: unlimited}}, not {shown(value)}")
    result = {}
    for name, limit in value.items():
        if name not in _ULIMITS:
            raise ValueError(f"has no limit named {shown(name)}; there are {', '.join(sorted(_ULIMITS))}")
        most = _ULIMITS[name]
        if limit == "unlimited":
            limit = -1
        if isinstance(limit, bool) or not isinstance(limit, int) or not -1 <= limit < 1 << 63:
            raise ValueError(f"has {name!r} as {shown(limit)}; write a whole number or unlimited")
        if most is not None and not 0 <= limit <= most:
            raise ValueError(f"has {name!r} as {'unlimited' if limit == -1 else limit}; it can be at most {most}")
        result[str(name)] = limit
    return result
