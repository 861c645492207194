"""Every training stage as a job: submitted through the front door, trained in a container of the full image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from service.client import Client
from tests.docker.front_door import FrontDoor
from tests.training.making import make_model, make_rows
from training.data.synthetic import synthesize

TRAIN = {"max_steps": 4, "lr": 1e-2, "max_length": 64, "tokens_per_batch": 128}


def spec(door: FrontDoor, stage: str, image: str, **more: Any) -> dict[str, Any]:
    shared = door.folder / "shared"
    if not (shared / "model").is_dir():
        make_model(shared / "model")
    rows = make_rows(shared / f"{stage}.jsonl", stage)
    return {
        "type": stage,
        "name": f"tiny-{stage}",
        "image": image,
        "model": str(shared / "model"),
        "data": {"sources": [{"path": str(rows)}], "eval_fraction": 0.2},
        "train": TRAIN,
        "log": {"every": 1},
        **more,
    }


def test_dpo_trains_in_its_container(door: FrontDoor, client: Client, cpu_image: str) -> None:
    """The other stages do in test_rlhf_chain."""
    job = client.wait(client.submit(spec(door, "dpo", cpu_image)).id, timeout_s=120)
    assert job.state == "succeeded", (job.message, *client.logs(job.id).lines)
    losses = client.metrics(job.id).values["loss"]
    assert len(losses) == 4 and all(loss is not None for loss in losses)
    assert {artifact.kind for artifact in job.artifacts} >= {"model"}


def test_grpo_learns_sums_from_a_rule_in_its_container(door: FrontDoor, client: Client, cpu_image: str) -> None:
    sums = door.folder / "shared" / "sums.jsonl"
    synthesize(sums, 16, kind="sums")
    asked = spec(
        door, "grpo", cpu_image, data=str(sums), reward={"function": "training.ppo.rules:right_number"},
        generation={"max_new_tokens": 4}, grpo={"dynamic_sampling": 1},
        train={"max_steps": 2, "rollout_batch_size": 8, "minibatch_size": 8, "samples_per_prompt": 4},
    )  # fmt: skip
    job = client.wait(client.submit(asked).id, timeout_s=120)
    assert job.state == "succeeded", (job.message, *client.logs(job.id).lines)
    assert len(client.metrics(job.id).values["groups_with_signal"]) == 2
    assert {artifact.kind for artifact in job.artifacts} >= {"model"}


def test_sft_on_two_ranks_leaves_a_model_that_the_next_job_starts_from(
    door: FrontDoor, client: Client, cpu_image: str
) -> None:
    """torchrun inside the container, LoRA under ddp, then its result as another job's model."""
    asked = spec(door, "sft", cpu_image, strategy="ddp", lora={"rank": 4}, resources={"processes": 2})
    job = client.wait(client.submit(asked).id, timeout_s=150)
    assert job.state == "succeeded", (job.message, *client.logs(job.id).lines)
    losses = client.metrics(job.id).values["loss"]
    assert losses[0] is not None and losses[-1] is not None and losses[-1] < losses[0]
    model = door.data_dir / "jobs" / job.id / "run" / "model"
    assert (model / "model.safetensors").is_file() and json.loads((model / "navarch.json").read_text())
    (artifact,) = [found for found in job.artifacts if found.kind == "model"]
    asked = {**spec(door, "sft", cpu_image), "name": "next", "model": f"artifact:{artifact.name}"}
    again = client.wait(client.submit(asked).id, timeout_s=120)
    assert again.state == "succeeded", again.message
    first = client.metrics(again.id).values["loss"][0]
    assert first is not None and first < losses[0]


def test_a_malformed_row_ends_the_job_with_its_file_and_line(door: FrontDoor, client: Client, cpu_image: str) -> None:
    asked = {**spec(door, "sft", cpu_image), "name": "bad-row"}
    rows = Path(asked["data"]["sources"][0]["path"])
    broken = rows.with_name("broken.jsonl")
    broken.write_text("".join([*rows.read_text().splitlines(keepends=True)[:2], '{"instruction": "half a ro\n']))
    asked["data"] = {"sources": [{"path": str(broken)}]}
    job = client.wait(client.submit(asked).id, timeout_s=60)
    assert (job.state, job.reason) == ("failed", "bad_data"), job.message
    assert "broken.jsonl" in (job.message or "") and "3" in (job.message or ""), job.message
