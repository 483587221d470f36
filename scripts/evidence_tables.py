"""Tables behind docs/measured/evidence.md as Markdown rows, made of the files that scripts/evidence_runs.py keeps."""

import json
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

T_95 = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""Two-sided t quantiles of 95 %, by the number of seeds."""
DISTILLED = {"balance switch": "distilled", "balance none": "without balance"}
Found = dict[str, Any]
Value = Callable[[Found], float]


def read(path: Path) -> list[Found]:
    """The runs of a file, none where it is missing."""
    return json.loads(path.read_text(encoding="utf-8"))["runs"] if path.exists() else []


def reported(
    runs: Iterable[Found], size: str, base: str | None = None, amount: int | None = None
) -> dict[str, list[Found]]:
    """What is reported, by arm: runs on the part that is for it whose ``size`` (a key) is ``amount``, or the largest.

    An arm's runs are in the order of their seeds.
    """
    kept = [one for one in runs if one["part"] == "test" and base in (None, one["base"])]
    amount = amount or max((one[size] for one in kept), default=0)
    arms: dict[str, list[Found]] = {}
    for one in kept:
        if one[size] == amount:
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


def gains(runs: list[Found], others: list[Found], value: Value) -> list[float]:
    """Differences to runs of the same seeds."""
    before = {one["seed"]: value(one) for one in others}
    return [value(one) - before[one["seed"]] for one in runs if one["seed"] in before]


def _seeds(runs: list[Found]) -> set[int]:
    """Those of an arm's runs."""
    return {one["seed"] for one in runs}


def named(arm: str, arms: dict[str, list[Found]]) -> str:
    """An arm, and how many seeds it has where others have more."""
    count, most = len(arms[arm]), max(map(len, arms.values()))
    return arm if count == most else f"{arm} ({count} seed{'s' * (count > 1)})"


def best_first(arms: dict[str, list[Found]], value: Value) -> list[str]:
    """Names of arms by their means, the lowest first."""
    return sorted(arms, key=lambda arm: statistics.mean(map(value, arms[arm])))


def heading(*columns: str) -> Iterator[str]:
    """The first two rows of a table: words to the left, figures to the right."""
    yield f"| {' | '.join(columns)} |"
    yield "| --- |" + " ---: |" * (len(columns) - 1)


def last_loss(run: Found) -> float:
    """Held-out nats a token after the training."""
    return float(run["points"][-1]["loss"])


def as_many_flops(runs: Iterable[Found], base: str) -> dict[str, list[Found]]:
    """Runs by arm that cost in all what the dense model's do: shorter ones where a token costs more."""
    runs = list(runs)
    arms = reported(runs, "tokens", base)
    budget = max((one["flops_per_token"] * one["tokens"] for one in arms.get("dense", [])), default=0)
    kept: dict[str, list[Found]] = {}
    for one in runs:
        spent = one["flops_per_token"] * one["tokens"]
        if one["part"] == "test" and one["base"] == base and abs(spent - budget) <= 0.03 * budget:
            kept.setdefault(one["arm"], []).append(one)
    return kept


SHARES = (0.1, 0.25, 0.5, 1.0)
"""Parts of a training after which it is measured."""
POINTS = {f"{100 * share:.0f} %": point for point, share in enumerate(SHARES, 1)}
"""Their names, and the point that was measured after each; the one before all is 0."""


def loss_after(point: int, run: Found) -> float:
    """Held-out nats a token at a measured point."""
    return float(run["points"][point]["loss"])


def decoders(runs: list[Found], base: str) -> Iterator[str]:
    """Parameters, FLOPs, time, losses after each part of the training."""
    arms = reported(runs, "tokens", base)
    yield from heading("arm", "rate", "active of all parameters", "FLOPs", "time", "at step 0", *POINTS)
    dense = arms.get("dense", [])
    for arm in best_first(arms, last_loss):
        own, first = arms[arm], arms[arm][0]
        yield _row(
            named(arm, arms),
            f"{first['learning_rate']:g}",
            f"{first['active'] / 1e6:.2f} of {first['parameters'] / 1e6:.2f} M",
            *(_relative(own, dense, key) for key in ("flops_per_token", "seconds")),
            *_losses(own),
        )


def _relative(runs: list[Found], others: list[Found], key: str) -> str:
    """The mean of a figure as a multiple of that of other runs."""
    if not others:
        return ""
    own, other = (statistics.mean(one[key] for one in of) for of in (runs, others))
    return f"{own / other:.2f} x"


def _losses(runs: list[Found]) -> Iterator[str]:
    """Those of an arm at every measured point."""
    return (said([loss_after(n, run) for run in runs]) for n in range(len(runs[0]["points"])))


