"""How good are policies on ideal machines? Simulated: one machine at many loads, fleets, and a decision's time.

    make quickstart && timm-stitch profile quickstart-output/snnet --batch-sizes 1 2 4 8 16 32 --save
    python benchmarks/serving/fleets.py loads      # attainment, accuracy and score of each policy, on three ladders
    python benchmarks/serving/fleets.py shares     # loads, for several shares of the time that drain plans with
    python benchmarks/serving/fleets.py fleets     # how many replicas answer 99 % in time
    python benchmarks/serving/fleets.py decisions  # microseconds of a decision

Nothing runs through a network, and no machine is slower than its table. The quickstart's stitches take as long as they
were measured to; of the authors' networks, calls take time in proportion to multiply-adds, with a part that is the same
for any number of images, on a machine where one image through the largest anchor takes a quarter of the promise. Loads
are shares of what the largest anchor answers, or the stitch of nearest cost, if it was not measured. A score is
accuracy × attainment. A fixed stitch passes over what it cannot meet.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from timm_stitch.deployment.policies import DrainPolicy, FixedPolicy, LatencyTable, Policy, SlackFitPolicy, Slowdown
from timm_stitch.deployment.simulation import (
    Rate,
    Replica,
    accelerating,
    burst,
    diurnal,
    gamma_arrivals,
    simulate,
    varying_arrivals,
)
from timm_stitch.models.published import published_table
from timm_stitch.plan.timings import call_times

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))
from command_line import Row, make_parser, write_rows

PROMISE = 50.0  # ms
BATCHES = (1, 2, 4, 8, 16, 32)
SIZES = 40, 1100  # of sites, in what the largest anchor would need
FIXED = 12  # stitches of the frontier that are tried fixed, at most
Arrivals = Callable[[int], list[float]]  # by a seed
Make = Callable[[], Policy]


class Ladder:
    """The stitches of a network, and the time of each.

    Args:
        name: the name in the tables.
        rows: the rows with `stitch_id`, `name`, `macs`, `top1` and times.
    """

    def __init__(self, name: str, rows: Iterable[Row]) -> None:
        self.name, rows = name, list(rows)
        self.rows = {row["stitch_id"]: row for row in rows if call_times(row) and row.get("top1")}
        self.table = LatencyTable(self.rows.values())
        most = max(row["macs"] for row in rows if "[" not in row["name"])
        self.anchors = [k for k, row in self.rows.items() if "[" not in row["name"]]
        self.largest = min(self.rows, key=lambda k: abs(self.rows[k]["macs"] - most))
        self.capacity = 1 / self.table_of(self.largest).each[0]

    def table_of(self, stitch_id: int) -> LatencyTable:
        return LatencyTable([self.rows[stitch_id]])

    def fixed(self, stitch_id: int) -> Policy:
        return FixedPolicy(self.table_of(stitch_id), 0)

    def candidates(self) -> list[int]:
        """Stitches that are tried fixed: anchors, and some of the frontier from end to end."""
        known = self.table.stitch_ids
        count = min(FIXED, len(known))
        some = [known[n * (len(known) - 1) // max(count - 1, 1)] for n in range(count)]
        return list(dict.fromkeys([*self.anchors, self.largest, *some]))


def ladders(folder: Path) -> list[Ladder]:
    """Read the quickstart's network, as it was measured, and the authors'."""
    try:
        found = [Ladder("quickstart", json.loads((folder / "stitches.json").read_text())["stitches"])]
    except (OSError, ValueError, KeyError) as error:
        raise SystemExit(f"{str(folder)!r} holds no network that was evaluated and profiled: {error}") from None
    for name in ("snnet_deit_tsb", "snnet_swin_tsb"):
        rows = [row for row in published_table(name)["stitches"] if row.get("top1")]
        each = PROMISE / 4 / max(row["published_macs"] for row in rows if "[" not in row["name"])
        for row in rows:
            row |= {f"latency_ms_batch_{b}": each * row["published_macs"] * (0.35 + 0.65 * b) for b in BATCHES}
        found.append(Ladder(name, rows))
    return found


def simulate_policy(arrivals: list[float], make: Make, count: int = 1, choices: int = 2) -> dict[str, float]:
    """Simulate requests to some replicas."""
    policies = [make() for _ in range(count)]
    outcome = simulate(arrivals, [Replica(p.table, p) for p in policies], PROMISE, choices)  # type: ignore[attr-defined]
    return {"attainment": outcome.attainment, "accuracy": outcome.accuracy, "score": outcome.score}


# ── one machine ───────────────────────────────────────────────────────────────────────────────────


def scenarios(capacity: float, seconds: float) -> dict[str, Arrivals]:
    """Make arrivals, none above three times the capacity for longer than by chance."""

    def gamma(load: float, cv2: float) -> Arrivals:
        return lambda seed: gamma_arrivals(load * capacity, seconds, cv2, seed)

    def varying(rate: Rate) -> Arrivals:
        return lambda seed: varying_arrivals(rate, seconds, 1.0, seed)

    third = seconds / 3
    found = {f"{100 * load:.0f} %, CV² {v:g}": gamma(load, v) for load in (0.8, 1.0, 1.5) for v in (1.0, 2.0, 4.0, 8.0)}
    return found | {
        "burst of 5 x": varying(burst(0.5 * capacity, 5, third, 2 * third)),
        "50 to 300 %": varying(accelerating(0.5 * capacity, 6, seconds)),
        "day of 40 to 200 %": varying(diurnal(1.2 * capacity, 5, seconds)),
        "200 %": gamma(2.0, 1.0),
        "300 %": gamma(3.0, 1.0),
    }


def loads(options: argparse.Namespace) -> list[Row]:
    """Compare policies in all scenarios."""
    found = []
    for ladder in ladders(options.model):
        policies: dict[str, Make] = {
            "drain": partial(DrainPolicy, ladder.table),
            "SlackFit": partial(SlackFitPolicy, ladder.table),
        }
        policies |= {f"stitch {k}": partial(ladder.fixed, k) for k in ladder.candidates()}
        runs = simulate_all(ladder, policies, options)
        found += runs
        fixed = [name for name in policies if name.startswith("stitch ")]
        best = max(fixed, key=lambda name: mean(runs, "score", policy=name))
        shown = {"drain": "drain", "SlackFit": "SlackFit", best: f"{best}, the best fixed"}
        for k in sorted(ladder.anchors, key=lambda k: ladder.rows[k]["macs"]):
            shown.setdefault(f"stitch {k}", f"stitch {k}, an anchor")
        shown[f"stitch {ladder.largest}"] = f"stitch {ladder.largest}, of the largest anchor's cost"
        report(ladder, runs, shown, fixed)
    return found


def shares(options: argparse.Namespace) -> list[Row]:
    """Compare several shares of the remaining time for drain."""
    found = []
    for ladder in ladders(options.model):
        policies: dict[str, Make] = {
            f"share {share:g}": partial(DrainPolicy, ladder.table, share=share) for share in (0.6, 0.75, 0.9, 1.0)
        }
        runs = simulate_all(ladder, policies, options)
        report(ladder, runs, {name: name for name in policies}, [])
        found += runs
    return found


def simulate_all(ladder: Ladder, policies: dict[str, Make], options: argparse.Namespace) -> list[Row]:
    """Simulate each policy in all scenarios with all seeds."""
    found = []
    for scenario, arrivals_of in scenarios(ladder.capacity, options.seconds).items():
        for seed in range(options.seeds):
            arrivals = arrivals_of(seed)
            for name, make in policies.items():
                about = {"ladder": ladder.name, "scenario": scenario, "seed": seed, "policy": name}
                found.append(about | simulate_policy(arrivals, make))
    return found


def mean(runs: list[Row], key: str, **where: Any) -> float:
    return statistics.fmean(run[key] for run in runs if all(run[k] == v for k, v in where.items()))


def report(ladder: Ladder, runs: list[Row], shown: dict[str, str], fixed: list[str]) -> None:
    """Print a table of policies, and one of scenarios."""
    print(f"\n{ladder.name}: {len(ladder.table)} stitches, {ladder.capacity:.0f} requests a second are 100 %")
    print(f"{'attainment, lowest':>52}  {'mean':>6}  accuracy  score")
    for name, label in shown.items():
        lowest = min(run["attainment"] for run in runs if run["policy"] == name)
        means = [mean(runs, key, policy=name) for key in ("attainment", "accuracy", "score")]
        print(f"{label:42}  {lowest:8.2f}  {means[0]:6.2f}  {means[1]:8.2f}  {means[2]:5.2f}")
    if not fixed:
        return
    print("scenario            drain: attainment, lowest  accuracy  score  over SlackFit  over the best fixed of it")
    for scenario in dict.fromkeys(run["scenario"] for run in runs):
        lowest = min(r["attainment"] for r in runs if (r["policy"], r["scenario"]) == ("drain", scenario))
        score = partial(mean, runs, "score", scenario=scenario)
        ours, best = score(policy="drain"), max(fixed, key=lambda name: score(policy=name))
        accuracy = mean(runs, "accuracy", scenario=scenario, policy="drain")
        over = f"{ours - score(policy='SlackFit'):+13.2f}  {ours - score(policy=best):+.2f} ({best})"
        print(f"{scenario:20} {lowest:24.2f}  {accuracy:8.2f}  {ours:5.2f}  {over}")


# ── many machines ─────────────────────────────────────────────────────────────────────────────────


def day_with_bursts(rate: float, seconds: float) -> Rate:
    """Make a day whose highest rate is three times the lowest; two bursts of 2.5 times the rate take a tenth of it."""
    day, each = diurnal(rate, 3.0, seconds), seconds / 2
    return lambda at: day(at) * (2.5 if 0.45 <= at % each / each < 0.55 else 1.0)


def fewest_replicas(arrivals: list[float], make: Make, guess: int, choices: int = 2) -> tuple[int, dict[str, float]]:
    """Find the fewest replicas that answer 99 % in time, to 2 %, and their figures."""
    came: dict[int, dict[str, float]] = {}

    def enough(count: int) -> bool:
        came[count] = simulate_policy(arrivals, make, count, choices)
        return came[count]["attainment"] >= 99.0

    low, high = 0, guess
    while not enough(high):
        low, high = high, math.ceil(1.2 * high)
    while high - low > max(1, high // 50):
        middle = (low + high) // 2 if low else int(high / 1.2)
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high, came[high]


def fleets(options: argparse.Namespace) -> list[Row]:
    """Count the replicas of each kind for a small and a large site, and see how well as many of ours answer."""
    ladder, found, guesses = ladders(options.model)[0], [], {}
    ours: Make = partial(DrainPolicy, ladder.table)
    middle = sorted(ladder.anchors, key=lambda k: ladder.rows[k]["macs"])[len(ladder.anchors) // 2]
    kinds = {"most accurate": ladder.table.stitch_ids[-1], "middle anchor": middle}
    for size, seconds in ((SIZES[0], options.seconds), (SIZES[1], options.seconds / 5)):
        rate = 0.4 * size * ladder.capacity
        arrivals = varying_arrivals(day_with_bursts(rate, seconds), seconds, 1.0, 0)
        print(f"\n{ladder.name}: {len(arrivals):,} requests in {seconds:g} s, {rate:,.0f} a second on average")

        def add(kind: str, count: int, came: dict[str, float], size: int = size) -> None:
            found.append({"ladder": ladder.name, "size": size, "kind": kind, "replicas": count} | came)
            print(f"{kind:50} {count:5} replicas  {came['attainment']:6.2f} %  {came['accuracy']:.2f}", flush=True)

        def least(kind: str, make: Make, choices: int = 2, size: int = size, arrivals: Any = arrivals) -> int:
            guess = round(guesses.get(kind, 0.5) * size)
            count, came = fewest_replicas(arrivals, make, guess, choices)
            guesses[kind] = count / size
            add(kind, count, came)
            return count

        least("ours", ours)
        for name, k in kinds.items():
            count = least(f"stitch {k}, {name}", partial(ladder.fixed, k))
            add(f"ours, as many as of stitch {k}", count, simulate_policy(arrivals, ours, count))
        least("ours, each request to a replica drawn at random", ours, choices=1)
    return found


# ── a decision ────────────────────────────────────────────────────────────────────────────────────


def decisions(options: argparse.Namespace) -> list[Row]:
    """Time drain's decisions: by the clock, and without the time in which another process had the core."""
    found = []
    for ladder in ladders(options.model):
        policy, steady, draw = DrainPolicy(ladder.table), Slowdown(), random.Random(0)
        for waiting in (10, 1_000, 10_000):
            for name, span in (("promise", PROMISE / 1e3), ("minute", 60.0)):
                deadlines = sorted(draw.uniform(0, span) for _ in range(waiting))
                clock, own = [], []
                for _ in range(2_000):
                    now = draw.uniform(-span / 2, 0)
                    began, core = time.perf_counter(), time.thread_time()
                    policy.choose(now, deadlines, steady)
                    own.append(1e6 * (time.thread_time() - core))
                    clock.append(1e6 * (time.perf_counter() - began))
                row = {"ladder": ladder.name, "waiting": waiting, "deadlines": name}
                row |= {"median_us": statistics.median(clock), "p99_us": sorted(clock)[1980]}
                row |= {"own_p99_us": sorted(own)[1980]}
                found.append(row)
                print(
                    f"{ladder.name:16} {waiting:6} waiting, deadlines within a {name:8} {row['median_us']:5.1f} µs, "
                    f"99th percentile {row['p99_us']:5.1f}, of its own {row['own_p99_us']:5.1f}"
                )
    return found


def main() -> None:
    """Make one of the comparisons."""
    parser = make_parser(__doc__)
    parser.add_argument("what", choices=["loads", "shares", "fleets", "decisions"], help="comparison to make")
    parser.add_argument("--model", type=Path, default="quickstart-output/snnet", help="folder of the network")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a run")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--output", type=Path, default=Path("fleets.jsonl"), help="JSON-lines file for the rows")
    options = parser.parse_args()
    rows = {"loads": loads, "shares": shares, "fleets": fleets, "decisions": decisions}[options.what](options)
    write_rows(options.output, rows)


if __name__ == "__main__":
    main()
