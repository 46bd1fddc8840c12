"""How well the planner of gpuready.validators.localise finds faults, against three usual ways, on the same faults.

    python bench/localise.py                       # 8 to 4,096 nodes
    python bench/localise.py --sizes 64,512 --fabrics 200 --seed 7

The fabric is simulated: a fat tree whose leaves hold whole nodes, eight rails per node. Its faults: a slow board
(NVLink or GPU), a slow host (every rail), a slow NIC, a node whose runs fail, a NIC that is slow now and then,
and a leaf whose uplinks are slow, on one rail or on all. Every run is off by 3 % (one sigma), each repetition by
1 % more. What no simulation shows: congestion between runs, and faults that only a job of many nodes wakes.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from statistics import median

from gpuready.validators import localise
from gpuready.validators.localise import Node, Outcome, Run

RAILS = 8
RAIL_GBYTES_S = 48.0
PAIR_GBYTES_S = 440.0
SINGLE_GBYTES_S = 460.0
FLOORS: dict[localise.Kind, float] = {
    "single": 0.8 * SINGLE_GBYTES_S,
    "pair": 0.8 * PAIR_GBYTES_S,
    "rail": 0.8 * RAIL_GBYTES_S,
    "path": 0.8 * RAIL_GBYTES_S,
}
NOISE = 0.03  # of a run; its repetitions differ by a third of it
BAD_NODES = 0.05
BAD_LEAVES = 0.03
KINDS = ("board", "host", "nic", "nic", "nic", "dead", "flaky")


@dataclass(frozen=True)
class Fault:
    """What is wrong: ``share`` of the rate is left on ``rails``; ``chance`` that a repetition shows it."""

    kind: str
    share: float
    rails: tuple[int, ...] = tuple(range(RAILS))
    chance: float = 1.0


@dataclass
class Fabric:
    """A fat tree with faults. The same seed and run id always measure the same."""

    nodes: list[Node]
    seed: int
    bad: dict[str, Fault] = field(default_factory=dict)
    leaves: dict[str, Fault] = field(default_factory=dict)
    noise: float = NOISE

    @classmethod
    def drawn(cls, count: int, seed: int, costs: tuple[float, float] = (0.2, 0.8), *, uplinks: bool = True) -> Fabric:
        """``count`` nodes in leaves of up to 32 with 5 % bad ones; each fault costs a share of the rate."""
        rng = random.Random(f"fabric {count} {seed}")
        size = max(4, min(32, count // 8))
        width = len(str(count))
        nodes = [Node(f"gpu-{number:0{width}d}", f"leaf-{number // size:03d}", RAILS) for number in range(count)]
        fabric = cls(nodes, seed)
        for node in rng.sample(nodes, max(1, int(BAD_NODES * count))):
            kind = rng.choice(KINDS)
            share = 1 - rng.uniform(*costs)
            rails = (rng.randrange(RAILS),) if kind in ("nic", "flaky") else tuple(range(RAILS))
            chance = rng.uniform(0.3, 0.8) if kind == "flaky" else 1.0
            fabric.bad[node.name] = Fault(kind, share, rails, chance)
        names = sorted({node.leaf or "" for node in nodes})
        # A leaf in every second fabric; more of them where there are many leaves.
        for leaf in rng.sample(names, max(seed % 2, int(BAD_LEAVES * len(names))) * uplinks):
            rails = (rng.randrange(RAILS),) if rng.random() < 0.5 else tuple(range(RAILS))
            fabric.leaves[leaf] = Fault("leaf", 1 - rng.uniform(*costs), rails)
        return fabric

    def __post_init__(self) -> None:
        self.leaf = {node.name: node.leaf or "" for node in self.nodes}

    def measure(self, run: Run) -> Outcome:
        """What a planned run measures."""
        rng = random.Random(f"{self.seed} {run.id}")
        if len(run.nodes) > 1 and any(self._is(name, "dead") for name in run.nodes):
            return Outcome(failed=True)
        if run.rails:
            off = {rail: rng.gauss(1, self.noise) for rail in run.rails}
            series: dict[int, list[float]] = {rail: [] for rail in run.rails}
            for _ in range(run.repeats):
                shares = self.shares(run.nodes, rng)
                for rail in run.rails:
                    series[rail].append(RAIL_GBYTES_S * shares[rail] * off[rail] * rng.gauss(1, self.noise / 3))
            return Outcome(per_rail={rail: tuple(figures) for rail, figures in series.items()})
        wide = rng.gauss(1, self.noise)
        figures = [self.all_reduce(run.nodes, rng) * wide * rng.gauss(1, self.noise / 3) for _ in range(run.repeats)]
        return Outcome(busbw_gbytes_s=tuple(figures))

    def _is(self, name: str, kind: str) -> bool:
        return name in self.bad and self.bad[name].kind == kind

    def shares(self, names: Sequence[str], rng: random.Random) -> list[float]:
        """What is left of each rail between these nodes in one repetition."""
        left = [1.0] * RAILS
        faults = [self.bad[name] for name in names if name in self.bad and self.bad[name].kind != "board"]
        places = {self.leaf[name] for name in names}
        if len(places) > 1:
            faults += [self.leaves[leaf] for leaf in places if leaf in self.leaves]
        for fault in faults:
            if fault.chance == 1.0 or rng.random() < fault.chance:
                for rail in fault.rails:
                    left[rail] = min(left[rail], fault.share)
        return left

    def all_reduce(self, names: Sequence[str], rng: random.Random) -> float:
        """Bus bandwidth over these nodes before noise; 0 where it fails. The slowest rail holds back all."""
        boards = [self.bad[name].share for name in names if self._is(name, "board")]
        inside = SINGLE_GBYTES_S * min(boards, default=1.0)
        if len(names) == 1:
            return inside
        if any(self._is(name, "dead") for name in names):
            return 0.0
        return min(inside, PAIR_GBYTES_S * min(boards, default=1.0), PAIR_GBYTES_S * min(self.shares(names, rng)))

    def once(self, names: Sequence[str], rng: random.Random) -> float:
        """One measurement with noise, as the other methods take it."""
        return self.all_reduce(names, rng) * rng.gauss(1, self.noise)


@dataclass
class Answer:
    """What a method found: accused ``nodes`` with the rail it names, or None, and ``leaves``; and its cost."""

    rounds: int
    waves: int
    runs: int
    nodes: dict[str, tuple[int, ...] | None]
    leaves: set[str]
    undecided: set[str] = field(default_factory=set)


def planner(fabric: Fabric, repeats: int, *, labels: bool = True) -> Answer:
    """Ours; without ``labels`` it is not told the leaves."""
    nodes = fabric.nodes if labels else [replace(node, leaf=None) for node in fabric.nodes]
    search = localise.start(nodes, floors=FLOORS, seed=fabric.seed, repeats=repeats)
    while runs := search.next_round():
        for run in runs:
            search.record(run.id, fabric.measure(run))
    waves = len({(run.round, run.wave) for run in search.runs})
    answer = Answer(search.rounds, waves, len(search.runs), {}, set())
    for verdict in search.verdicts():
        if verdict.cause == "undecided":
            answer.undecided.update(verdict.nodes)
        elif verdict.leaves:
            # Two leaves only, and no third to tell which: the path names both.
            bad = [leaf for leaf in verdict.leaves if leaf in fabric.leaves]
            answer.leaves.update(bad or verdict.leaves)
        elif verdict.cause == "path":
            # Unlabelled: nodes on both sides of the slow link, or behind it.
            leaves = {fabric.leaf[name] for name in verdict.nodes}
            answer.leaves.update(leaves & fabric.leaves.keys() or leaves)
        elif verdict.accuses:
            answer.nodes |= dict.fromkeys(verdict.nodes, verdict.rails or None)
    return answer


def _line(figures: Iterable[float]) -> float:
    """The decision rule of the planner for one-shot figures."""
    values = list(figures)
    middle = median(values)
    margin = max(3 * 1.4826 * median(abs(value - middle) for value in values), 0.05 * middle)
    return max(FLOORS["pair"], middle - margin if len(values) >= 8 else 0.0)


def all_pairs(fabric: Fabric) -> Answer:
    """Everyone with everyone, as many at once as there is room; then the leaves, with the whole matrix at hand."""
    rng = random.Random(f"all {fabric.seed}")
    names = [node.name for node in fabric.nodes]
    figures = {pair: fabric.once(pair, rng) for pair in combinations(names, 2)}
    line = _line(figures.values())
    near: defaultdict[str, list[bool]] = defaultdict(list)
    everyone: defaultdict[str, list[bool]] = defaultdict(list)
    for (first, second), figure in figures.items():
        bad = figure < line
        for name in (first, second):
            everyone[name].append(bad)
            if fabric.leaf[first] == fabric.leaf[second]:
                near[name].append(bad)
    accused = {name for name in names if sum(near[name]) > len(near[name]) / 2}
    across: defaultdict[str, list[bool]] = defaultdict(list)
    for (first, second), figure in figures.items():
        if fabric.leaf[first] != fabric.leaf[second] and not accused & {first, second}:
            for name in (first, second):
                across[fabric.leaf[name]].append(figure < line)
    leaves: set[str] = set()
    worst = sorted(across, key=lambda leaf: -sum(across[leaf]) / len(across[leaf]))
    for leaf in worst:
        # Partners in leaves that are bad already say nothing.
        runs = [
            figure < line
            for (first, second), figure in figures.items()
            if leaf in (fabric.leaf[first], fabric.leaf[second])
            and not {fabric.leaf[first], fabric.leaf[second]} & leaves
            and fabric.leaf[first] != fabric.leaf[second]
            and not accused & {first, second}
        ]
        if not runs or sum(runs) <= len(runs) * 0.75:
            break
        leaves.add(leaf)
    for name in set(names) - accused:
        runs = [
            figures[pair] < line
            for other in names
            if other != name and (pair := (min(name, other), max(name, other))) in figures
            if other not in accused
            and (fabric.leaf[other] == fabric.leaf[name] or not {fabric.leaf[name], fabric.leaf[other]} & leaves)
        ]
        if len(runs) > 2 and sum(runs) > max(1, 0.15 * len(runs)):
            accused.add(name)
    rounds = len(names) - 1 + len(names) % 2
    return Answer(rounds, rounds, len(figures), dict.fromkeys(accused), leaves)


def neighbours(fabric: Fabric) -> Answer:
    """Each with its neighbour, once; a bad pair accuses both, as it cannot tell."""
    rng = random.Random(f"neighbours {fabric.seed}")
    names = [node.name for node in fabric.nodes]
    pairs = list(zip(names[::2], names[1::2], strict=False))
    figures = {pair: fabric.once(pair, rng) for pair in pairs}
    line = _line(figures.values())
    accused = {name for pair, figure in figures.items() if figure < line for name in pair}
    return Answer(1, 1, len(pairs), dict.fromkeys(accused), set())


def bisection(fabric: Fabric) -> Answer:
    """Halve every bad group until it is one pair, then try each of the two with a node of a good group."""
    rng = random.Random(f"bisection {fabric.seed}")
    line = PAIR_GBYTES_S * (1 - 3 * NOISE)
    names = [node.name for node in fabric.nodes]
    rounds = runs = 0
    groups, pairs, good = [names], [], []
    while groups:
        rounds += 1
        runs += len(groups)
        bad = [group for group in groups if fabric.once(group, rng) < line]
        good += [name for group in groups if group not in bad and len(group) > 1 for name in group]
        pairs += [group for group in bad if len(group) <= 2]
        halves = [group for group in bad if len(group) > 2]
        groups = [part for group in halves for part in (group[: len(group) // 2], group[len(group) // 2 :])]
    suspects = [name for pair in pairs for name in pair]
    accused = set()
    rounds += bool(suspects)
    for number, name in enumerate(suspects):
        runs += 1
        if not good or fabric.once([name, good[number % len(good)]], rng) < line:
            accused.add(name)
    return Answer(rounds, rounds, runs, dict.fromkeys(accused), set())


@dataclass
class Score:
    """Sums over fabrics of one method."""

    fabrics: int = 0
    rounds: int = 0
    waves: int = 0
    runs: int = 0
    steady: int = 0
    steady_found: int = 0
    flaky: int = 0
    flaky_found: int = 0
    leaves: int = 0
    leaves_found: int = 0
    nics: int = 0
    nics_named: int = 0
    accused: int = 0
    false: int = 0
    left_open: int = 0
    seconds: float = 0.0
    misses: list[str] = field(default_factory=list)

    def add(self, fabric: Fabric, answer: Answer, seconds: float) -> None:
        """Compare one answer with the truth. A wrong rail on a bad node is a false accusation too."""
        self.fabrics += 1
        self.rounds = max(self.rounds, answer.rounds)
        self.waves = max(self.waves, answer.waves)
        self.runs += answer.runs
        self.seconds += seconds
        for name, fault in fabric.bad.items():
            found = name in answer.nodes
            rails = answer.nodes.get(name)
            if fault.kind == "flaky":
                self.flaky += 1
                self.flaky_found += found
            else:
                self.steady += 1
                self.steady_found += found
                if not found:
                    self.misses.append(f"seed {fabric.seed} {name} {fault}")
            if fault.kind == "nic" and found:
                self.nics += 1
                self.nics_named += rails == fault.rails
            if found and rails and not set(rails) <= set(fault.rails):
                self.false += 1
                self.misses.append(f"seed {fabric.seed} {name} {fault} accused of rails {rails}")
        for leaf, fault in fabric.leaves.items():
            self.leaves += 1
            self.leaves_found += leaf in answer.leaves
            if leaf not in answer.leaves:
                self.misses.append(f"seed {fabric.seed} {leaf} {fault}")
        wrong = [name for name in answer.nodes if name not in fabric.bad] + sorted(answer.leaves - fabric.leaves.keys())
        self.misses += [f"seed {fabric.seed} FALSE {name}" for name in wrong]
        self.accused += len(answer.nodes) + len(answer.leaves)
        self.false += len(wrong)
        self.left_open += sum(name not in fabric.bad for name in answer.undecided)


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.4f}" if whole else "-"


COLUMNS = (
    f"{'nodes':>6} {'method':<11}{'fabrics':>8}{'rounds':>7}{'waves':>6}{'runs':>9}{'recall':>8}{'nodes':>8}"
    f"{'leaves':>8}{'flaky':>8}{'rail':>8}{'precision':>10}{'false':>6}{'open':>6}{'s/fabric':>9}"
)


def row(count: int, method: str, score: Score) -> str:
    """One line of the table."""
    found, faults = score.steady_found + score.leaves_found, score.steady + score.leaves
    return (
        f"{count:>6} {method:<11}{score.fabrics:>8}{score.rounds:>7}{score.waves:>6}{score.runs / score.fabrics:>9.0f}"
        f"{_share(found, faults):>8}{_share(score.steady_found, score.steady):>8}"
        f"{_share(score.leaves_found, score.leaves):>8}{_share(score.flaky_found, score.flaky):>8}"
        f"{_share(score.nics_named, score.nics):>8}{_share(score.accused - score.false, score.accused):>10}"
        f"{score.false:>6}{score.left_open:>6}{score.seconds / score.fabrics:>9.3f}"
    )


def main() -> int:
    """Print the table; exit code 1 where our row misses its goal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="8,16,64,256,1024,4096")
    parser.add_argument("--fabrics", type=int, help="per size; default: about 4,000 nodes in all, 100 at most")
    parser.add_argument("--seed", type=int, default=1, help="of the first fabric; the others count on")
    parser.add_argument("--repeats", type=int, default=5, help="repetitions in each of our runs")
    parser.add_argument("--costs", default="0.2,0.8", help="what a fault costs, least and most share of the rate")
    parser.add_argument("--most-pairs", type=int, default=256, help="run all pairs up to so many nodes")
    parser.add_argument("--unlabelled", action="store_true", help="do not tell our planner the leaves")
    parser.add_argument("--good-leaves", action="store_true", help="no slow uplinks")
    parser.add_argument("--misses", action="store_true", help="say which faults our planner missed")
    options = parser.parse_args()
    least, most = (float(part) for part in options.costs.split(","))
    ours: Callable[[Fabric], Answer] = lambda fabric: planner(fabric, options.repeats, labels=not options.unlabelled)  # noqa: E731
    methods = {"gpuready": ours, "all pairs": all_pairs, "neighbours": neighbours, "bisection": bisection}
    print(f"seeds from {options.seed}; faults cost {least:.0%} to {most:.0%}; noise {NOISE:.0%}")
    print("recall: lasting faults of nodes and leaves; rail: slow NICs found whose rail is named and no other;")
    print("false: healthy nodes, leaves or rails accused; open: healthy nodes left undecided")
    print(COLUMNS)
    missed = False
    for count in (int(part) for part in options.sizes.split(",")):
        fabrics = options.fabrics or max(3, min(100, 4096 // count))
        for method, find in methods.items():
            if method == "all pairs" and count > options.most_pairs:
                print(f"{count:>6} {method:<11}{'not run':>8}{count - 1:>7}{count - 1:>6}{count * (count - 1) // 2:>9}")
                continue
            score = Score()
            for seed in range(options.seed, options.seed + fabrics):
                fabric = Fabric.drawn(count, seed, (least, most), uplinks=not options.good_leaves)
                began = time.perf_counter()
                answer = find(fabric)
                score.add(fabric, answer, time.perf_counter() - began)
            print(row(count, method, score), flush=True)
            if method == "gpuready":
                faults = score.steady + score.leaves
                reached = (score.steady_found + score.leaves_found) >= 0.99 * faults
                missed |= not reached or score.false > 0 or score.rounds > 4
                if options.misses:
                    print("\n".join(f"         {line}" for line in score.misses))
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