def decoder_budgets(runs: list[Found], base: str) -> Iterator[str]:
    """Losses relative to the dense model's, at as many tokens and at as many FLOPs."""
    arms, studies = reported(runs, "tokens", base), decoder_studies(runs, base)
    yield from heading("minus dense", *studies)
    for arm in best_first(arms, last_loss):
        apart = [gains(study.get(arm, []), study.get("dense", []), last_loss) for study in studies.values()]
        if arm != "dense" and any(apart):
            yield _row(named(arm, arms), *(said(one, "+.4f") if len(one) == len(arms[arm]) else "" for one in apart))


def decoder_studies(runs: list[Found], base: str) -> dict[str, dict[str, list[Found]]]:
    """Whole trainings by arm, the dense model's among them, by what they have in common."""
    amounts = {one["tokens"] for one in runs if (one["base"], one["part"], one["arm"]) == (base, "test", "dense")}
    equal = {f"{tokens:,} tokens": reported(runs, "tokens", base, tokens) for tokens in sorted(amounts)}
    return {**equal, "as many FLOPs": as_many_flops(runs, base)}


def _apart_on_the_way(arms: dict[str, list[Found]], reference: str) -> Iterator[tuple[str, list[str]]]:
    """Losses relative to those of an arm after each part of the training, by arm, the best first."""
    for arm in best_first(arms, last_loss):
        apart = [gains(arms[arm], arms.get(reference, []), partial(loss_after, point)) for point in POINTS.values()]
        if arm != reference and all(apart):
            yield arm, [said(values, "+.4f") for values in apart]


def decoder_routing(runs: list[Found], base: str) -> Iterator[str]:
    """What routers do on the way: load and knowledge of domains, means over seeds."""
    arms = reported(runs, "tokens", base)
    kinds = {"MaxVio": "max_violation", "NMI": "nmi"}
    yield from heading("routers", *(f"{kind} at {share}" for kind in kinds for share in ("0 %", *POINTS)), "dead")
    for arm in best_first(arms, last_loss):
        points = list(zip(*(run["points"] for run in arms[arm]), strict=True))
        if "nmi" in points[0][0]:
            found = [statistics.mean(one[key] for one in point) for key in kinds.values() for point in points]
            dead = statistics.mean(one["dead"] for one in points[-1])
            yield _row(named(arm, arms), *(f"{value:.2f}" for value in found), f"{dead:.1f}")


ROUTING = {
    "MaxVio before": (0, "max_violation"),
    "MaxVio": (-1, "max_violation"),
    "NMI": (-1, "nmi"),
    "dead": (-1, "dead"),
}
"""What routers do at a measured point."""


def _routing(runs: list[Found]) -> Iterator[str]:
    """Means over seeds."""
    return (f"{statistics.mean(run['points'][n][key] for run in runs):.2f}" for n, key in ROUTING.values())


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def head_start(runs: list[Found], base: str) -> Iterator[str]:
    """Losses after each part of the full training, by how routers started."""
    arms = reported(runs, "tokens", base)
    yield from heading("routers", "tokens before", "at step 0", *POINTS, *ROUTING)
    for arm in best_first(arms, last_loss):
        own, first = arms[arm], arms[arm][0]
        yield _row(named(arm, arms), f"{first['warm_up_tokens']:,}", *_losses(own), *_routing(own))


def head_start_differences(runs: list[Found], base: str) -> Iterator[str]:
    """The same relative to routers as they are drawn."""
    arms = reported(runs, "tokens", base)
    yield from heading("minus drawn", *POINTS)
    for arm, apart in _apart_on_the_way(arms, "drawn"):
        yield _row(named(arm, arms), *apart)


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


def found_nearest(name: str) -> Value:
    """Per cent of the lines of a set of systems that found theirs, after the tuning."""
    return lambda run: 100 * run["points"][-1][name]["nearest"]


def recovery(runs: list[Found], base: str) -> Iterator[str]:
    """Loss that prunings cost, and what router-only distillations give back."""
    arms = reported(runs, "tokens", base)
    figures = ("unpruned", "pruned", "lost", "minus random", *DISTILLED.values(), "given back")
    yield from heading("mixture", "dropped", "by", *figures)
    for arm, own in arms.items():
        for dropped, criteria in own[0]["pruned"].items():
            for by in criteria:
                found = [run["pruned"][dropped][by] for run in own]
                lost = [one["pruned"] - run["unpruned"] for one, run in zip(found, own, strict=True)]
                chance = [run["pruned"][dropped]["random"]["pruned"] for run in own]
                apart = [one["pruned"] - other for one, other in zip(found, chance, strict=True)]
                back = [
                    f"{100 * statistics.mean(one['pruned'] - one[key] for one in found) / statistics.mean(lost):.0f} %"
                    for key in DISTILLED
                ]
                yield _row(
                    *(named(arm, arms), dropped, by, said([run["unpruned"] for run in own])),
                    *(said([one["pruned"] for one in found]), said(lost, "+.4f")),
                    said(apart, "+.4f") if any(apart) else "",
                    *(said([one[key] for one in found]) for key in DISTILLED),
                    ", ".join(back),
                )


