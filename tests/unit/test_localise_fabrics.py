"""Properties of localisation over simulated fabrics: never a false accusation, never more than four rounds."""

from __future__ import annotations

import importlib.util
import json
import random
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from gpuready.validators import localise
from gpuready.validators.localise import Node, Outcome, Search


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    """The simulator of bench/localise.py, which is a script and in no package."""
    path = Path(__file__).resolve().parents[2] / "bench" / "localise.py"
    spec = importlib.util.spec_from_file_location("bench_localise", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def run(search: Search, fabric: Any, most: int | None = None) -> None:
    """Run a search to its end, or for ``most`` runs."""
    while runs := search.next_round():
        for one in runs:
            if most == 0:
                return
            most = None if most is None else most - 1
            search.record(one.id, fabric.measure(one))


@pytest.mark.parametrize(("count", "seeds"), [(8, 60), (16, 60), (32, 40), (64, 30), (256, 5)])
def test_noise_never_accuses_a_healthy_node_and_hides_no_fault(bench: ModuleType, count: int, seeds: int) -> None:
    score = bench.Score()
    for seed in range(5001, 5001 + seeds):
        fabric = bench.Fabric.drawn(count, seed)
        answer = bench.planner(fabric, 5)
        assert answer.rounds <= 4
        score.add(fabric, answer, 0.0)
    assert score.false == 0, score.misses
    assert score.steady_found + score.leaves_found >= 0.95 * (score.steady + score.leaves), score.misses


@pytest.mark.parametrize("count", [8, 16, 40, 64])
def test_without_noise_every_lasting_fault_is_found_with_its_rail(bench: ModuleType, count: int) -> None:
    score = bench.Score()
    for seed in range(100, 120):
        # Far enough from the floors: just above them a fault is none.
        fabric = bench.Fabric.drawn(count, seed, (0.25, 0.8))
        fabric.noise = 0.0
        score.add(fabric, bench.planner(fabric, 5), 0.0)
    assert score.steady_found == score.steady, score.misses
    assert score.leaves_found == score.leaves, score.misses
    assert score.nics_named == score.nics
    assert score.false == 0, score.misses


def test_an_interrupted_search_ends_like_one_that_was_not(bench: ModuleType) -> None:
    for seed in range(1, 25):
        fabric = bench.Fabric.drawn(24, seed)
        whole = localise.start(fabric.nodes, floors=bench.FLOORS, seed=seed)
        run(whole, fabric)
        part = localise.start(fabric.nodes, floors=bench.FLOORS, seed=seed)
        run(part, fabric, random.Random(seed).randrange(len(whole.runs)))
        resumed = Search.from_json(json.loads(json.dumps(part.to_json())))
        run(resumed, fabric)
        assert resumed.runs == whole.runs
        assert resumed.verdicts() == whole.verdicts()


def test_any_shape_of_fabric_is_searched_in_four_rounds_of_disjoint_runs(bench: ModuleType) -> None:
    for seed in range(400):
        rng = random.Random(seed)
        leaves = rng.choice([[None], ["a"], ["a", "b", "c"], [None, "a", "b"]])
        sizes = rng.choice([1, 2, 3, 5, 7, 8, 9, 13, 30])
        rails = rng.choice([0, 1, 8])
        nodes = [Node(f"n{one}", rng.choice(leaves), 8) for one in range(sizes)]
        fabric = bench.Fabric(nodes, seed, noise=rng.choice([0.0, 0.03]))
        for node in nodes:
            if rng.random() < rng.choice([0.0, 0.1, 0.5, 1.0]):
                fabric.bad[node.name] = bench.Fault(rng.choice(bench.KINDS), 0.5)
        floors = bench.FLOORS if seed % 4 else {}
        search = localise.start([Node(one.name, one.leaf, rails) for one in nodes], floors=floors, seed=seed)
        lost = rng.choice([0.0, 0.0, 0.2, 1.0])
        while runs := search.next_round():
            for one in runs:
                search.record(one.id, Outcome() if rng.random() < lost else fabric.measure(one))
        assert search.rounds <= 4
        uses = Counter((one.round, one.wave, name) for one in search.runs for name in one.nodes)
        assert max(uses.values()) == 1
        verdicts = search.verdicts()
        told = Counter(one.nodes[0] for one in verdicts if not one.leaves and one.cause != "path")
        assert told == Counter(node.name for node in nodes)
        known = {one.id for one in search.runs}
        assert all(set(one.runs) <= known and 0 < one.confidence < 1 for one in verdicts)
        # Without floors the usual rate is the median's, and with half of the nodes bad that is a bad one.
        wrong = [one for one in verdicts if len(one.nodes) == 1 and one.accuses and one.nodes[0] not in fabric.bad]
        assert not floors or not wrong
