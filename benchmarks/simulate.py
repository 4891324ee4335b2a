"""Ten thousand workers and a hundred servers on virtual time, steered by the pool's own policy code.

A server works on one request at a time, or merges up to ``--merge`` of them; the rest of the setup is in
:mod:`virtual_time`.

    python benchmarks/simulate.py --workers 10000 --servers 100 --seconds 60 --plot simulation.png
    python benchmarks/simulate.py --workers 2000 --servers 20 --vanish 0.2
    python benchmarks/simulate.py --workers 100 --servers 20 --cap 30

With ``--cap`` workers share a limit on requests in flight, as a Dask scheduler divides it among them.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics

from virtual_time import LATE_S, Result, Setup, Simulation


def jain(shares: list[int]) -> float:
    """Jain's index of fairness: 1 if all shares are equal, 1/n if one has everything."""
    return sum(shares) ** 2 / (len(shares) * sum(x * x for x in shares)) if any(shares) else 0.0


def capacity(setup: Setup) -> float:
    """Requests per second that all servers can answer."""
    return setup.servers * setup.merge / (setup.service_s + setup.item_s * setup.merge)


def figures(setup: Setup, result: Result) -> dict[str, float]:
    """The numbers that matter."""
    answered = sum(result.answered)
    demand = setup.workers / setup.cpu_s
    most = min(capacity(setup), demand)
    late = result.by_second[
        int(setup.seconds / 5) : int(setup.seconds / 3 if setup.vanish else setup.seconds)
    ]
    out = {
        "answered": answered,
        "utilisation": statistics.mean(late) / most,
        "jain": jain(result.answered),
        "in_flight": result.in_flight_s / (0.8 * setup.seconds),
        "most_in_flight": result.most_in_flight,
        "requests_per_answer": result.ended / max(answered, 1),
        "rejected": result.rejected / max(result.ended, 1),
        "rejected_late": result.rejected_late / max(sum(result.by_second[int(LATE_S) :]), 1),
        "queue_median": statistics.median(result.queue_lengths),
        "latency_median_s": statistics.median(result.latencies_s),
        "latency_p99_s": sorted(result.latencies_s)[int(0.99 * len(result.latencies_s))],
    }
    if setup.vanish:
        third = setup.seconds / 3
        without = result.by_second[int(third + 5) : int(2 * third)]
        after = result.by_second[int(2 * third) : int(setup.seconds)]
        out["utilisation_without"] = statistics.mean(without) / min(most * (1 - setup.vanish), demand)
        out["seconds_to_recover"] = next((i for i, n in enumerate(after) if n >= 0.9 * most), math.inf)
    return out


def plot(path: str, setup: Setup, result: Result) -> None:
    """Answers over time, and their share by worker."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(result.by_second[: int(setup.seconds)], color="#28639c", label="answers")
    left.axhline(
        min(capacity(setup), setup.workers / setup.cpu_s), color="#8a8a8a", ls="--", label="capacity"
    )
    left.set(xlabel="virtual time (s)", ylabel="answers per second", ylim=(0, None))
    left.legend(frameon=False)
    right.hist(result.answered, 50, color="#28639c")
    right.set(xlabel="answers of one worker", ylabel="workers")
    figure.savefig(path, dpi=140)


def main() -> None:
    """Read the setup, simulate, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    defaults = Setup()
    for name in Setup.__slots__:
        value = getattr(defaults, name)
        kind = int if value is None else type(value)
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=value)
    parser.add_argument("--plot", help="PNG to draw")
    parser.add_argument("--json", action="store_true")
    args = vars(parser.parse_args())
    path, as_json = args.pop("plot"), args.pop("json")
    setup = Setup(**args)
    result = Simulation(setup).run()
    numbers = figures(setup, result)
    if as_json:
        print(json.dumps(numbers))
    else:
        for name, value in numbers.items():
            print(f"{name:22} {value:.4g}")
    if path:
        plot(path, setup, result)


if __name__ == "__main__":
    main()
