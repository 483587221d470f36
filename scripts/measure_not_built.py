"""Measure what docs/methods.md says of ways to route that moeify does not build, on the shipped GPT-2.

python scripts/measure_not_built.py
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import moeify
from moeify.checkpoint.reader import Checkpoint
from moeify.routing.config import DataConfig
from moeify.routing.data import blocks_for
from moeify.routing.loaded import LoadedLayer, LoadedMixture, Route, mixtures_in
from moeify.routing.loading import load_model

DEMO = Path(moeify.__file__).parent / "demo"
BATCH, SEQ_LEN = 16, 128


def expert_choice(top_k: int, seen: dict[str, float]) -> Route:
    """Each expert takes its N K / E tokens with most probability (arXiv 2202.09368); a token's weights sum to 1."""

    def route(layer: LoadedLayer, logits: Tensor, weights: Tensor, experts: Tensor) -> tuple[Tensor, Tensor]:
        scores, count = logits.softmax(-1), logits.shape[-1]
        taken = scores.topk(len(scores) * top_k // count, dim=0).indices  # [C, E]
        kept = torch.zeros_like(scores).scatter(0, taken, 1.0) * scores
        sums = kept.sum(-1, keepdim=True)
        seen["tokens"] = seen.get("tokens", 0) + len(scores)
        seen["none"] = seen.get("none", 0) + int((sums == 0).sum())
        every = torch.arange(count, device=logits.device).expand_as(logits)
        return kept / sums.where(sums > 0, 1.0), every

    return route


def top_p(share: float, seen: dict[str, float]) -> Route:
    """The best experts until their probabilities reach ``share`` (arXiv 2403.07652), weights renormalised."""

    def route(layer: LoadedLayer, logits: Tensor, weights: Tensor, experts: Tensor) -> tuple[Tensor, Tensor]:
        scores, order = logits.softmax(-1).sort(dim=-1, descending=True)
        kept = scores * (scores.cumsum(-1) - scores < share)
        seen["tokens"] = seen.get("tokens", 0) + len(scores)
        seen["experts"] = seen.get("experts", 0) + int((kept > 0).sum())
        return kept / kept.sum(-1, keepdim=True), order

    return route


@torch.no_grad()
def outputs(model: nn.Module, ids: Tensor, route: Route | None = None) -> Tensor:
    """Logits [B, S, V]."""
    with ExitStack() as around:
        if route is not None:
            around.enter_context(mixture_of(model).rerouted(route))
        found: Tensor = model(input_ids=ids).logits
        return found


def mixture_of(model: nn.Module) -> LoadedMixture:
    """The one mixture of a model."""
    (mixture,) = mixtures_in(model).values()
    return mixture


def off(found: Tensor, wanted: Tensor) -> float:
    """Relative distance."""
    return float((found - wanted).norm() / wanted.norm())


def residual_gradient(model: nn.Module, ids: Tensor) -> float:
    """Largest gradient of weights [E, E], zero at first, that add the logits of the layer before to a router's
    (gating residuals, arXiv 2410.07348, equation 7)."""
    layers = list(mixture_of(model.double()).layers.values())
    size = layers[0].num_experts
    added = [nn.Parameter(torch.zeros(size, size, dtype=torch.float64)) for _ in layers]
    before: list[Tensor] = []

    def hook(weight: Tensor) -> Callable[..., Tensor]:
        def add(_: nn.Module, __: Any, out: Tensor) -> Tensor:
            logits = out + before[-1] @ weight.T if before else out
            before.append(logits)
            return logits

        return add

    handles = [layer.router.register_forward_hook(hook(w)) for layer, w in zip(layers, added, strict=True)]
    model(input_ids=ids, labels=ids).loss.backward()
    for handle in handles:
        handle.remove()
    return max(float(weight.grad.norm()) for weight in added[1:] if weight.grad is not None)


def main() -> None:
    """Print the figures."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for noise in (0.0, 0.01):
            moeify.upcycle(DEMO / "gpt2", folder / str(noise), num_experts=8, top_k=2, noise=noise)
        data = DataConfig(dataset=str(DEMO / "text.jsonl"), seq_len=SEQ_LEN)
        blocks, _ = blocks_for(Checkpoint.open(folder / "0.0"), data, 2 * BATCH * SEQ_LEN)
        whole = [i for i, length in enumerate(blocks.lengths) if length == SEQ_LEN][: BATCH * 3 // 2]
        ids = torch.from_numpy(blocks.input_ids[whole]).long()
        copies, dense = load_model(folder / "0.0"), outputs(load_model(DEMO / "gpt2"), ids[:BATCH])
        half, seen = BATCH // 2, dict[str, float]()
        chosen = outputs(copies, ids[:BATCH], expert_choice(2, seen))
        print(
            f"expert choice: {off(chosen, dense):.2f} off, {seen['none'] / seen['tokens']:.1%} of tokens without any"
        )
        other = outputs(copies, torch.cat([ids[:half], ids[BATCH:]]), expert_choice(2, {}))
        print(f"  the same texts beside others: {off(other[:half], chosen[:half]):.2f} off themselves")
        for share in (0.3, 0.5):
            seen = {}
            found = off(outputs(copies, ids[:BATCH], top_p(share, seen)), dense)
            print(f"top-p {share}: {found:.1e} off, {seen['experts'] / seen['tokens']:.2f} of 8 experts a token")
        for noise in (0.0, 0.01):
            gradient = residual_gradient(load_model(folder / str(noise)), ids[:half])
            print(f"gating residual, noise {noise:g}: gradient {gradient:.1e}")


if __name__ == "__main__":
    main()
