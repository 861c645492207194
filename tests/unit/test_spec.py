"""Job documents: what is read from them, and the sentences that a mistake is answered with."""

import math
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.documents import DocumentError
from jobs.mistakes import SpecError
from jobs.spec import REDACTED, JobSpec, JobType, PortRequest, load_document, parse_spec, redacted
from jobs.units import format_duration, format_size, parse_duration, parse_size

COMMAND = {"type": "command", "image": "cpu", "command": "true"}
SFT = {"type": "sft", "image": "cpu", "model": "/models/m", "data": [{"path": "/data/d.json"}]}


def problems(document: dict[str, Any]) -> list[str]:
    with pytest.raises(SpecError) as found:
        parse_spec(document)
    return [mistake.message for mistake in found.value.mistakes]


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
            "`ports[0]` must be a port from 1 to 65535, HOST:CONTAINER or auto:CONTAINER, not the text '99999'",
        ),
        ({"ports": [7000, "8000:7000"]}, "`ports` publishes container port 7000 twice"),
        (
            {"mounts": ["data:/x"]},
            "`mounts[0]` has a host path that isn't absolute: the text 'data'; write it from / on, without ..",
        ),
        ({"mounts": ["/data:/run/navarch"]}, "`mounts[0]` can't be mounted over /run/navarch in the container"),
        ({"mounts": ["/data://run//navarch/./x"]}, "`mounts[0]` can't be mounted over /run/navarch/x in the container"),
        ({"mounts": ["/data:/run/"]}, "`mounts[0]` can't be mounted over /run in the container"),
        ({"mounts": ["/data:/var/run/navarch"]}, "`mounts[0]` can't be mounted over /var/run/navarch in the container"),
        ({"mounts": ["/data:///"]}, "`mounts[0]` can't be mounted over / in the container"),
        ({"mounts": ["/data:/workspace//run"]}, "`mounts[0]` can't be mounted over /workspace/run in the container"),
        ({"env": {"A B": "x"}}, "`env` has the name 'A B'; a variable's name holds letters, digits and _ only"),
        ({"env": {"A": "1"}, "secrets": {"A": "2"}}, "`A` is both in `env` and in `secrets`; keep one"),
        ({"max_duration": "soon"}, "`max_duration` must be a duration such as 90s, 30m or 2h, not 'soon'"),
        (
            {"name": "Not OK"},
            "`name` must be 1 to 40 of a-z, 0-9, - and _ (no mark first or last), not the text 'Not OK'",
        ),
        ({"command": ["echo", 1]}, "`command` must be a list of texts; put quotes around 1"),
        ({"command": None}, "`command` is missing; a job of type command says what to run"),
        ({"image": None}, "`image` must be text, not empty"),
        ({"type": "sfd"}, "`type` must be one of command, pt, sft, rm, dpo, ppo, grpo, serve, not the text 'sfd'"),
    ],
)
def test_a_mistake_is_answered_with_a_sentence(change: dict[str, Any], sentence: str) -> None:
    assert problems({**COMMAND, **change}) == [sentence]


