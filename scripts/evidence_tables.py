"""Tables behind docs/measured/evidence.md as Markdown rows, made of the files that scripts/evidence_runs.py keeps."""

import json
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

T_95 = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776}
"""Two-sided t quantiles of 95 %, by the number of seeds."""
Found = dict[str, Any]


def read(path: Path) -> list[Found]:
    """The runs of a file, none where it is missing."""
    return json.loads(path.read_text(encoding="utf-8"))["runs"] if path.exists() else []


def reported(runs: Iterable[Found], size: str, base: str | None = None) -> dict[str, list[Found]]:
    """What is reported, by arm: runs of the largest ``size`` (a key) on the part that is for it, seed by seed."""
    kept = [one for one in runs if one["part"] == "test" and base in (None, one["base"])]
    largest = max((one[size] for one in kept), default=0)
    arms: dict[str, list[Found]] = {}
    for one in kept:
        if one[size] == largest:
            arms.setdefault(one["arm"], []).append(one)
    return arms


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and half of the 95 % t-interval over seeds, None for one seed."""
    if len(values) not in T_95:
        return statistics.mean(values), None
    return statistics.mean(values), T_95[len(values)] * statistics.stdev(values) / math.sqrt(len(values))


def said(values: Sequence[float], form: str = ".4f") -> str:
    """Mean and half of the interval in words."""
    mean, half = interval(values)
    return f"{mean:{form}}" if half is None else f"{mean:{form}} +- {half:{form.lstrip('+')}}"


def gains(runs: list[Found], others: list[Found], value: Callable[[Found], float]) -> list[float]:
    """Differences to runs of the same seeds."""
    before = {one["seed"]: value(one) for one in others}
    return [value(one) - before[one["seed"]] for one in runs if one["seed"] in before]


def named(arm: str, arms: dict[str, list[Found]]) -> str:
    """An arm, and how many seeds it has where others have more."""
    count, most = len(arms[arm]), max(map(len, arms.values()))
    return arm if count == most else f"{arm} ({count} seed{'s' * (count > 1)})"


def best_first(arms: dict[str, list[Found]], value: Callable[[Found], float]) -> list[str]:
    """Names of arms by their means, the lowest first."""
    return sorted(arms, key=lambda arm: statistics.mean(map(value, arms[arm])))


def heading(*columns: str) -> Iterator[str]:
    """The first two rows of a table: words to the left, figures to the right."""
    yield f"| {' | '.join(columns)} |"
    yield "| --- |" + " ---: |" * (len(columns) - 1)


def last_loss(run: Found) -> float:
    """Held-out nats a token after the training."""
    return float(run["points"][-1]["loss"])


def loss_at(run: Found, flops: float) -> float:
    """Held-out loss when a training has cost ``flops``, between the points that were measured."""
    spent = [point["tokens"] * run["flops_per_token"] for point in run["points"]]
    losses = [point["loss"] for point in run["points"]]
    for n in range(1, len(spent)):
        if spent[n] >= flops:
            part = (flops - spent[n - 1]) / (spent[n] - spent[n - 1])
            return float(losses[n - 1] + part * (losses[n] - losses[n - 1]))
    return float(losses[-1])


def decoders(runs: list[Found], base: str) -> Iterator[str]:
    """Parameters, FLOPs, losses after each part of the training, what the routers do."""
    arms = reported(runs, "tokens", base)
    shares = ("10 %", "25 %", "50 %", "100 %")
    yield from heading(
        *("arm", "rate", "active of all parameters", "FLOPs", "at step 0", *shares),
        *("minus dense", "at dense's FLOPs", "MaxVio", "NMI"),
    )
    dense = arms.get("dense", [])
    for arm in best_first(arms, last_loss):
        runs, first = arms[arm], arms[arm][0]
        flops = f"{first['flops_per_token'] / dense[0]['flops_per_token']:.2f} x" if dense else ""
        losses = [said([run["points"][n]["loss"] for run in runs]) for n in range(len(first["points"]))]
        apart = arm != "dense" and gains(runs, dense, last_loss)
        budget = dense[0]["flops_per_token"] * dense[0]["tokens"] if dense else 0
        yield _row(
            named(arm, arms),
            f"{first['learning_rate']:g}",
            f"{first['active'] / 1e6:.2f} of {first['parameters'] / 1e6:.2f} M",
            flops,
            *losses,
            said(apart, "+.4f") if apart else "",
            said([loss_at(run, budget) for run in runs]) if dense else "",
            *_routing(runs),
        )


def _routing(runs: list[Found]) -> Iterator[str]:
    last = [run["points"][-1] for run in runs]
    for key in ("max_violation", "nmi"):
        yield f"{statistics.mean(point[key] for point in last):.2f}" if key in last[0] else ""


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def head_start(runs: list[Found], base: str) -> Iterator[str]:
    """Losses after each part of the full training, by how routers started."""
    arms = reported(runs, "tokens", base)
    yield from heading("routers", "tokens before", "at step 0", "10 %", "25 %", "50 %", "100 %", "MaxVio", "NMI")
    for arm in best_first(arms, last_loss):
        runs, first = arms[arm], arms[arm][0]
        losses = [said([run["points"][n]["loss"] for run in runs]) for n in range(len(first["points"]))]
        yield _row(named(arm, arms), f"{first['warm_up_tokens']:,}", *losses, *_routing(runs))


def encoders(runs: list[Found]) -> Iterator[str]:
    """Nearest-line accuracy and mean reciprocal rank before and after, on two sets of systems."""
    arms = reported(runs, "pairs")
    sets = ("tuned systems", "unseen systems")
    columns = [f"{name}: {figure}" for name in sets for figure in ("before", "nearest", "minus dense", "MRR")]
    yield from heading("arm", "rate", *columns)
    for arm in best_first(arms, lambda run: -run["points"][-1][sets[0]]["nearest"]):
        cells = []
        for name in sets:
            nearest = [100 * run["points"][-1][name]["nearest"] for run in arms[arm]]
            apart = arm != "dense" and gains(arms[arm], arms.get("dense", []), found_nearest(name))
            cells += [
                f"{100 * statistics.mean(run['points'][0][name]['nearest'] for run in arms[arm]):.1f} %",
                f"{said(nearest, '.1f')} %",
                said(apart, "+.1f") if apart else "",
                said([run["points"][-1][name]["mrr"] for run in arms[arm]], ".3f"),
            ]
        yield _row(named(arm, arms), f"{arms[arm][0]['learning_rate']:g}", *cells)


def found_nearest(name: str) -> Callable[[Found], float]:
    """Per cent of the lines of a set of systems that found theirs, after the tuning."""
    return lambda run: 100 * run["points"][-1][name]["nearest"]


def recovery(runs: list[Found]) -> Iterator[str]:
    """Loss that prunings cost, and what a router-only distillation gives back."""
    arms = reported(runs, "tokens")
    yield from heading("mixture", "dropped", "by", "unpruned", "pruned", "lost", "then distilled", "given back")
    for arm, runs in arms.items():
        for dropped in runs[0]["pruned"]:
            for by in runs[0]["pruned"][dropped]:
                found = [run["pruned"][dropped][by] for run in runs]
                lost = [one["pruned"] - run["unpruned"] for one, run in zip(found, runs, strict=True)]
                back = [100 * (one["pruned"] - one["distilled"]) / x for one, x in zip(found, lost, strict=True)]
                yield _row(
                    *(named(arm, arms), dropped, by, said([run["unpruned"] for run in runs])),
                    *(said([one["pruned"] for one in found]), said(lost, "+.4f")),
                    *(said([one["distilled"] for one in found]), f"{said(back, '.0f')} %"),
                )
