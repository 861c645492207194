"""Placement: where jobs go, why they wait, and that nothing is ever given twice."""

import itertools
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.placement import SOME_DAY, Demand, Holding, HostCapacity, Need, Placement, Room, Waits, place
from jobs.possible import impossible
from jobs.queue import Queue, Waiting


def host(name: str, gpus: int = 0, taken: int = 0, **more: object) -> HostCapacity:
    uuids = tuple(f"{name}-{index}" for index in range(gpus))
    return HostCapacity(id=name, name=name, gpus=uuids, taken_gpus=frozenset(uuids[:taken]), **more)  # type: ignore[arg-type]


def holding(gpus: int = 0, ends: float = SOME_DAY, cpus: float = 0.0, memory: int = 0) -> Holding:
    return Holding(Room(gpus, cpus, memory, 1), ends)


def test_a_job_goes_where_the_smallest_gap_fits() -> None:
    placement = place(Demand(gpus=2), [host("big", 8), host("small", 2), host("full", 4, taken=3)])
    assert isinstance(placement, Placement)
    assert placement.replicas[0].host_id == "small"
    assert placement.replicas[0].gpus == ("small-0", "small-1")


def where(demand: Demand, hosts: list[HostCapacity]) -> list[str] | str:
    answer = place(demand, hosts)
    return [replica.host_id for replica in answer.replicas] if isinstance(answer, Placement) else answer.why


def test_a_gang_packs_or_spreads_and_has_one_master_port() -> None:
    hosts = [host("a", 4), host("b", 4)]
    placement = place(Demand(nodes=2, gpus=2, pool_ports=1, spread=True), hosts)
    assert isinstance(placement, Placement)
    assert {replica.host_id for replica in placement.replicas} == {"a", "b"}
    assert placement.master_port is not None
    assert placement.master_port not in placement.replicas[0].pool_ports
    assert where(Demand(nodes=3, gpus=2), hosts) == ["a", "a", "b"]
    assert where(Demand(nodes=2, spread=True), hosts[:1]) == (
        "needs 2 nodes, has room for 1: a has one of the nodes already"
    )
    assert impossible(Demand(nodes=3, spread=True), hosts) == (
        "not_enough_hosts",
        "needs 3 hosts (`spread`), but there are 2",
    )


def test_a_gang_has_gpus_of_one_model() -> None:
    mixed = host("m", 4, models={"m-0": "A100", "m-1": "H200", "m-2": "H200", "m-3": "A100"})
    other = host("o", 1, models={"o-0": "H200"})
    placement = place(Demand(nodes=3, gpus=1), [mixed, other])
    assert isinstance(placement, Placement)
    assert {gpu for replica in placement.replicas for gpu in replica.gpus} == {"m-1", "m-2", "o-0"}
    refusal = impossible(Demand(nodes=4, gpus=1), [mixed, other])
    assert refusal is not None and refusal[1].endswith("of one model")


def test_labels_are_asked_for_and_a_host_without_an_address_is_no_part_of_a_gang() -> None:
    hosts = [host("local", alone=True), host("h1", labels={"room": "a"}), host("h2")]
    assert where(Demand(labels=(("room", "a"),)), hosts) == ["h1"]
    assert impossible(Demand(labels=(("room", "b"),)), hosts) == (
        "not_enough_hosts",
        "needs hosts with the label room=b, but none has it",
    )
    assert where(Demand(nodes=2, spread=True), hosts) == ["h1", "h2"]
    refusal = impossible(Demand(nodes=3, spread=True), hosts)
    assert refusal is not None and "local is left out" in refusal[1]


def test_a_host_that_failed_a_check_is_avoided_as_long_as_others_can_do_it() -> None:
    two = Demand(nodes=2, spread=True, avoid=frozenset({"h1"}))
    assert where(two, [host("h1"), host("h2"), host("h3")]) == ["h2", "h3"]
    assert where(two, [host("h1"), host("h2")]) == ["h1", "h2"]
    assert two.key != Demand(nodes=2, spread=True).key