LONG = "x" * 131_100


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"name": "a\n"}, "`name` must be 1 to 40"),
        ({"env": {"EVIL\n": "1"}}, "`env` has the name"),
        ({"secrets": {"EVIL\n": "1"}}, "`secrets` has the name"),
        ({"secrets": {"KEY": "a\nb"}}, "`secrets` has a line break in the value of 'KEY'; put it into a file"),
        ({"env": {"NAVARCH_JOB": "x"}}, "are set by Navarch"),
        ({"env": {"PATH": "/workspace/bin"}}, "write it with the old one, as /my/bin:$PATH"),
        ({"env": {"BIG": LONG}}, "put it into a file and mount that"),
        ({"env": {f"V{n}": "1" for n in range(501)}}, "`env` must have at most 500 entries"),
        ({"command": LONG}, "has an argument of more than 131,071 bytes"),
        ({"command": ["", "x"]}, "begins with an empty text"),
        ({"command": ["x"] * 2001}, "`command` must have at most 2,000 entries"),
        ({"image": "--privileged"}, "`image` must be the name of an image"),
        ({"image": "Navarch/CPU"}, "did you mean navarch/cpu?"),
        ({"image": "cpu\n"}, "`image` must be the name of an image"),
        ({"image": "a" * 401}, "`image` must be the name of an image"),
        ({"workdir": "project"}, "`workdir` has a path that isn't absolute"),
        ({"workdir": "/a/../b"}, "without .."),
        ({"workdir": "/a\x00b"}, "a control character"),
        ({"workdir": "/" + "n" * 256}, "longer than Linux takes"),
        ({"workdir": "/n" * 2049}, "longer than Linux takes"),
        ({"mounts": ["/data/a\x1b:/x"]}, "`mounts[0]` has a host path with a control character"),
        ({"mounts": ["/data:/" + "n" * 300]}, "`mounts[0]` has a container path that is longer"),
        ({"mounts": [f"/d:/d{n}" for n in range(101)]}, "`mounts` must have at most 100 entries"),
        ({"ports": [f"auto:{n}" for n in range(1, 3000)]}, "`ports` must have at most 100 entries"),
        ({"ports": [10**30]}, "`ports[0]` must be a port from 1 to 65535"),
        ({"ports": ["٣"]}, "`ports[0]` must be a port from 1 to 65535"),
        ({"after": ["x" * 101]}, "`after[0]` must have at most 100 characters"),
        ({"max_duration": "1" * 32_000 + "x"}, "`max_duration` must be a duration"),
        ({"max_duration": "0s"}, "`max_duration` must be more than nothing"),
        ({"max_duration": "99999d"}, "more than ten years"),
        ({"max_duration": math.inf}, "`max_duration` must be a duration"),
        ({"grace": "8d"}, "`grace` can be at most 7d"),
        ({"resources": {"memory": "9" * 400}}, "`resources.memory` must be a size"),
        ({"resources": {"memory": 10**400}}, "more than any machine has"),
        ({"resources": {"memory": math.nan}}, "must be at least one byte"),
        ({"resources": {"memory": "1MB"}}, "`resources.memory` must be at least 6 MB"),
        ({"resources": {"shm": "9999999999TB"}}, "`resources.shm` is '9999999999TB', more than any machine has"),
        ({"resources": {"cpus": math.inf}}, "`resources.cpus` must be a finite number"),
        ({"resources": {"cpus": 0.001}}, "`resources.cpus` must be at least 0.01"),
        ({"resources": {"gpus": 10**30}}, "`resources.gpus` must be at most 64"),
        ({"resources": {"ulimits": {"nofiles": 1}}}, "has no limit named the text 'nofiles'; there are core"),
        ({"resources": {"ulimits": {"nofile": "unlimited"}}}, "'nofile' as unlimited; it can be at most 1073741824"),
        ({"resources": {"ulimits": {"memlock": 1 << 63}}}, "write a whole number or unlimited"),
        ({"retries": 10**5000}, "`retries` must be"),
    ],
)
def test_what_could_never_start_is_refused_with_its_key(change: dict[str, Any], says: str) -> None:
    begun = time.process_time()
    (sentence,) = problems({**COMMAND, **change})
    assert says in sentence and len(sentence) < 400
    assert time.process_time() - begun < 1.0


@pytest.mark.parametrize(
    "image",
    [
        *("cpu", "colossalai-0.3.0", "navarch/cpu:2", "registry:5000/team/name:tag", "ghcr.io/a/b__c/d-e.f"),
        *(
            "[2001:db8::1]:5000/x",
            "ubuntu@sha256:" + "a" * 64,
            "x:1@sha256:" + "0" * 64,
            "sha256:" + "b" * 64,
            "0a1b2c",
        ),
    ],
)
def test_images_are_named_as_registries_name_them(image: str) -> None:
    assert parse_spec({**COMMAND, "image": image}).image == image


def test_a_search_path_may_be_extended_or_written_in_full() -> None:
    for path in ("/workspace/bin:$PATH", "${PATH}:/x", "/usr/local/bin:/usr/bin:/bin"):
        assert parse_spec({**COMMAND, "env": {"PATH": path}}).env["PATH"] == path


def test_a_variable_may_hold_several_lines() -> None:
    assert parse_spec({**COMMAND, "env": {"NOTE": "a\nb"}}).env["NOTE"] == "a\nb"


def test_many_mistakes_are_answered_quickly_with_the_first_of_them() -> None:
    begun = time.process_time()
    wrong = {**COMMAND, **{f"resourcs{n}": 1 for n in range(19_000)}}
    assert len(problems(wrong)) == 20
    assert len(problems({**COMMAND, "resources": {f"gpu{n}": 1 for n in range(19_000)}})) == 20
    assert time.process_time() - begun < 3.0


SOME = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.just("2h")),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=6,
)
KEYS = [*JobSpec.model_fields, "model", "data", "train", "strategy", "lora", "reward", "port", "eval", "generation"]


@given(st.sampled_from([*JobType]), st.dictionaries(st.sampled_from(KEYS), SOME, max_size=6))
@settings(max_examples=400)
def test_any_document_is_read_or_refused_with_sentences(kind: str, document: dict[str, Any]) -> None:
    try:
        parse_spec({**document, "type": kind})
    except SpecError as refused:
        assert refused.mistakes and all(mistake.message for mistake in refused.mistakes)


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
    with pytest.raises(DocumentError, match="line 2"):
        load_document("type: sft\n  image: [x")
    with pytest.raises(DocumentError, match="a job is a mapping"):
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
