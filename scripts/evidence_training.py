"""One training behind docs/evidence.md, measured on the way, and the file that keeps what was measured."""

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from evidence_models import DOMAINS, Text, flops_per_token, start
from filelock import FileLock
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from moeify.families.registry import known_mixture, moe_layout
from moeify.routing.data import Blocks
from moeify.routing.examples import Examples
from moeify.routing.held_out import Reading, read_held_out
from moeify.routing.passes import WholeModel
from moeify.routing.statistics import RoutingStatistics

BATCH = 16
SHARES = (0.1, 0.25, 0.5, 1.0)
"""Parts of a training after which it is measured."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training: of what, how, on how many tokens, and on which held-out part it is measured."""

    base: str
    arm: str
    learning_rate: float
    seed: int
    tokens: int
    part: str = "test"


class Results:
    """Measured runs in one JSON file, which several processes may write to."""

    def __init__(self, path: Path) -> None:
        self.path, self.lock = path, FileLock(path.with_suffix(".lock"))

    def read(self) -> list[dict[str, Any]]:
        """All of them."""
        return json.loads(self.path.read_text(encoding="utf-8"))["runs"] if self.path.exists() else []

    def of(self, run: Run) -> dict[str, Any] | None:
        """What was measured of a run, None where nothing was."""
        wanted = asdict(run).items()
        return next((found for found in self.read() if wanted <= found.items()), None) if self.path.exists() else None

    def add(self, run: Run, found: dict[str, Any]) -> None:
        """Keep what was measured of a run."""
        with self.lock:
            runs = [*self.read(), {**asdict(run), **found}]
            runs.sort(key=lambda one: [str(one[key]) for key in asdict(run)])
            lines = ",\n".join(f"  {json.dumps(one)}" for one in runs)
            self.path.write_text(f'{{"runs": [\n{lines}\n]}}\n', encoding="utf-8")


def trained(run: Run, dense: Path, text: Text, keep: Path | None = None) -> dict[str, Any]:
    """Train all weights of a model and measure it before, on the way and after; ``keep`` is where it is saved."""
    with tempfile.TemporaryDirectory() as scratch:
        model = start(run.arm, dense, Path(scratch), run.seed)
        return fitted(model, run, text, getattr(text, run.part), Path(scratch), keep)


def fitted(
    model: PreTrainedModel, run: Run, text: Text, held_out: Blocks, scratch: Path, keep: Path | None = None
) -> dict[str, Any]:
    """``trained``, of a model that is loaded."""
    config: Any = model.config
    started, points = time.perf_counter(), [{"tokens": 0, **measured(model, held_out)}]

    def measure(step: int, total: int) -> None:
        points.append({"tokens": run.tokens * step // total, **measured(model, held_out)})

    _train(model, run, text.train, scratch, measure)
    if keep is not None:
        model.save_pretrained(keep)
    total = model.num_parameters()
    active = total - idle_parameters(model)
    return {
        "parameters": total,
        "active": active,
        "flops_per_token": flops_per_token(model, active),
        "points": points,
        "seconds": round(time.perf_counter() - started),
        "model_type": config.model_type,
    }


def idle_parameters(model: PreTrainedModel) -> int:
    """Parameters of experts that a token does not visit, where it visits as many as it may."""
    config = model.config.to_dict()
    if known_mixture(config) is None:
        return 0
    layout = moe_layout(config)
    held = sum(p.numel() for n, p in model.named_parameters() if ".experts." in n and "shared" not in n)
    return round(held * (1 - layout.top_k(config) / layout.num_experts(config)))


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
    model: PreTrainedModel, run: Run, train: Blocks, scratch: Path, measure: Callable[[int, int], None]
) -> None:
    """AdamW on all weights, each block once, with the balance loss that the model's config has."""
    if known_mixture(model.config.to_dict()) is not None:
        model.config.output_router_logits = True
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
    trainer.train()