def decoder_rates(runs: list[Found], base: str) -> Iterator[str]:
    """What learning rates were chosen by: losses of one seed on text of its own."""
    tuned = [one for one in runs if (one["base"], one["part"]) == (base, "tune")]
    longest = max((one["tokens"] for one in tuned), default=0)
    found = {(one["arm"], one["learning_rate"]): one for one in tuned if one["tokens"] == longest}
    rates = sorted({rate for _, rate in found})
    yield from heading("chosen by", *(f"rate {rate:g}" for rate in rates))
    for arm in best_first(reported(runs, "tokens", base), last_loss):
        own = [found.get((arm, rate)) for rate in rates]
        yield _row(arm, *(f"{last_loss(one):.4f}" if one else "" for one in own))


def decoder_domains(runs: list[Found], base: str) -> Iterator[str]:
    """Final losses by domain, relative to the dense model's."""
    arms = reported(runs, "tokens", base)
    dense = arms.get("dense", [])
    names = list(dense[0]["points"][-1]["domains"]) if dense else []
    yield from heading("minus dense", *names)
    for arm in best_first(arms, last_loss):
        apart = [gains(arms[arm], dense, _in_domain(name)) for name in names]
        if arm != "dense" and all(apart):
            yield _row(named(arm, arms), *(said(values, "+.4f") for values in apart))


def _in_domain(name: str) -> Value:
    return lambda run: float(run["points"][-1]["domains"][name])


Rows = dict[str, tuple[float, float | None]]
Picture = tuple[str, str, str, dict[str, Rows]]
"""Title, unit, what lies to the left of zero, and values with half of their intervals by heading and label."""


def pictures(folder: Path) -> dict[str, Picture]:
    """What is drawn of each study, from the files in ``folder``; arms that lack seeds are left out."""
    found = {}
    for base in ("gpt2", "qwen3"):
        runs = read(folder / "decoders.json")
        found[f"decoders-{base}"] = (
            "Held-out loss of mixtures relative to the dense model's",
            "loss relative to the dense model, nats a token",
            "better than dense",
            {name: _apart(arms, "dense", last_loss) for name, arms in decoder_studies(runs, base).items()},
        )
    arms = reported(read(folder / "head_start.json"), "tokens", "gpt2")
    found["head_start"] = (
        "Held-out loss of mixtures by how their routers started, relative to drawn routers",
        "loss relative to drawn routers, nats a token",
        "better than drawn",
        {
            "10 % of tokens": _apart(arms, "drawn", partial(loss_after, 1)),
            "all tokens": _apart(arms, "drawn", last_loss),
        },
    )
    arms = reported(read(folder / "encoders.json"), "pairs")
    found["encoders"] = (
        "Lines that found another template's first, relative to the dense encoder",
        "lines that find a wrong one first, relative to dense, percentage points",
        "better than dense",
        {
            name: _apart(arms, "dense", lambda run, name=name: -found_nearest(name)(run))
            for name in ("tuned systems", "unseen systems")
        },
    )
    arms = reported(read(folder / "recovery.json"), "tokens", "gpt2")
    most = max(map(len, arms.values()), default=0)
    found["recovery"] = (
        "Loss that pruning adds, before and after the distillation of routers",
        "loss relative to the unpruned mixture, nats a token",
        "better than unpruned",
        {
            f"{arm}, -{dropped}": rows
            for arm, runs in arms.items()
            if len(runs) == most > 1
            for dropped, rows in _lost(runs)
        },
    )
    return found


def _apart(arms: dict[str, list[Found]], reference: str, value: Value) -> Rows:
    """Differences to an arm that all others are held against; none of one seed, which has no interval.

    A mixture from scratch is left out: beside it all others would lie on one spot.
    """
    others = arms.get(reference, [])
    if len(others) < 2:
        return {}
    near = {arm: runs for arm, runs in arms.items() if arm != reference and "from scratch" not in arm}
    whole = {arm: runs for arm, runs in near.items() if _seeds(runs) == _seeds(others)}
    apart = {arm: gains(runs, others, value) for arm, runs in whole.items()}
    return {arm: interval(apart[arm]) for arm in sorted(apart, key=lambda arm: statistics.mean(apart[arm]))}


def _lost(runs: list[Found]) -> Iterator[tuple[str, Rows]]:
    stages = {"pruned": "", **{key: f", {words}" for key, words in DISTILLED.items()}}
    for dropped, criteria in runs[0]["pruned"].items():
        yield (
            dropped,
            {
                f"{by}{words}": interval([run["pruned"][dropped][by][key] - run["unpruned"] for run in runs])
                for by in criteria
                for key, words in stages.items()
            },
        )