def test_who_waits_is_told_what_for() -> None:
    answer = place(Demand(gpus=8), [host("h1", 8, taken=5), host("h2", 8, unusable="can't be reached now")])
    assert answer == Waits("needs 8 GPUs on one host: h1 has 3 of 8 free; h2 can't be reached now", for_room=True)
    busy = host("h1", holdings=(holding(), holding()), max_containers=2)
    assert place(Demand(), [busy]) == Waits("needs a host: h1 runs 2 containers already, its limit", for_room=True)
    ports = host("h1", taken_ports={8095: "job other"})
    assert place(Demand(fixed_ports=(8095,)), [ports]) == Waits("needs a host: port 8095 of h1 belongs to job other")
    full = host("h1", first_port=20000, last_port=20001)
    assert place(Demand(pool_ports=3), [full]) == Waits("needs a host: the port pool of h1 is used up")


def test_what_only_some_hosts_have_keeps_a_job_from_the_others() -> None:
    demand = Demand(needs=(Need("artifact base@1", ("h2",)),))
    hosts = [host("h1"), host("h2")]
    placement = place(demand, hosts)
    assert isinstance(placement, Placement) and placement.replicas[0].host_id == "h2"
    answer = place(demand, [hosts[0], host("h2", unusable="is draining")])
    assert answer == Waits("needs a host: h1 does not have artifact base@1; h2 is draining")


def test_a_sick_gpu_is_nobodys_and_who_waits_for_it_is_told() -> None:
    sick = host("h1", 2, sick_gpus={"h1-0": "ecc"})
    placement = place(Demand(gpus=1), [sick])
    assert isinstance(placement, Placement) and placement.replicas[0].gpus == ("h1-1",)
    answer = place(Demand(gpus=2), [sick])
    assert answer == Waits("needs 2 GPUs on one host: h1 has 1 of 2 free (h1-0 is not used: ecc)", for_room=False)


def test_cpus_and_memory_of_running_jobs_are_subtracted() -> None:
    machine = host("h1", cpus=4.0, memory=16 << 30, holdings=(holding(cpus=2.5, memory=12 << 30),))
    assert isinstance(place(Demand(cpus=1.5, memory=4 << 30), [machine]), Placement)
    cpus = place(Demand(cpus=2.0), [machine])
    assert cpus == Waits("needs 2 CPUs on one host: h1 has 1.5 of 4 CPUs free", for_room=True)
    memory = place(Demand(memory=5 << 30), [machine])
    assert memory == Waits("needs 5 GB of memory on one host: h1 has 4 GB of 16 GB of memory free", for_room=True)
    gang = place(Demand(nodes=2, cpus=1.0), [machine])
    assert gang == Waits("needs 2 nodes with 1 CPU each, has room for 1: h1 has 0.5 of 4 CPUs free", for_room=True)


def test_a_pool_port_is_never_one_that_the_job_names_itself() -> None:
    placement = place(Demand(fixed_ports=(20000,), pool_ports=1), [host("h", first_port=20000, last_port=20001)])
    assert isinstance(placement, Placement) and placement.replicas[0].pool_ports == (20001,)


def test_what_can_never_run_is_refused_with_what_there_is() -> None:
    hosts = [host("h1", 4, cpus=8.0, memory=64 << 30), host("h2", 2, cpus=32.0, memory=16 << 30)]
    assert impossible(Demand(gpus=8), hosts) == (
        "not_enough_gpus",
        "needs 8 GPUs on one host, but h1 has 4 GPUs; h2 has 2 GPUs",
    )
    assert impossible(Demand(nodes=3, gpus=2), hosts) is None
    assert impossible(Demand(nodes=4, gpus=2), hosts) == (
        "not_enough_gpus",
        "needs 4 nodes with 2 GPUs each, but h1 has 4 GPUs; h2 has 2 GPUs",
    )
    assert impossible(Demand(nodes=100), hosts) is not None
    assert impossible(Demand(cpus=64.0), hosts) == (
        "not_enough_cpus",
        "needs 64 CPUs on one host, but h1 has 8 CPUs; h2 has 32 CPUs",
    )
    assert impossible(Demand(memory=1 << 40), hosts) == (
        "not_enough_memory",
        "needs 1.0 TB of memory on one host, but h1 has 64 GB; h2 has 16 GB",
    )
    assert impossible(Demand(gpus=4, cpus=16.0), hosts) == (
        "not_enough_hosts",
        "needs 4 GPUs and 16 CPUs together on one host, but h1 has 4 GPUs, 8 CPUs and 64 GB of memory; "
        "h2 has 2 GPUs, 32 CPUs and 16 GB of memory",
    )
    assert (impossible(Demand(), hosts, shm=65 << 30) or ("",))[0] == "not_enough_memory"
    assert impossible(Demand(), hosts, shm=64 << 30) is None
    assert impossible(Demand(pool_ports=2001), hosts) == (
        "not_enough_ports",
        "needs 2,001 ports of one host's pool, which has 2,000",
    )
    assert impossible(Demand(), []) == ("not_enough_hosts", "needs a host, but there is none")


