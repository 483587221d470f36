"""Routers that know what their experts know, computed from labelled text without training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moeify.checkpoint.arithmetic import Float32
from moeify.checkpoint.planned_files import PlannedFiles
from moeify.checkpoint.reader import Checkpoint
from moeify.checkpoint.writer import write_shards
from moeify.errors import DatasetError
from moeify.families.mixture import Mixture
from moeify.families.moe_layout import MoeLayout
from moeify.families.registry import vocabulary_size
from moeify.families.values import Config
from moeify.provenance.companions import write_config
from moeify.routing.collection import InputReservoir
from moeify.routing.config import DataConfig
from moeify.routing.data import Blocks, block_length, blocks_for, check_vocabulary, tokenizer_for
from moeify.routing.fitting import fit_in_order
from moeify.routing.loaded import LoadedLayer
from moeify.routing.loading import load_model
from moeify.routing.passes import LayerByLayer, runs_by_layer, walk_by_layer
from moeify.routing.prompts import prompt_blocks, read_prompts
from moeify.upcycling.config import RouterTextConfig
from moeify.upcycling.plan import UpcyclePlan

if TYPE_CHECKING:
    from torch import Tensor

_OVERSAMPLING = 8
"""Text is read until there is this much more than is used, so that rare labels have some too."""
BATCH_SIZE = 8
_HELD_OUT = 0.1
_TOKENS_PER_EXPERT = 4
_TEXT_OPTIONS = ("split", "text_column", "domain_column", "fit_tokens", "seq_len", "entropy")


@dataclass(frozen=True, kw_only=True)
class FittedRouters:
    """Rows [E, H] of each layer's router.

    ``agreement`` is the share of tokens whose first expert has their label, averaged over layers:
    of held-out tokens, or of the prompts themselves.
    """

    rows: dict[int, Float32]
    agreement: float


@dataclass(frozen=True, kw_only=True)
class LabelledText:
    """Blocks to fit rows to, and blocks to judge them by: the same ones where these are prompts."""

    fit: Blocks
    held_out: Blocks

    @property
    def tokens(self) -> int:
        """Tokens of both, padding included."""
        return int(self.fit.input_ids.size + self.held_out.input_ids.size)


def labelled_text(
    config: RouterTextConfig, checkpoint: Checkpoint, labels: Sequence[str], *, others: bool = False
) -> LabelledText:
    """The text that routers are computed from, tokenised and checked against ``labels``.

    ``others`` says that there may be text of what no expert is known for. Raises ``DatasetError``
    where a label has no text, a text no label, or the model no such token.
    """
    labels = list(dict.fromkeys(labels))
    if config.prompts is not None:
        prompts = read_prompts(config.prompts)
        against = any(prompts[label].negative for label in prompts)
        _check_labels(labels, list(prompts), config.prompts.name, others, against)
        tokenizer = tokenizer_for(checkpoint.folder)
        seq_len = block_length(checkpoint.config, config.seq_len)
        blocks = prompt_blocks(prompts, list(prompts), tokenizer, seq_len)
        check_vocabulary(tokenizer, blocks.largest_token, vocabulary_size(checkpoint.config))
        return LabelledText(fit=blocks, held_out=blocks)
    assert config.dataset is not None, "checked with the options"
    data = DataConfig.of(config)
    blocks, _ = blocks_for(checkpoint, data, _OVERSAMPLING * config.fit_tokens)
    _check_labels(labels, blocks.domain_names, f"column {config.domain_column!r}", others)
    fit, held_out = _even(blocks, config.fit_tokens).split(_HELD_OUT)
    return LabelledText(fit=fit, held_out=held_out)


def recorded_options(config: RouterTextConfig) -> dict[str, Any]:
    """The options that had a part in what is written, for moeify.json, without anyone's folders."""
    options = config.recorded()
    for key in (*_TEXT_OPTIONS, "prompts", "dataset"):
        if not (config.needs_text or config.reads_dataset) or options[key] is None:
            del options[key]
    if "dataset" in options and Path(options["dataset"]).exists():
        options["dataset"] = Path(options["dataset"]).name
    return options


