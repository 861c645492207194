"""The queue: a job that waits keeps what it will need, and no more; who can't delay it goes ahead."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.placement import NEVER, SOME_DAY, Demand, Holding, HostCapacity, Placement, Room, Waits, place
from jobs.queue import Queue, Waiting
from tests.unit.test_placement import holding, host


def offer(queue: Queue, demand: Demand, name: str = "job") -> Placement | Waits:
    job = Waiting(name, name, demand)
    answer = queue.offer(job)
    if isinstance(answer, Placement):
        queue.took(job, answer)
    return answer


def placed(queue: Queue, demand: Demand, count: int) -> int:
    return sum(isinstance(offer(queue, demand, f"job{number}"), Placement) for number in range(count))


def busy(name: str, ends: float = SOME_DAY, gpus: int = 8, taken: int = 1) -> HostCapacity:
    return host(name, gpus, taken, holdings=(holding(taken, ends),), max_containers=99)


def test_one_large_job_that_waits_keeps_one_host_of_ten() -> None:
    queue = Queue([busy(f"h{number}") for number in range(10)])
    assert isinstance(offer(queue, Demand(gpus=8), "large"), Waits)
    assert placed(queue, Demand(gpus=1), 70) == 63
    answer = offer(queue, Demand(gpus=2), "behind")
    assert isinstance(answer, Waits) and "h0 is kept for job large, which is ahead in the queue" in answer.why


def test_what_the_large_job_leaves_of_its_host_is_free_for_others() -> None:
    queue = Queue([host("h1", 8, 6, holdings=(holding(6),), cpus=16.0, max_containers=9)])
    assert isinstance(offer(queue, Demand(gpus=4, cpus=8.0), "large"), Waits)
    assert isinstance(offer(queue, Demand(gpus=1)), Waits)
    assert placed(queue, Demand(cpus=4.0), 5) == 2, "8 of 16 CPUs are kept"
    assert isinstance(offer(queue, Demand()), Placement)


def test_who_ends_in_time_may_use_what_is_kept() -> None:
    queue = Queue([busy("h1", ends=1000.0)], now=0.0)
    assert isinstance(offer(queue, Demand(gpus=8), "large"), Waits)
    assert isinstance(offer(queue, Demand(gpus=1, lasts=1001.0)), Waits)
    assert isinstance(offer(queue, Demand(gpus=1)), Waits)
    assert isinstance(offer(queue, Demand(gpus=1, lasts=900.0)), Placement)


def test_what_is_free_when_the_large_job_starts_may_be_taken_for_as_long_as_one_likes() -> None:
    two = (holding(4, ends=100.0), holding(2, ends=NEVER))
    queue = Queue([host("h1", 8, 6, holdings=two, max_containers=9)], now=0.0)
    assert isinstance(offer(queue, Demand(gpus=4), "large"), Waits)
    assert placed(queue, Demand(gpus=1), 3) == 2, "at 100 six are free, and four of them are kept"


def test_a_host_whose_job_stays_is_kept_last() -> None:
    queue = Queue([busy("h1", ends=NEVER), busy("h2", taken=3)])
    assert isinstance(offer(queue, Demand(gpus=8), "large"), Waits)
    answer = offer(queue, Demand(gpus=2))
    assert isinstance(answer, Placement) and answer.replicas[0].host_id == "h1"


def test_a_job_that_waits_for_a_port_or_a_lost_host_keeps_nothing() -> None:
    hosts = [host("h1", 4, taken_ports={7000: "job other"}), host("h2", 8, unusable="can't be reached now")]
    queue = Queue(hosts)
    assert isinstance(offer(queue, Demand(gpus=4, fixed_ports=(7000,)), "port"), Waits)
    assert isinstance(offer(queue, Demand(gpus=8), "lost"), Waits)
    assert isinstance(offer(queue, Demand(gpus=4)), Placement)


def test_the_named_ports_of_the_job_ahead_are_kept_too() -> None:
    queue = Queue([busy("h1")])
    assert isinstance(offer(queue, Demand(gpus=8, fixed_ports=(7000,)), "large"), Waits)
    assert isinstance(offer(queue, Demand(fixed_ports=(7000,))), Waits)
    assert isinstance(offer(queue, Demand(fixed_ports=(7001,))), Placement)


def test_the_first_job_that_waits_is_the_one_for_which_room_is_kept() -> None:
    queue = Queue([busy("h1", gpus=8), busy("h2", gpus=4)])
    assert isinstance(offer(queue, Demand(gpus=8), "first"), Waits)
    assert isinstance(offer(queue, Demand(gpus=4), "second"), Waits)
    assert placed(queue, Demand(gpus=1), 4) == 3


SIZES = st.lists(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from([10.0, 40.0, 90.0])), max_size=4), min_size=1, max_size=4
)
"""Of each host, the GPUs of each container there and when it ends."""
SMALL = st.builds(
    Demand,
    nodes=st.integers(1, 2),
    gpus=st.integers(0, 3),
    cpus=st.sampled_from([None, 1.0, 2.0]),
    lasts=st.sampled_from([None, 9.0, 35.0, 80.0, NEVER]),
)
LARGE = st.builds(Demand, nodes=st.integers(1, 3), gpus=st.integers(1, 8), cpus=st.sampled_from([None, 2.0, 4.0]))


def filled(sizes: list[list[tuple[int, float]]]) -> list[HostCapacity]:
    hosts = []
    for index, containers in enumerate(sizes):
        holdings = tuple(holding(gpus, ends, cpus=1.0) for gpus, ends in containers if gpus)
        taken = min(8, sum(h.room.gpus for h in holdings))
        while sum(h.room.gpus for h in holdings) > 8:
            holdings = holdings[:-1]
            taken = sum(h.room.gpus for h in holdings)
        hosts.append(host(f"h{index}", 8, taken, holdings=holdings, cpus=6.0, max_containers=6))
    return hosts


def at(hosts: Sequence[HostCapacity], when: float) -> list[HostCapacity]:
    """The hosts when everything that ends by then has ended; GPUs are free by number."""
    later = []
    for one in hosts:
        left = tuple(h for h in one.holdings if h.ends > when)
        later.append(host(one.name, 8, sum(h.room.gpus for h in left), holdings=left, cpus=6.0, max_containers=6))
    return later


@given(SIZES, LARGE, st.lists(SMALL, max_size=10))
@settings(max_examples=300)
def test_nobody_delays_the_job_ahead(sizes: list[list[tuple[int, float]]], large: Demand, others: list[Demand]) -> None:
    hosts = filled(sizes)
    soonest = next((t for t in (0.0, 10.0, 40.0, 90.0) if isinstance(place(large, at(hosts, t)), Placement)), None)
    queue = Queue(hosts, now=0.0)
    first = offer(queue, large, "large")
    assert isinstance(first, Placement) is (soonest == 0.0)
    if isinstance(first, Placement) or soonest is None:
        return
    for number, demand in enumerate(others):
        offer(queue, demand, f"job{number}")
    with_others = tuple(queue._hosts.values())
    assert isinstance(place(large, at(with_others, soonest)), Placement)


@dataclass
class Cluster:
    """Hosts with jobs of which nobody knows when they end, in simulated time."""

    count: int
    running: list[tuple[float, str, int]] = field(default_factory=list)

    def hosts(self) -> list[HostCapacity]:
        found = []
        for number in range(self.count):
            mine = [gpus for _, name, gpus in self.running if name == f"h{number}"]
            holdings = tuple(Holding(Room(gpus, 0.0, 0, 1)) for gpus in mine)
            found.append(host(f"h{number}", 4, sum(mine), holdings=holdings, max_containers=99))
        return found


@given(st.integers(1, 3), st.data())
@settings(max_examples=60, deadline=None)
def test_a_stream_of_small_jobs_never_starves_a_large_one(count: int, data: st.DataObject) -> None:
    """Small jobs take all that they are given, at every moment; the large one starts when one job's time is over."""
    cluster, longest = Cluster(count), 12
    durations = st.integers(1, longest)
    nodes = data.draw(st.integers(1, count))
    for now in range(count * longest + 2):
        cluster.running = [entry for entry in cluster.running if entry[0] > now]
        queue = Queue(cluster.hosts(), float(now))
        if now > 0 and isinstance(offer(queue, Demand(nodes=nodes, gpus=4), "large"), Placement):
            return
        for gpus in (2, 1, 1, 1):
            while isinstance(answer := offer(queue, Demand(gpus=gpus), f"small{gpus}"), Placement):
                cluster.running.append((now + data.draw(durations), answer.replicas[0].host_id, gpus))
    raise AssertionError("the large job never started")
