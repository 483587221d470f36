"""Tables of what ways to combine specialists keep of their gains."""

import numpy as np
from domain_models import DOMAINS

Losses = dict[str, dict[str, float]]
"""Way -> domain -> held-out loss, in nats a token."""

TITLES = {
    "ffn-base": "FFNs tuned, rest as in the base",
    "whole-base": "whole models tuned, rest from the base",
    "whole-mean": "whole models tuned, rest averaged",
    "gpt2-ffn-base": "GPT-2, FFNs tuned, rest as in the base",
    "llama-ffn-base": "Llama, FFNs tuned, rest as in the base",
}


def losses_of(found: Losses, way: str) -> np.ndarray:
    """Loss by domain [D]; of ``best single`` the specialist with the lowest mean."""
    if way == "own specialist":
        return np.array([found[name][name] for name in DOMAINS])
    if way == "best single specialist":
        return min((losses_of(found, name) for name in DOMAINS), key=np.mean)
    return np.array([found[way][name] for name in DOMAINS])


def rows_of(results: list[Losses]) -> list[str]:
    """The ways in the order of the table."""
    ways = [way for way in results[0] if way != "base" and way not in DOMAINS]
    return ["base", "own specialist", "best single specialist", *ways]


def tables(results: dict[str, list[Losses]]) -> str:
    """One Markdown table for each setting: means over seeds, spreads as lowest to highest."""
    lines = []
    for setting, seeds in results.items():
        lines += [
            "",
            f"**{TITLES[setting]}**, {len(seeds)} seeds",
            "",
            f"| | {' | '.join(DOMAINS)} | kept, by domain | kept, mean | of the summed gain |"
            " worse than base | on own expert |",
            "|---" * (len(DOMAINS) + 6) + "|",
        ]
        lines += [_line(seeds, way) for way in rows_of(seeds)]
    return "\n".join(lines)


def _line(seeds: list[Losses], way: str) -> str:
    losses = np.array([losses_of(found, way) for found in seeds])  # [seeds, D]
    base = np.array([losses_of(found, "base") for found in seeds])
    own = np.array([losses_of(found, "own specialist") for found in seeds])
    kept = (base - losses) / (base - own)
    aim = [
        np.mean([found[way][f"own {name}"] for name in DOMAINS])
        for found in seeds
        if f"own {DOMAINS[0]}" in found.get(way, {})
    ]
    cells = [
        way,
        *(f"{value:.3f}" for value in losses.mean(0)),
        ", ".join(f"{100 * value:.0f}" for value in kept.mean(0)),
        spread(kept.mean(1)),
        spread((base - losses).sum(1) / (base - own).sum(1)),
        ", ".join(str(count) for count in (losses > base).sum(1)),
        f"{np.mean(aim):.2f}" if aim else "",
    ]
    return f"| {' | '.join(cells)} |"


def spread(values: np.ndarray) -> str:
    """Mean (lowest .. highest) of fractions, in percent."""
    low, high = 100 * values.min(), 100 * values.max()
    return f"{100 * values.mean():.0f} % ({low:.0f} .. {high:.0f})"
