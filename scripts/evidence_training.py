"""One training behind docs/measured/evidence.md, measured before, on the way and after."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from evidence_models import DOMAINS, Text, flops_per_token
from evidence_runs import Run
from evidence_tables import SHARES
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

import moeify
from moeify.families.registry import known_mixture, moe_layout
from moeify.routing.data import Blocks
from moeify.routing.examples import Examples
from moeify.routing.held_out import Reading, read_held_out
from moeify.routing.passes import WholeModel
from moeify.routing.statistics import RoutingStatistics

BATCH = 16


def fitted(model: PreTrainedModel, run: Run, text: Text, scratch: Path, balance: str = "switch") -> dict[str, Any]:
    """Train all weights of a model; what is to be kept of it. ``balance`` is switch, bias or none."""
    config: Any = model.config
    held_out: Blocks = getattr(text, run.part)
    points = [{"tokens": 0, **measured(model, held_out)}]

    def measure(step: int, total: int) -> None:
        points.append({"tokens": run.tokens * step // total, **measured(model, held_out)})

    _train(model, run, text.train, scratch, measure, balance)
    total = model.num_parameters()
    visited = [point.get("experts", 0.0) for point in points]
    active = total - idle_parameters(model, np.trapezoid(visited, [point["tokens"] for point in points]) / run.tokens)
    return {
        "parameters": total,
        "active": active,
        "flops_per_token": flops_per_token(model, active),
        "points": points,
        "model_type": config.model_type,
    }


def idle_parameters(model: PreTrainedModel, visited: float) -> int:
    """Parameters of the experts that a token does not visit, where it visits so many of each layer on average."""
    config = model.config.to_dict()
    if known_mixture(config) is None:
        return 0
    held = sum(p.numel() for n, p in model.named_parameters() if ".experts." in n and "shared" not in n)
    return round(held * (1 - visited / moe_layout(config).num_experts(config)))


@torch.no_grad()
def measured(model: PreTrainedModel, blocks: Blocks) -> dict[str, Any]:
    """Held-out nats a token with their standard error, by domain too, and how a mixture routes."""
    layout = moe_layout(model.config.to_dict()) if known_mixture(model.config.to_dict()) else None
    statistics = RoutingStatistics(len(blocks.domain_names))
    reading = Reading(observe=statistics if layout is not None else None)
    training, examples = model.training, Examples(blocks, "causal", None, 0)
    balance, model.config.output_router_logits = getattr(model.config, "output_router_logits", None), False
    (losses,) = read_held_out(WholeModel(model, head=True), layout, examples, [reading], batch_size=BATCH)
    model.config.output_router_logits = balance
    model.train(training)
    found = losses.estimate()
    domains = {name: losses.at(np.flatnonzero(blocks.domains == n)) for n, name in enumerate(blocks.domain_names)}
    said = {
        "loss": found.value,
        "error": found.error,
        "domains": {n: domains[n].mean() for n in DOMAINS if n in domains},
    }
    if layout is None:
        return said
    layers = list(statistics.layers.values())
    nmi = [layer.domains.nmi for layer in layers if layer.domains is not None]
    return {
        **said,
        "experts": statistics.experts_per_token,
        "max_violation": statistics.max_violation,
        "dead": sum(len(layer.dead) for layer in layers),
        "nmi": sum(nmi) / max(len(nmi), 1),
    }


class _Measure(TrainerCallback):  # type: ignore[misc]
    def __init__(self, measure: Callable[[int, int], None]) -> None:
        self.measure = measure

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step in {max(1, round(share * state.max_steps)) for share in SHARES}:
            self.measure(state.global_step, state.max_steps)


def _train(
    model: PreTrainedModel, run: Run, train: Blocks, scratch: Path, measure: Callable[[int, int], None], balance: str
) -> None:
    """AdamW on all weights, each block once, with the balance loss that the model's config has."""
    if known_mixture(model.config.to_dict()) is not None:
        model.config.output_router_logits = balance == "switch"
    steps = max(1, run.tokens // (BATCH * train.seq_len))
    settings = TrainingArguments(
        output_dir=str(scratch / "run"),
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        learning_rate=run.learning_rate,
        warmup_steps=max(1, steps // 20),
        lr_scheduler_type="cosine",
        weight_decay=0.1,
        adam_beta2=0.98,
        seed=run.seed,
        data_seed=run.seed,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    inputs = train.inputs()
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    rows = [
        {"input_ids": inputs["input_ids"][n], "attention_mask": inputs["attention_mask"][n], "labels": labels[n]}
        for n in range(len(train))
    ]
    trainer = Trainer(model=model, args=settings, train_dataset=rows, callbacks=[_Measure(measure)])
    trainer.remove_callback(PrinterCallback)
    if balance == "bias":
        trainer.add_callback(moeify.RouterBiasCallback(trainer))
    trainer.train()
