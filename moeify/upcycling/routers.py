"""Routers that know what their experts know, computed from labelled text without training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from moeify.checkpoint.arithmetic import Float32
from moeify.errors import DatasetError
from moeify.routing.collection import InputReservoir
from moeify.routing.config import DataConfig
from moeify.routing.data import Blocks, block_length, read_blocks, tokenizer_for
from moeify.routing.prompts import prompt_blocks, read_prompts
from moeify.upcycling.config import UpcycleConfig
from moeify.upcycling.plan import UpcyclePlan

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FittedRouters", "fit_routers", "labelled_text"]

_OVERSAMPLING = 8
"""Text is read until there is this much more than is used, so that rare labels have some too."""
BATCH_SIZE = 8


@dataclass(frozen=True, kw_only=True)
class FittedRouters:
    """Rows [E, H] of each layer's router.

    ``agreement`` is the share of the fitted tokens whose first expert has their label, averaged
    over layers.
    """

    rows: dict[int, Float32]
    agreement: float
    tokens: int


def labelled_text(config: UpcycleConfig, folder: Path, plan: UpcyclePlan) -> Blocks:
    """The text that routers are computed from, tokenised and checked against the labels.

    Raises ``DatasetError`` where a label has no text, or a text no label.
    """
    labels = _labels(plan)
    tokenizer = tokenizer_for(folder)
    seq_len = block_length(plan.view.checkpoint.config, config.seq_len)
    if config.prompts is not None:
        prompts = read_prompts(config.prompts)
        _check_labels(labels, list(prompts), config.prompts.name)
        return prompt_blocks(prompts, labels, tokenizer, seq_len)
    assert config.dataset is not None, "checked with the options"
    data = DataConfig(
        dataset=config.dataset, split=config.split, text_column=config.text_column,
        domain_column=config.domain_column, seq_len=config.seq_len, seed=config.seed,
    )  # fmt: skip
    blocks = read_blocks(data, tokenizer, seq_len, _OVERSAMPLING * config.fit_tokens)
    _check_labels(labels, blocks.domain_names, f"column {config.domain_column!r}")
    return _even(blocks, config.fit_tokens)


def fit_routers(
    plan: UpcyclePlan, blocks: Blocks, folder: Path, config: UpcycleConfig
) -> FittedRouters:
    """Rows for every MoE layer of ``plan``, from the inputs that the dense model in ``folder`` has.

    That model is the base, or the mean of the sources where the rest comes from it. Memory holds
    it and ``fit_tokens`` inputs a layer. Experts that differ change the inputs of later layers a
    little; that the rows still fit is measured in docs/domain-experts.md.
    """
    from moeify.routing.dense_inputs import collect_dense_inputs
    from moeify.routing.loading import load_model

    reservoir = InputReservoir(min(config.fit_tokens, blocks.tokens), config.seed)
    model = load_model(folder)
    layers = plan.settings.moe_layers
    collect_dense_inputs(model, plan.family, layers, blocks, reservoir, batch_size=BATCH_SIZE)
    del model
    rows, agreement = {}, 0.0
    owners = _owners(plan, blocks)
    for layer in layers:
        inputs, domains = reservoir.inputs(layer), reservoir.domains(layer)
        fitted, share = _fit(inputs, domains, owners, plan.settings.top_k, layer, config)
        rows[layer] = np.ascontiguousarray(fitted.numpy())
        agreement += share / len(layers)
    return FittedRouters(rows=rows, agreement=agreement, tokens=reservoir.capacity)


def _fit(
    inputs: Tensor, domains: Tensor, owners: list[int], top_k: int, layer: int,
    config: UpcycleConfig,
) -> tuple[Tensor, float]:  # fmt: skip
    import torch

    from moeify.routing.fit import domain_router, prompt_router

    seed, entropy = config.seed + layer, config.entropy
    if config.prompts is None:
        rows = domain_router(
            inputs, domains, len(owners), top_k, entropy=entropy, seed=seed, owners=owners
        )
    else:
        negatives, domains = domains % 2 == 1, domains // 2
        rows = prompt_router(
            inputs, domains, negatives, top_k, entropy=entropy, seed=seed, owners=owners
        )
        inputs, domains = inputs[~negatives], domains[~negatives]
    first = torch.tensor(owners)[(inputs @ rows.T).argmax(-1)]
    return rows, float((first == domains).float().mean())


def _labels(plan: UpcyclePlan) -> list[str]:
    return list(dict.fromkeys(origin.label for origin in plan.origins))


def _owners(plan: UpcyclePlan, blocks: Blocks) -> list[int]:
    """For each expert the place of its label in ``blocks.domain_names``."""
    owners = [0] * plan.settings.num_experts
    for origin in plan.origins:
        for expert in origin.experts:
            owners[expert] = blocks.domain_names.index(origin.label)
    return owners


def _check_labels(labels: list[str], found: list[str] | tuple[str, ...], where: str) -> None:
    if missing := [label for label in labels if label not in found]:
        raise DatasetError(
            f"{where} has no text for {', '.join(map(repr, missing))}:"
            f" it names {', '.join(map(repr, found[:10]))}",
            "give text for every label, or pass --labels with the names that are used there",
        )
    if unknown := [name for name in found if name not in labels]:
        raise DatasetError(
            f"{where} names {', '.join(map(repr, unknown[:10]))}, which no expert has as its label",
            "leave that text out, or pass --labels with a label for each entry of --experts-from",
        )
    if len(labels) < 2:
        raise DatasetError(
            f"all experts have the label {labels[0]!r}, so a router has nothing to tell apart",
            "pass --labels with two or more labels, or leave --router out",
        )


def _even(blocks: Blocks, tokens: int) -> Blocks:
    """Blocks with about as many ``tokens`` of every label, as far as there is text."""
    assert blocks.domains is not None, "the column was read"
    share = max(1, round(tokens / blocks.seq_len / len(blocks.domain_names)))
    chosen = [np.flatnonzero(blocks.domains == d)[:share] for d in range(len(blocks.domain_names))]
    return blocks.take(np.sort(np.concatenate(chosen)))
