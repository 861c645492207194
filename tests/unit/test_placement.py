"""Placement: whatever the hosts and the jobs, nothing is given twice, and who waits is told what for."""

from hypothesis import given
from hypothesis import strategies as st

from jobs.placement import Demand, HostCapacity, Placement, Queue, Waiting, Waits, impossible, place


def host(name: str, gpus: int = 0, taken: int = 0, **more: object) -> HostCapacity:
    uuids = tuple(f"{name}-{index}" for index in range(gpus))
    return HostCapacity(id=name, name=name, gpus=uuids, taken_gpus=frozenset(uuids[:taken]), **more)  # type: ignore[arg-type]


def test_a_job_goes_where_the_smallest_gap_fits() -> None:
    placement = place(Demand(gpus=2), [host("big", 8), host("small", 2), host("full", 4, taken=3)])
    assert isinstance(placement, Placement)
    assert placement.replicas[0].host_id == "small"
    assert placement.replicas[0].gpus == ("small-0", "small-1")


def test_a_gang_spreads_over_hosts_and_has_one_master_port() -> None:
    placement = place(Demand(nodes=2, gpus=2, pool_ports=1), [host("a", 4), host("b", 4)])
    assert isinstance(placement, Placement)
    assert {replica.host_id for replica in placement.replicas} == {"a", "b"}
    assert placement.master_port is not None
    assert placement.master_port not in placement.replicas[0].pool_ports


def test_who_waits_is_told_what_for() -> None:
    answer = place(Demand(gpus=8), [host("h1", 8, taken=5), host("h2", 8, unusable="can't be reached now")])
    assert answer == Waits("needs 8 GPUs on one host: h1 has 3 of 8 free; h2 can't be reached now", for_gpus=True)
    busy = host("h1", containers=2, max_containers=2)
    assert place(Demand(), [busy]) == Waits("needs a host: h1 runs 2 containers already, its limit")
    ports = host("h1", taken_ports={8095: "other"})
    assert place(Demand(fixed_ports=(8095,)), [ports]) == Waits("needs a host: port 8095 of h1 belongs to job other")


def test_what_can_never_run_is_refused_with_what_there_is() -> None:
    hosts = [host("h1", 4), host("h2", 2)]
    assert impossible(Demand(gpus=8), hosts) == (
        "not_enough_gpus",
        "needs 8 GPUs on one host, but h1 has 4 GPUs; h2 has 2 GPUs",
    )
    assert impossible(Demand(nodes=3, gpus=2), hosts) is None
    assert impossible(Demand(nodes=4, gpus=2), hosts) is not None
    assert impossible(Demand(nodes=100), hosts) is not None
    assert impossible(Demand(cpus=64.0), hosts) is not None
    assert impossible(Demand(), []) is not None


def test_another_attempt_tries_other_ports() -> None:
    first = place(Demand(pool_ports=1), [host("h")], seed=0)
    second = place(Demand(pool_ports=1), [host("h")], seed=1)
    assert isinstance(first, Placement)
    assert isinstance(second, Placement)
    assert first.replicas[0].pool_ports != second.replicas[0].pool_ports


def test_small_jobs_don_t_starve_a_large_one() -> None:
    queue = Queue([host("h1", 8, taken=2, max_containers=99), host("h2", 2)])
    large = Waiting("1", "large", Demand(gpus=8))
    small = Waiting("2", "small", Demand(gpus=4))
    tiny = Waiting("3", "tiny", Demand(gpus=1))
    cpu = Waiting("4", "cpu", Demand())
    assert isinstance(queue.offer(large), Waits)
    behind = queue.offer(small)
    assert isinstance(behind, Waits)
    assert behind.why == "waits behind job large, which is ahead in the queue"
    placed = queue.offer(tiny)
    assert isinstance(placed, Placement)
    assert placed.replicas[0].host_id == "h2"
    assert isinstance(queue.offer(cpu), Placement)


DEMANDS = st.builds(
    Demand,
    nodes=st.integers(1, 3),
    gpus=st.integers(0, 4),
    fixed_ports=st.sampled_from([(), (7000,), (20001,)]),
    pool_ports=st.integers(0, 3),
)
HOSTS = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=4)


@given(HOSTS, st.lists(DEMANDS, max_size=12), st.integers(0, 1000))
def test_nothing_is_ever_given_twice(sizes: list[tuple[int, int]], demands: list[Demand], seed: int) -> None:
    hosts = [host(f"h{index}", gpus, min(taken, gpus), last_port=20005) for index, (gpus, taken) in enumerate(sizes)]
    already = {uuid for h in hosts for uuid in h.taken_gpus}
    queue, gpus, ports = Queue(hosts), set(already), set()
    for number, demand in enumerate(demands):
        job = Waiting(str(number), f"job{number}", demand, seed)
        answer = queue.offer(job)
        if isinstance(answer, Waits):
            assert answer.why
            continue
        queue.took(job, answer)
        assert len(answer.replicas) == demand.nodes
        for replica in answer.replicas:
            assert len(replica.gpus) == demand.gpus
            assert not gpus & set(replica.gpus)
            gpus |= set(replica.gpus)
            wanted = [*replica.pool_ports, *replica.fixed_ports]
            if replica.node_rank == 0 and answer.master_port is not None:
                wanted.append(answer.master_port)
            for port in wanted:
                assert (replica.host_id, port) not in ports
                ports.add((replica.host_id, port))
