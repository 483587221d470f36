"""Which experts stay: by scores, by hand, by chance, with groups and protection respected."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from moeify.errors import ConfigError
from moeify.families.mixture import Mixture
from moeify.pruning.config import PruneConfig, parse_experts
from moeify.pruning.plan import check_counts


def further_layers(mixture: Mixture, config: PruneConfig) -> tuple[int, ...]:
    """Layers for further tokens that stay: none in a dense model, and where nobody wants them."""
    return mixture.further_layers if config.mtp and not config.dense else ()


def goes_further(mixture: Mixture, config: PruneConfig) -> bool:
    """Whether the tensors for further tokens stay: those that hold no experts, or as many as other layers."""
    return config.mtp and (not mixture.further_experts or bool(further_layers(mixture, config)))


def number_to_keep(mixture: Mixture, options: PruneConfig) -> int:
    """Experts that stay in each layer; raises ``ConfigError`` where that cannot work."""
    total = mixture.num_experts
    if options.dense and options.drop is None:
        return mixture.slices
    if options.drop is not None:
        return len(
            next(iter(kept_by_hand(mixture, options.drop, options.dense, further_layers(mixture, options)).values()))
        )
    if options.keep is not None:
        keep = options.keep
        check_counts(mixture, keep)
    else:
        assert options.ratio is not None, "PruneConfig asks for one of keep, ratio and drop"
        keep = total - round(total * options.ratio)
        check_counts(mixture, keep, f"--ratio {options.ratio:g} would keep")
    return keep


def kept_by_hand(
    mixture: Mixture, text: str, dense: bool = False, further: Sequence[int] = ()
) -> dict[int, tuple[int, ...]]:
    """Experts that stay when those that ``text`` names go; raises ``ConfigError``.

    Of ``further`` layers, for further tokens, those that it names as well.
    """
    named = parse_experts(text)
    everywhere = named.pop(None, ())
    for layer in named:
        if layer not in (layers := (*mixture.moe_layers, *further)):
            listing = _ranges(layers)
            raise ConfigError(
                f"layer {layer} is no mixture: the MoE layers are {listing}", "name layers that hold experts"
            )
    kept = {}
    for layer in (*mixture.moe_layers, *(layer for layer in further if everywhere or layer in named)):
        gone = {*everywhere, *named.get(layer, ())}
        if gone and max(gone) >= mixture.num_experts:
            raise ConfigError(
                f"layer {layer} has experts 0 to {mixture.num_experts - 1}, not {max(gone)}", "name experts that exist"
            )
        kept[layer] = tuple(e for e in range(mixture.num_experts) if e not in gone)
    _check_even(kept)
    if dense:
        if len(next(iter(kept.values()))) != mixture.slices:
            where = "a slice" if mixture.slices > 1 else "a layer"
            raise ConfigError(f"--dense wants one expert {where} to stay", "name all others")
        _check_blocks(mixture, kept, mixture.numbering.routers)
        return kept
    check_counts(mixture, len(next(iter(kept.values()))), "--drop would keep")
    _check_blocks(mixture, kept, mixture.blocks)
    return kept


def _check_even(kept: Mapping[int, tuple[int, ...]]) -> None:
    counts = {len(experts): layer for layer, experts in kept.items()}
    if len(counts) > 1:
        (many, one), (few, other) = max(counts.items()), min(counts.items())
        raise ConfigError(
            f"layer {one} would keep {many} experts and layer {other} {few}, but the format holds"
            " one number for all layers",
            "name as many experts in every MoE layer; all:1,5 names them everywhere",
        )


def _check_blocks(mixture: Mixture, kept: Mapping[int, tuple[int, ...]], count: int) -> None:
    _check_whole(mixture, kept)
    size = mixture.num_experts // count
    what = "group" if mixture.groups is not None else "slice"
    for layer, experts in kept.items():
        left = [sum(e // size == block for e in experts) for block in range(count)]
        if len(set(left)) > 1:
            raise ConfigError(
                f"layer {layer} would keep {left} experts in its {count} {what}s, which must stay equally large",
                f"drop as many experts from every {what}",
            )


def _check_whole(mixture: Mixture, kept: Mapping[int, tuple[int, ...]]) -> None:
    for layer, experts in kept.items():
        for unit in mixture.numbering.units:
            stays = [expert for expert in unit if expert in experts]
            if stays and len(stays) < len(unit):
                raise ConfigError(
                    f"layer {layer} would keep expert {stays[0]} of {unit[0]}-{unit[-1]}, one copy in slices",
                    "drop all experts of a copy or none",
                )


def select(
    mixture: Mixture,
    scores: Mapping[int, Sequence[float]],
    keep: int,
    *,
    high_goes_first: bool = False,
    protected: Mapping[int, Collection[int]] | None = None,
) -> dict[int, tuple[int, ...]]:
    """The ``keep`` best experts of each layer of ``scores``, as many from each slice or group where there are any.

    Experts that are one copy in slices stay together, by the sum of their scores. ``protected`` experts stay whatever
    their score, as far as there is room.
    """
    blocks = mixture.blocks if keep > 1 else 1
    units = mixture.numbering.units
    size, tied = len(units) // blocks, len(units[0])
    kept = {}
    for layer in scores:
        each = [-v for v in scores[layer]] if high_goes_first else list(scores[layer])
        values = [sum(each[expert] for expert in unit) for unit in units]
        safe = {expert // tied for expert in (protected or {}).get(layer, ())}
        chosen: list[int] = []
        for block in range(blocks):
            members = range(block * size, (block + 1) * size)
            for number in best(values, members, keep // tied // blocks, safe):
                chosen += units[number]
        kept[layer] = tuple(sorted(chosen))
    return kept


def best(values: Sequence[float], members: Sequence[int], keep: int, safe: Collection[int] = ()) -> list[int]:
    """The ``keep`` largest of ``members``: ``safe`` ones first, then by value, then by number."""
    return sorted(members, key=lambda e: (e not in safe, -values[e], e))[:keep]


def random_scores(mixture: Mixture, seed: int, layers: Sequence[int] | None = None) -> dict[int, list[float]]:
    """A score for each expert of each layer that depends on ``seed`` and the layer alone."""
    from moeify.checkpoint.arithmetic import generator

    named = mixture.moe_layers if layers is None else layers
    return {layer: generator((seed, "prune", layer)).random(mixture.num_experts).tolist() for layer in named}


def _ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers for people: 0-3, 5."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{p[0]}-{p[-1]}" if len(p) > 1 else str(p[0]) for p in parts)
