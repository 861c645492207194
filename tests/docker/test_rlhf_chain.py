"""PT, SFT, RM, PPO and serve as a user submits them: each a YAML file that names what the one before left."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
import yaml

from service.client import Client
from tests.docker.front_door import FrontDoor, front_door, until
from tests.training.making import make_model, make_rows

EXAMPLES = Path(__file__).parents[2] / "jobs" / "examples" / "rlhf"
TINY = {
    "1-pt": {"model": "artifact:tiny", "train": {"max_steps": 3, "max_length": 64, "tokens_per_batch": 128}},
    "2-sft": {"lora": {"rank": 4}, "train": {"max_steps": 3, "max_length": 64, "tokens_per_batch": 128}},
    "3-rm": {"train": {"max_steps": 3, "max_length": 64, "tokens_per_batch": 256}},
    "4-ppo": {"train": {"max_steps": 2, "rollout_batch_size": 4, "minibatch_size": 4, "sample_every": 1}},
    "5-serve": {"max_length": 128},
}
"""What a tiny random model needs otherwise than the examples say; everything else is theirs."""


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory, cpu_image: str) -> Iterator[FrontDoor]:
    folder = tmp_path_factory.mktemp("navarch")
    shared = folder / "shared"
    shared.mkdir()
    make_model(shared / "tiny")
    for name, stage in (("pt", "pt"), ("sft", "sft"), ("pairs", "rm"), ("prompts", "sft")):
        make_rows(shared / f"{name}.jsonl", stage)
    with front_door(folder, "--mount-root", str(shared)) as opened:
        registered = opened.navarch("artifact", "import", str(shared / "tiny"), "--name", "tiny")
        assert "in a spec: model: artifact:tiny" in registered.stdout, registered.stderr
        yield opened


def write(door: FrontDoor, step: str, image: str) -> str:
    """The example, fitted to the tiny model and to the data that lies beside the file."""
    document = {**yaml.safe_load((EXAMPLES / f"{step}.yaml").read_text()), "image": image, **TINY[step]}
    sources = document["data"]["sources"] if isinstance(document.get("data"), dict) else document.get("data", [])
    for source in sources:
        source["path"] = Path(source["path"]).name
    file = door.folder / "shared" / f"{step}.yaml"
    file.write_text(yaml.safe_dump(document, sort_keys=False))
    return str(file)


def test_five_submits_from_a_base_model_to_a_chat(door: FrontDoor, cpu_image: str) -> None:
    """All at once: each step waits for what the ones before it leave."""
    early = door.navarch("submit", write(door, "2-sft", cpu_image))
    assert early.returncode == 1 and "There is no artifact 'rlhf-pt-model'" in early.stderr
    for step in TINY:
        submitted = door.navarch("submit", write(door, step, cpu_image))
        assert submitted.returncode == 0, submitted.stderr
        before = {"2-sft": "pt", "3-rm": "sft", "4-ppo": "sft", "5-serve": "ppo"}.get(step)
        waits = f"it waits for artifact rlhf-{before}-model of job rlhf-{before} ("
        assert (before is None) == (waits not in submitted.stdout), submitted.stdout
    assert "waits for artifact rlhf-ppo-model of job rlhf-ppo (queued)" in door.navarch("ps").stdout
    left = {"pt": {"model"}, "sft": {"adapter", "model"}, "rm": {"model"}, "ppo": {"adapter", "model"}}
    with door.client() as client:
        for step, kinds in left.items():
            job = client.wait(f"rlhf-{step}", timeout_s=120)
            assert job.state == "succeeded", (step, job.message, *client.logs(job.id).items)
            assert {(f"rlhf-{step}-{kind}", 1) for kind in kinds} <= {(a.name, a.version) for a in job.artifacts}
        used = {item.key: (item.name, item.version, item.job) for item in client.job("rlhf-ppo").inputs}
        assert used == {
            "model": ("rlhf-sft-model", 1, "rlhf-sft"),
            "reward.model": ("rlhf-rm-model", 1, "rlhf-rm"),
        }
        assert "reward.model: artifact:rlhf-rm-model@1" in door.navarch("show", "rlhf-ppo").stdout
        reward = client.metrics("rlhf-ppo").values
        assert any(name.startswith("reward") for name in reward), sorted(reward)
        chat(door, client)


def chat(door: FrontDoor, client: Client) -> None:
    """The last one serves until it is stopped; its URL is shown once it has answered by itself."""
    until(lambda: client.job("rlhf-chat").url is not None or client.job("rlhf-chat").finished, "a URL", 90)
    job = client.job("rlhf-chat")
    url = job.url
    assert url is not None, (job.message, *client.logs(job.id).items)
    assert url in door.navarch("ps").stdout and url in door.navarch("show", "rlhf-chat").stdout
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as openai_client:
        model = openai_client.models.list().data[0].id
        answer = openai_client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "red green"}], max_tokens=8, temperature=0
        )
        assert answer.usage is not None and 1 <= answer.usage.completion_tokens <= 8
        streamed = openai_client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "red green"}], max_tokens=8, temperature=0, stream=True
        )
        text = "".join(chunk.choices[0].delta.content or "" for chunk in streamed if chunk.choices)
        assert text == answer.choices[0].message.content
    stopped = door.navarch("stop", "rlhf-chat", "--wait")
    assert "rlhf-chat is stopped" in stopped.stdout, stopped.stdout + stopped.stderr
    job = client.job("rlhf-chat")
    assert (job.state, job.reason, job.url) == ("stopped", "stopped_by_user", None)
    assert job.attempts[-1].replicas[0].exit_code == 0, "it was killed instead of drained"
    assert "serve: draining" in [line.line for line in client.logs(job.id).items]
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{url}/models", timeout=2)
