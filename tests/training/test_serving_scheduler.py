"""The scheduler over a real decoder: packed admission, the same tokens as the engine, slots that come back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.training.test_serving import make_folder
from training.config.generation import GenerationConfig
from training.config.serving import ServeConfig
from training.rollout import RolloutEngine
from training.rollout.decoder import Decoder
from training.rollout.slots import Features
from training.serving.answers import Text
from training.serving.loading import Served, load_served
from training.serving.messages import Ask, QueueFull, Update
from training.serving.metrics import Metrics
from training.serving.scheduler import ALL, FILTERED, LONGEST_HOLD, PLAIN, TOP, Scheduler, features_for, worth_admitting
from training.serving.spelling import Speller, Spelling

LENGTH = 512


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    folder: Path = make_folder(tmp_path_factory.mktemp("models") / "tiny")
    return load_served(ServeConfig(model=str(folder), max_length=LENGTH))


def make_scheduler(served: Served, slots: int = 6, max_queue: int = 100) -> Scheduler:
    decoder = Decoder(served.model, max_batch=slots, max_length=LENGTH)
    return Scheduler(decoder, max_queue=max_queue, metrics=Metrics())


def ask(number: int, prompt: list[int], new: int = 8, *, top: int = 0, seed: int | None = None, **options: Any) -> Ask:
    config = GenerationConfig(max_new_tokens=new, **{"temperature": 0.0, **options})
    return Ask(number, prompt, config, (), seed, 0, False, top > 0, top, 0.0)


def run(scheduler: Scheduler, asks: list[Ask]) -> dict[int, list[int]]:
    tokens: dict[int, list[int]] = {one.number: [] for one in asks}

    def deliver(update: Update) -> None:
        tokens[update.number] += update.tokens

    scheduler.submit(tuple(asks), deliver)
    while not scheduler.idle:
        scheduler.step()
    return tokens


def counter(scheduler: Scheduler, name: str) -> float:
    value = scheduler.metrics.registry.get_sample_value(f"navarch_serve_{name}_total")
    assert value is not None
    return value


def test_prompts_beyond_one_prefill_pass_say_what_the_engine_says(served: Served) -> None:
    prompts = [[3 + (i * 7 + n) % 250 for i in range(480 - n)] for n in range(9)]  # 4,284 tokens: more than two passes
    scheduler = make_scheduler(served)
    found = run(scheduler, [ask(number, prompt) for number, prompt in enumerate(prompts)])
    engine = RolloutEngine(served.model, max_batch=1, max_length=LENGTH)
    for number, prompt in enumerate(prompts):
        expected = engine.generate([prompt], GenerationConfig(temperature=0, max_new_tokens=8)).response(0)
        assert found[number] == expected, f"prompt {number}"
    assert counter(scheduler, "prefills") == 3  # four and two of the first six, and the last three together
    assert counter(scheduler, "generated_tokens") == 72 and scheduler.load == (0, 0)
    assert counter(scheduler, "slot_steps") / counter(scheduler, "steps") > 2


def test_a_crowd_waits_its_turn_and_is_refused_when_the_queue_is_full(served: Served) -> None:
    scheduler = make_scheduler(served, slots=2, max_queue=3)
    with pytest.raises(QueueFull):
        scheduler.submit(tuple(ask(i, [5, 6]) for i in range(6)), print)
    assert scheduler.idle, "none of a refused request is kept"
    found = run(scheduler, [ask(i, [5, 6, 7 + i], new=3 + i) for i in range(5)])
    assert [len(found[i]) for i in range(5)] == [3, 4, 5, 6, 7]


def test_those_who_are_cancelled_give_their_slots_back_wherever_they_are(served: Served) -> None:
    scheduler = make_scheduler(served, slots=1)
    updates: list[Update] = []
    running, waiting = scheduler.submit((ask(0, [5, 6], new=300), ask(1, [7, 8], new=300)), updates.append)
    scheduler.step()
    scheduler.step()
    assert scheduler.load == (1, 1)
    scheduler.cancel(waiting)
    scheduler.cancel(running)
    scheduler.cancel(running)  # once more does nothing
    assert [(update.number, update.finish) for update in updates] == [(1, "abort"), (0, "abort")]
    again = run(scheduler, [ask(2, [9, 10], new=5)])
    assert again == run(make_scheduler(served, slots=1), [ask(2, [9, 10], new=5)])


def test_requests_without_a_seed_differ_and_those_with_one_do_not(served: Served) -> None:
    scheduler = make_scheduler(served)
    found = run(scheduler, [ask(i, [5, 6], 16, seed=7 if i < 2 else None, temperature=1.0) for i in range(5)])
    assert found[0] == found[1]
    assert len({tuple(tokens) for tokens in found.values()}) == 4


def test_waiting_for_company_costs_no_more_than_the_pass_that_it_saves() -> None:
    assert not worth_admitting([], 5, 0.001)
    assert worth_admitting([0.0], 0, 0.001), "nobody runs: nothing is lost by starting"
    assert not worth_admitting([0.001], 8, 0.001)
    assert worth_admitting([0.004, 0.003, 0.001], 8, 0.001)
    assert worth_admitting([LONGEST_HOLD], 500, 0.01)


def test_the_kind_of_step_has_what_any_of_the_requests_needs(served: Served) -> None:
    scheduler = make_scheduler(served)

    def kind(*asks: Ask) -> Features:
        return features_for(scheduler.submit(asks, print))

    plain, nucleus, looking = ask(0, [5]), ask(1, [5], temperature=1.0, top_p=0.5), ask(2, [5], top=3)
    assert kind(plain) == PLAIN and kind(plain, nucleus) == FILTERED and kind(looking, plain) == TOP
    assert kind(looking, nucleus) == kind(ask(3, [5], repetition_penalty=1.2)) == ALL


def test_a_richer_kind_of_step_changes_no_token(served: Served) -> None:
    alone = run(make_scheduler(served), [ask(0, [5, 6, 7], new=20, temperature=0.8, seed=3)])
    others = [ask(1, [5, 6], new=30, top=2), ask(2, [8], new=30, temperature=1.0, top_p=0.4, repetition_penalty=1.3)]
    crowd = run(make_scheduler(served), [ask(0, [5, 6, 7], new=20, temperature=0.8, seed=3), *others])
    assert crowd[0] == alone[0]


def test_a_stop_token_is_counted_but_not_shown(served: Served) -> None:
    """Nor listed among the log-probs: it is no part of the text."""
    codec = served.codec
    text = Text(codec.decode, (), Speller(Spelling(codec)))
    tokens = [*codec.tokenizer("hi", add_special_tokens=False)["input_ids"], codec.stop_ids[0]]
    piece = text.add(Update(0, tokens, [-1.0, -2.0, -3.0], finish="stop"))
    assert (piece.text, piece.finish, text.generated) == ("hi", "stop", 3)
    assert [(token.spelled.shown, token.logprob, token.offset) for token in piece.tokens] == [
        ("h", -1.0, 0),
        ("i", -2.0, 1),
    ]