def fit_routers(
    passes: LayerByLayer, plan: UpcyclePlan, text: LabelledText, owners: Sequence[int], config: RouterTextConfig
) -> FittedRouters:
    """Rows for every router of ``plan``, from the mixture of ``passes`` that has any routers.

    ``owners`` are those of ``router_owners``.
    """

    import torch

    numbering = plan.conversion.moe.rule.numbering(plan.settings.slices, plan.settings.num_experts)
    routers, tied = numbering.routers, numbering.tied
    own = [owners[expert] for expert in numbering.of_slice(0)]  # in every slice the same
    later = plan.settings.num_layers

    def fit(layer: LoadedLayer, seen: InputReservoir) -> Tensor:
        rows = torch.cat([_fit(seen, own, layer.number, config.seed + n * later, config) for n in range(routers)])
        return rows.repeat_interleave(tied, dim=0)

    def agree(layer: int, unseen: InputReservoir, rows: Tensor) -> float:
        parts = rows[::tied].chunk(routers)
        return sum(_agreement(unseen, part, own, layer, config) for part in parts) / routers

    last = max(plan.settings.moe_layers)
    return _fitted(passes, plan.conversion.moe, last, text, config, fit, agree)


def joining_rows(
    passes: LayerByLayer, view: Mixture, text: LabelledText, labels: Sequence[str], config: RouterTextConfig
) -> FittedRouters:
    """Rows of every router of ``passes``, where experts joined those of ``view`` as the last of every slice.

    The rows that were there stay as they are; a new one wins the tokens of its label from them.
    """
    import torch

    from moeify.routing.fit import joining_row

    each = view.num_experts // view.slices

    def fit(layer: LoadedLayer, seen: InputReservoir) -> Tensor:
        parts = layer.router.weight.float().chunk(view.slices)
        return torch.cat([grown(part[:each], layer.number, seen) for part in parts])

    def grown(every: Tensor, number: int, seen: InputReservoir) -> Tensor:
        for label in labels:
            own = seen.domains(number) == _place(text.fit, label, config)
            every = torch.cat([every, joining_row(seen.inputs(number), own, every)[None]])
        return every

    def agree(layer: int, unseen: InputReservoir, rows: Tensor) -> float:
        # [T, H] x [G, E, H] -> [G, T]
        first = (unseen.inputs(layer) @ torch.stack(rows.chunk(view.slices)).mT).argmax(-1) - each
        places = [_place(text.held_out, label, config) for label in labels]
        own = (first[:, unseen.domains(layer) == place] == n for n, place in enumerate(places))
        return sum(float(hit.float().mean()) for hit in own) / len(labels)

    last = max(view.moe_layers)
    return _fitted(passes, view.layout, last, text, config, fit, agree)


@contextmanager
def written_layers(stage: Path, layout: MoeLayout, config: Config, low_memory: bool) -> Iterator[LayerByLayer]:
    """The layers of a mixture that is being written into ``stage`` with ``config``."""
    write_config(stage, config)
    checkpoint = Checkpoint.open(stage)
    if not runs_by_layer(checkpoint, low_memory=low_memory):
        yield LayerByLayer(load_model(stage), layout)
        return
    with walk_by_layer(checkpoint, layout, scratch=stage) as passes:
        yield passes


def write_routers(stage: Path, files: PlannedFiles) -> None:
    """Write the last of ``files``, which holds the routers, in place of what ``stage`` has."""
    routers = files.shards[-1]
    (stage / routers.file).unlink()
    write_shards(stage, [routers])


def _fitted(
    passes: LayerByLayer,
    layout: MoeLayout,
    last: int,
    text: LabelledText,
    config: RouterTextConfig,
    fit: Callable[[LoadedLayer, InputReservoir], Tensor],
    agree: Callable[[int, InputReservoir, Tensor], float],
) -> FittedRouters:
    rows, agreement = {}, []

    def fit_layer(layer: LoadedLayer, seen: Sequence[InputReservoir]) -> None:
        fitted = fit(layer, seen[0])
        layer.set_router(fitted)
        rows[layer.number] = np.ascontiguousarray(fitted.numpy())
        agreement.append(agree(layer.number, seen[-1], fitted))

    judged = [text.fit] if text.held_out is text.fit else [text.fit, text.held_out]
    fit_in_order(
        passes, layout, last, judged, fit_layer, keep=config.fit_tokens, seed=config.seed, batch_size=BATCH_SIZE
    )
    return FittedRouters(rows=rows, agreement=sum(agreement) / len(agreement))


