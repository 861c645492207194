"""What a job of each type can be told, as one JSON schema: the common keys, and those of its training stage."""

from __future__ import annotations

from functools import cache
from typing import Any

from jobs.spec import JobSpec, JobType
from training.config.schema import schema
from training.config.stages import STAGES, config_class

_UNITS = {
    "grace": "seconds, or with a unit such as 2m",
    "max_duration": "seconds, or with a unit such as 12h",
    "max_length": "tokens",
    "tokens_per_batch": "tokens",
    "head_chunk": "tokens",
    "warmup": "a fraction of all steps, or steps",
    "memory": "bytes, or with a unit such as 64GB",
    "shm": "bytes, or with a unit such as 16GB",
}
_HELP = {
    "name": "What it is called. Empty: its type and a few letters.",
    "image": "An image that is there, or a recipe's.",
    "command": "What to run: words, or a text for the shell.",
    "env": "Environment variables.",
    "secrets": "Environment variables that are stored encrypted and never shown.",
    "mounts": "Host folders, one a line: /data/llm:/workspace/LLM, with :ro for reading only.",
    "ports": "One a line: 7000 (the same port of the host), 8095:22 (this one), or auto:7000 (any free one).",
    "after": "Jobs that must have succeeded before this one starts.",
    "priority": "Of 100: who has more goes first.",
    "retries": "How often it is tried again after a failure of its own.",
    "grace": "How long its programs have to save what they have when it is stopped.",
    "max_duration": "It is stopped after this.",
    "ssh": "Whether one can log in to its containers.",
    "ipc": "host: shared memory of the host.",
    "workdir": "Where the command starts.",
    "resources": "How many containers, and what each gets.",
    "gpus": "GPUs of each container.",
    "nodes": "Containers, each on a host of its own.",
    "cpus": "CPUs of each container.",
    "memory": "Memory of each container.",
    "shm": "Shared memory (/dev/shm) of each container.",
    "ulimits": "Limits such as memlock.",
}
_DATA = {
    "type": "array",
    "items": {"type": "string"},
    "description": "Files, folders, artifact:NAME or hf:org/name, one a line; more can be said of each in YAML.",
}
_ADVANCED = frozenset(
    {"after", "priority", "retries", "grace", "max_duration", "ssh", "ipc", "workdir", "env", "secrets", "ulimits"}
    | {"betas", "eps", "min_lr", "lr_schedule", "head_chunk", "compile", "neftune", "seed", "max_grad_norm"}
    | {"tokens_per_batch", "min_tokens", "run_dir", "resume"}
)


@cache
def schema_of(type: JobType) -> dict[str, Any]:
    """The JSON schema (draft 2020-12, with x-unit and x-advanced) of a job of this type."""
    whole = JobSpec.model_json_schema()
    whole["properties"].pop("training", None)
    whole["properties"]["type"] = {"const": type.value}
    if type.value in STAGES:
        stage = schema(config_class(type.value))
        for key, member in stage["properties"].items():
            whole["properties"].setdefault(key, dict(_DATA) if key == "data" else member)
        whole["required"] = [*whole.get("required", []), *stage["required"]]
        whole["properties"].pop("command", None)
    _annotate(whole)
    for definition in whole.get("$defs", {}).values():
        _annotate(definition)
    return whole


def _annotate(schema: dict[str, Any]) -> None:
    for name, member in schema.get("properties", {}).items():
        if name in _HELP:
            member.setdefault("description", _HELP[name])
        if name in _UNITS:
            member["x-unit"] = _UNITS[name]
        if name in _ADVANCED:
            member["x-advanced"] = True
        _annotate(member)
