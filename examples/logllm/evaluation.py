"""Precision, recall and F1 with bootstrap intervals, by system, and the load of each expert by system."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .logs import Window
from .model import Collator, LogLLM

Floats = np.ndarray


def batches(windows: list[Window], size: int) -> Iterator[list[Window]]:
    """The windows, `size` at a time."""
    for first in range(0, len(windows), size):
        yield windows[first : first + size]


@torch.no_grad()
def outputs(
    model: LogLLM, windows: list[Window], collate: Collator, size: int, *, training: bool = False
) -> Iterator[dict[str, Any]]:
    """What the model says of each batch, in evaluation or training mode, with the batch's tensors."""
    model.train(training)
    device = next(model.parameters()).device
    for part in batches(windows, size):
        inputs = {name: value.to(device) for name, value in collate(part).items()}
        yield {**inputs, **model(**inputs)}


def loss(model: LogLLM, windows: list[Window], collate: Collator, size: int) -> float:
    """The mean of the training loss over batches of the windows, before a training or between two."""
    # In training mode, as bitsandbytes lays layers out anew for inference on a CPU, which then cannot be trained.
    found = outputs(model, windows, collate, size, training=True)
    return float(np.mean([output["loss"].item() for output in found]))


def judged(model: LogLLM, windows: list[Window], collate: Collator, size: int) -> Floats:
    """1 for each window whose likelier answer is "anomalous"."""
    found = [output["scores"].argmax(1).cpu().numpy() for output in outputs(model, windows, collate, size)]
    return np.concatenate(found)


def figures(labels: Floats, found: Floats) -> tuple[float, float, float]:
    """Precision, recall and F1 of the anomalous windows; 0 where they are not defined."""
    right = float(((labels == 1) & (found == 1)).sum())
    said, there = float((found == 1).sum()), float((labels == 1).sum())
    return right / max(said, 1), right / max(there, 1), 2 * right / max(said + there, 1)


def interval(labels: Floats, found: Floats, draws: int = 1000, seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of F1, by the bootstrap over windows."""
    rows = np.random.default_rng(seed).integers(0, len(labels), (draws, len(labels)))
    values = [figures(labels[row], found[row])[2] for row in rows]
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def report(windows: list[Window], found: Floats) -> dict[str, dict[str, Any]]:
    """The figures over all windows and by system."""
    labels = np.array([window.label for window in windows])
    systems = np.array([window.system for window in windows])
    rows = {"all": np.ones(len(windows), bool), **{name: systems == name for name in sorted(set(systems))}}
    table = {}
    for name, kept in rows.items():
        precision, recall, f1 = figures(labels[kept], found[kept])
        low, high = interval(labels[kept], found[kept])
        counted = {"windows": int(kept.sum()), "anomalous": int(labels[kept].sum())}
        table[name] = {**counted, "precision": precision, "recall": recall, "f1": f1, "f1_low": low, "f1_high": high}
    return table


def expert_load(model: LogLLM, windows: list[Window], collate: Collator, size: int) -> dict[str, Floats] | None:
    """The share of the real tokens of each system's lines that visits each expert of the encoder [layers, E].

    A distinct line counts once a batch. None for a dense encoder.
    """
    top_k = getattr(model.encoder.config, "num_experts_per_tok", None)
    if top_k is None:
        return None
    loads = {}
    for system in sorted({window.system for window in windows}):
        own = [window for window in windows if window.system == system]
        total: Any = 0
        for output in outputs(model, own, collate, size):
            logits = output["router_logits"][output["attention_mask"].flatten().bool()]  # [tokens, layers, E]
            chosen = logits.topk(top_k, dim=-1).indices
            total = total + torch.zeros_like(logits).scatter_(-1, chosen, 1.0).sum(0)
        loads[system] = (total / total.sum(-1, keepdim=True)).cpu().numpy()
    return loads


def plot(loads: dict[str, Floats], path: Path) -> None:
    """Draw the load of each expert by layer, a panel for each system."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(loads), figsize=(3 * len(loads), 3), squeeze=False, layout="constrained")
    most = max(load.max() for load in loads.values())
    for panel, (system, load) in zip(panels[0], loads.items(), strict=True):
        image = panel.imshow(load, vmin=0, vmax=most, aspect="auto", cmap="viridis")
        panel.set(title=system, xlabel="expert", xticks=range(load.shape[1]), yticks=range(load.shape[0]))
    panels[0][0].set_ylabel("layer of the encoder")
    figure.colorbar(image, ax=panels[0], label="share of the tokens' visits")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def lines(table: dict[str, dict[str, Any]], name: Callable[[str], str] = str) -> Iterator[str]:
    """The report as a table of text."""
    yield f"{'':10} {'windows':>8} {'anomalous':>9} {'precision':>9} {'recall':>7} {'F1':>6}  95 % interval"
    for system, row in table.items():
        yield (
            f"{name(system):10} {row['windows']:8} {row['anomalous']:9} {row['precision']:9.3f} {row['recall']:7.3f}"
            f" {row['f1']:6.3f}  {row['f1_low']:.3f} to {row['f1_high']:.3f}"
        )