def test_another_attempt_tries_other_ports() -> None:
    first = place(Demand(pool_ports=1), [host("h")], seed=0)
    second = place(Demand(pool_ports=1), [host("h")], seed=1)
    assert isinstance(first, Placement)
    assert isinstance(second, Placement)
    assert first.replicas[0].pool_ports != second.replicas[0].pool_ports


DEMANDS = st.builds(
    Demand,
    nodes=st.integers(1, 3),
    gpus=st.integers(0, 4),
    fixed_ports=st.sampled_from([(), (7000,), (20001,)]),
    pool_ports=st.integers(0, 3),
    cpus=st.sampled_from([None, 0.5, 1.0, 3.0]),
    memory=st.sampled_from([None, 1, 4, 9]),
    lasts=st.sampled_from([None, 50.0, 500.0, float("inf")]),
)
HOSTS = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=4)


def machines(sizes: list[tuple[int, int]]) -> list[HostCapacity]:
    """Hosts with so many GPUs, of which so many are taken by one container."""
    return [
        host(
            f"h{index}",
            gpus,
            min(taken, gpus),
            last_port=20005,
            cpus=4.0,
            memory=16,
            holdings=(holding(min(taken, gpus), cpus=0.5, memory=1),) if taken else (),
        )
        for index, (gpus, taken) in enumerate(sizes)
    ]


@given(HOSTS, st.lists(DEMANDS, max_size=12), st.integers(0, 1000))
def test_nothing_is_ever_given_twice(sizes: list[tuple[int, int]], demands: list[Demand], seed: int) -> None:
    hosts = machines(sizes)
    already = {uuid for h in hosts for uuid in h.taken_gpus}
    queue, gpus, ports = Queue(hosts), set(already), set()
    cpus: Counter[str] = Counter()
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
            cpus[replica.host_id] += int(2 * (demand.cpus or 0))
            wanted = [*replica.pool_ports, *replica.fixed_ports]
            if replica.node_rank == 0 and answer.master_port is not None:
                wanted.append(answer.master_port)
            for port in wanted:
                assert (replica.host_id, port) not in ports
                ports.add((replica.host_id, port))
    assert all(cpus[h.id] + len(h.holdings) <= 8 for h in hosts)


@given(HOSTS, DEMANDS)
def test_a_place_is_found_whenever_there_is_one(sizes: list[tuple[int, int]], demand: Demand) -> None:
    hosts = machines(sizes)
    found = isinstance(place(demand, hosts), Placement)
    assert found is any(
        all(h.free.holds(Room().plus(demand.room, chosen.count(h.id))) for h in hosts)
        and all(chosen.count(h.id) * demand.pool_ports + _named(h, chosen, demand) <= 6 for h in hosts)
        for chosen in itertools.product([h.id for h in hosts], repeat=demand.nodes)
    )


def _named(machine: HostCapacity, chosen: tuple[str, ...], demand: Demand) -> int:
    """Ports of the pool that only rank 0 takes: the master's, and one that the job names."""
    return (demand.nodes > 1) + (20001 in demand.fixed_ports) if chosen[0] == machine.id else 0


@given(HOSTS, DEMANDS)
@settings(max_examples=200)
def test_only_what_no_emptying_helps_is_called_impossible(sizes: list[tuple[int, int]], demand: Demand) -> None:
    refusal = impossible(demand, machines(sizes))
    if refusal is not None:
        assert isinstance(place(demand, machines([(gpus, 0) for gpus, _ in sizes])), Waits)
        assert all(word in refusal[1] for word in ("needs", "ha"))
