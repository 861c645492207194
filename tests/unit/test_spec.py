"""Job documents: what is read from them, and the sentences that a mistake is answered with."""

from typing import Any

import pytest

from jobs.problems import SpecError
from jobs.spec import REDACTED, JobType, PortRequest, load_document, parse_spec, redacted
from jobs.units import format_duration, format_size, parse_duration, parse_size

COMMAND = {"type": "command", "image": "cpu", "command": "true"}
SFT = {"type": "sft", "image": "cpu", "model": "/models/m", "data": [{"path": "/data/d.json"}]}


def problems(document: dict[str, Any]) -> list[str]:
    with pytest.raises(SpecError) as found:
        parse_spec(document)
    return [problem.message for problem in found.value.problems]


def test_a_whole_document() -> None:
    spec = parse_spec(
        load_document(
            """
            type: sft
            name: alpaca-sft
            image: colossalai-0.3.0
            resources: {nodes: 1, gpus: 8, shm: 16GB, ulimits: {memlock: unlimited}}
            strategy: colossalai_zero2
            model: /models/llama-7b
            data: [{path: /data/alpaca_zh.json, format: alpaca}]
            train: {epochs: 1, lr: 2e-5, max_length: 2048}
            ports: [7000, "8095:22", "auto:9000"]
            mounts: ["/data/llm:/workspace/LLM", "/srv:/srv:ro"]
            env: {DEBUG: 1, FAST: true}
            max_duration: 2h30m
            """
        )
    )
    assert spec.type is JobType.SFT
    assert spec.resources.processes_per_node == 8
    assert spec.resources.shm == 16 * 1024**3
    assert spec.resources.ulimits == {"memlock": -1}
    assert spec.fixed_ports == (7000, 8095)
    assert PortRequest(container=22, host=8095) in spec.published()
    assert [m.read_only for m in spec.mounts] == [False, True]
    assert spec.env == {"DEBUG": "1", "FAST": "true"}
    assert spec.max_duration == 9000
    assert spec.training["model"] == "/models/llama-7b"


def test_sshd_gets_a_port_from_the_pool_unless_it_is_placed() -> None:
    assert parse_spec(COMMAND).published() == [PortRequest(container=22, host=None)]
    assert parse_spec({**COMMAND, "ports": ["8095:22"]}).published() == [PortRequest(container=22, host=8095)]
    assert parse_spec({**COMMAND, "ssh": False}).published() == []


def test_a_model_server_gets_its_own_port_published() -> None:
    serve = {"type": "serve", "image": "cpu", "model": "/m", "port": 9000}
    assert PortRequest(container=9000, host=None) in parse_spec(serve).published()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"resorces": {}}, "`resorces`: a job of type command has no key `resorces`; did you mean `resources`?"),
        ({"resources": {"gpu": 1}}, "`resources.gpu`: `resources` has no key `gpu`; did you mean `gpus`?"),
        ({"resources": {"gpus": "two"}}, "`resources.gpus` must be a whole number, not the text 'two'"),
        ({"resources": {"gpus": -1}}, "`resources.gpus` must be at least 0, not -1"),
        (
            {"resources": {"shm": "16 bananas"}},
            "`resources.shm` must be a size such as 512MB or 16GB, not '16 bananas'",
        ),
        ({"retries": True}, "`retries` must be a whole number, not true"),
        ({"ipc": "hots"}, "`ipc` must be private, shareable or host, not the text 'hots'; did you mean host?"),
        (
            {"ports": ["99999"]},
            "`ports[0]` must be a port from 1 to 65535, HOST:CONTAINER or auto:CONTAINER, not '99999'",
        ),
        ({"ports": [7000, "8000:7000"]}, "`ports` publishes container port 7000 twice"),
        ({"mounts": ["data:/x"]}, "`mounts[0]` has a host path that isn't absolute: 'data'"),
        ({"mounts": ["/data:/run/navarch"]}, "`mounts[0]` can't be mounted over /run/navarch in the container"),
        ({"mounts": ["/data://run//navarch/./x"]}, "`mounts[0]` can't be mounted over /run/navarch/x in the container"),
        ({"mounts": ["/data:/run/"]}, "`mounts[0]` can't be mounted over /run in the container"),
        ({"mounts": ["/data:/var/run/navarch"]}, "`mounts[0]` can't be mounted over /var/run/navarch in the container"),
        ({"mounts": ["/data:///"]}, "`mounts[0]` can't be mounted over / in the container"),
        ({"mounts": ["/data:/workspace//run"]}, "`mounts[0]` can't be mounted over /workspace/run in the container"),
        ({"env": {"A B": "x"}}, "`env` has the name 'A B'; a variable's name holds letters, digits and _ only"),
        ({"env": {"A": "1"}, "secrets": {"A": "2"}}, "`A` is both in `env` and in `secrets`; keep one"),
        ({"max_duration": "soon"}, "`max_duration` must be a duration such as 90s, 30m or 2h, not 'soon'"),
        ({"name": "Not OK"}, "`name` must be 1 to 40 of a-z, 0-9 and - (not first or last), not 'Not OK'"),
        ({"command": ["echo", 1]}, "`command` must be a list of texts; put quotes around 1"),
        ({"command": None}, "`command` is missing; a job of type command says what to run"),
        ({"image": None}, "`image` must be text, not empty"),
        ({"type": "sfd"}, "`type` must be one of command, pt, sft, rm, dpo, ppo, serve, not the text 'sfd'"),
    ],
)
def test_a_mistake_is_answered_with_a_sentence(change: dict[str, Any], sentence: str) -> None:
    assert problems({**COMMAND, **change}) == [sentence]


def test_every_mistake_is_told_at_once() -> None:
    assert len(problems({**COMMAND, "resorces": {}, "retries": "x", "ipc": "y"})) == 3


def test_training_sections_are_checked_by_the_training_package() -> None:
    assert parse_spec(SFT).training["data"] == [{"path": "/data/d.json"}]
    assert "lrr" in problems({**SFT, "train": {"lrr": 1}})[0]
    assert "choose one of" in problems({**SFT, "strategy": "collosalai_zero2"})[0]
    assert "no `command`" in problems({**SFT, "command": "x"})[0]


def test_a_stored_document_is_read_whatever_newer_code_thinks_of_it() -> None:
    assert parse_spec({**SFT, "train": {"lrr": 1}}, stored=True).training["train"] == {"lrr": 1}


def test_yaml_that_is_none_says_where() -> None:
    with pytest.raises(SpecError, match="line 2"):
        load_document("type: sft\n  image: [x")
    with pytest.raises(SpecError, match="a job is a mapping"):
        load_document("- 1")


def test_secrets_are_hidden() -> None:
    document = {**COMMAND, "secrets": {"TOKEN": "abc"}}
    assert redacted(document)["secrets"] == {"TOKEN": REDACTED}
    assert "abc" not in str(redacted(document))


def test_units() -> None:
    assert parse_size("1.5k") == 1536
    assert format_size(1536) == "1.5 KB"
    assert parse_duration("1d2h3m4s") == 93784
    assert format_duration(93784) == "1d 2h 3m 4s"
    for wrong in ("-1", "x", "", True, [1]):
        with pytest.raises(ValueError, match=r"must be|can't be"):
            parse_size(wrong)
