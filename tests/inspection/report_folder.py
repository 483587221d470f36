"""A report with everything in it, for pictures and pages."""

import json
from pathlib import Path

import numpy as np
import torch

from moeify.inspection.inspect import inspect
from moeify.inspection.report import InspectReport, LayerReport
from moeify.inspection.routing import add_routing
from moeify.inspection.token_routes import MOST_TOKENS, Passage, TokenRoutes
from moeify.routing.collection import RoutedTokens
from moeify.routing.data import Blocks
from moeify.routing.pieces import Pieces
from moeify.routing.statistics import RoutingStatistics
from moeify.upcycling.upcycle import upcycle
from tests.real.checkpoints import demo_gpt2

TEXTS = {
    "code": "for i in range(10): print(i * i, end='') # squares, and 42 others\n" * 6,
    "<b>prose</b>": "</script><b>the</b> man of the land had in that hand the and of his father's rod.\n" * 6,
}


def full_report(folder: Path) -> InspectReport:
    """Routing by domain, vocabulary, comparison and weights of a small mixture."""
    for seed in (0, 1):
        upcycle(demo_gpt2(), folder / f"moe{seed}", num_experts=4, seed=seed)
    text = folder / "text.jsonl"
    rows = [json.dumps({"text": part, "domain": name}) for name, part in TEXTS.items()]
    text.write_text("\n".join(rows))
    return inspect(
        folder / "moe0",
        weights=True,
        reference=str(demo_gpt2()),
        dataset=str(text),
        seq_len=64,
        domain_column="domain",
        vocabulary=True,
        tokens=True,
        against=str(folder / "moe1"),
    )


def large_report(layers: int = 48, experts: int = 128, top_k: int = 8, slices: int = 1) -> InspectReport:
    """A report as a large mixture has it, of drawn routing: every token of a text and of two domains."""
    generator = torch.Generator().manual_seed(0)
    pieces = Pieces(
        token_ids=tuple(range(MOST_TOKENS)),
        texts=tuple(f" word{n}" for n in range(MOST_TOKENS)),
        framing=(False,) * MOST_TOKENS,
        cut=True,
    )
    shown, statistics = TokenRoutes([Passage(domain="code", pieces=pieces)]), RoutingStatistics(2)
    for layer in range(layers):
        logits = torch.randn(2 * MOST_TOKENS, experts, generator=generator) + torch.linspace(0, 1, experts)
        inside = logits.view(len(logits), slices, -1)
        weights, chosen = inside.softmax(-1).topk(top_k // slices, dim=-1)
        first = torch.arange(slices).view(1, -1, 1) * (experts // slices)
        tokens = RoutedTokens(
            layer=layer,
            inputs=logits,
            logits=logits,
            experts=(chosen + first).flatten(1),
            weights=weights.flatten(1),
            domains=torch.arange(len(logits)) % 2,
            slices=slices,
        )
        rest = shown(tokens)
        assert rest is not None
        statistics(rest)
    report = InspectReport(source="large", revision=None, kind="moe", model_type="qwen3_moe", architecture=None)
    report.num_layers, report.moe_layers = layers, tuple(range(layers))
    report.num_experts, report.top_k, report.tokens = experts, top_k, shown
    report.layers = [LayerReport(layer=n, num_experts=experts, expert_parameters=1) for n in range(layers)]
    blocks = Blocks(
        input_ids=np.zeros((1, MOST_TOKENS), np.int32),
        lengths=np.array([MOST_TOKENS]),
        domains=np.array([0]),
        domain_names=("code", "prose"),
        documents=1,
    )
    add_routing(report, blocks, statistics)
    for layer in report.layers:
        seen = [[{"token": f" token{n}", "count": 9, "fraction": 0.5} for n in range(8)] for _ in range(experts)]
        layer.routing["vocabulary"] = seen
    return report