def _place(blocks: Blocks, label: str, config: RouterTextConfig) -> int:
    """The domain of a label's own texts; prompts have a second one for texts against it."""
    return blocks.domain_names.index(label) * (1 if config.prompts is None else 2)


def _fit(collected: InputReservoir, owners: Sequence[int], layer: int, seed: int, config: RouterTextConfig) -> Tensor:
    from moeify.routing.fit import label_router

    inputs, domains, negatives = collected.inputs(layer), collected.domains(layer), None
    if config.prompts is not None:
        domains, negatives = domains // 2, domains % 2 == 1
    return label_router(inputs, domains, owners=owners, seed=seed + layer, negatives=negatives, entropy=config.entropy)


def _agreement(
    unseen: InputReservoir, rows: Tensor, owners: Sequence[int], layer: int, config: RouterTextConfig
) -> float:
    import torch

    inputs, domains = unseen.inputs(layer), unseen.domains(layer)
    if config.prompts is not None:
        positive = domains % 2 == 0
        inputs, domains = inputs[positive], domains[positive] // 2
    first = torch.tensor(owners)[(inputs @ rows.T).argmax(-1)]
    return float((first == domains).float().mean())


def router_owners(plan: UpcyclePlan, text: LabelledText, config: RouterTextConfig) -> list[int]:
    """For each expert the place of its label among the text's; ``DatasetError`` for too little."""
    owners = [0] * plan.settings.num_experts
    for origin in plan.origins:
        for expert in origin.experts:
            owners[expert] = text.fit.domain_names.index(origin.label)
    _check_amount(text.fit, owners, config)
    return owners


def _check_labels(
    labels: Sequence[str], found: Sequence[str], where: str, others: bool, against: bool = False
) -> None:
    """``against`` says that there are texts which stand against a label."""
    if missing := [label for label in labels if label not in found]:
        raise DatasetError(
            f"{where} has no text for {', '.join(map(repr, missing))}: it names {', '.join(map(repr, found[:10]))}",
            "give text for every label, or pass --labels with the names that are used there",
        )
    unknown = [name for name in found if name not in labels]
    if unknown and not others:
        raise DatasetError(
            f"{where} names {', '.join(map(repr, unknown[:10]))}, which no expert has as its label",
            "leave that text out, or pass --labels with a label for each entry of --experts-from",
        )
    if len(found) < 2 and not (others and against):
        raise DatasetError(
            f"{where} has text of {found[0]!r} alone, so a router has nothing to tell apart",
            "add text of something else, or leave --router out",
        )


def _check_amount(blocks: Blocks, owners: list[int], config: RouterTextConfig) -> None:
    """Experts that share a label divide its tokens, of which each needs some."""
    for number, label in enumerate(blocks.domain_names):
        own = blocks.domains == (number if config.prompts is None else 2 * number)
        tokens, experts = int(blocks.lengths[own].sum()), owners.count(number)
        if tokens < _TOKENS_PER_EXPERT * experts:
            raise DatasetError(
                f"label {label!r} has {tokens} tokens for {experts} experts, which need {_TOKENS_PER_EXPERT} each",
                "give more text, or make fewer experts",
            )


def _even(blocks: Blocks, tokens: int) -> Blocks:
    """Blocks with about as many ``tokens`` of every label, as far as there is text."""
    assert blocks.domains is not None, "the column was read"
    share = max(1, round(tokens / blocks.seq_len / len(blocks.domain_names)))
    chosen = [np.flatnonzero(blocks.domains == d)[:share] for d in range(len(blocks.domain_names))]
    return blocks.take(np.sort(np.concatenate(chosen)))
