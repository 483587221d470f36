"""What kinds of mixtures learn of the same tokens: ``python scripts/measure_variants.py [--seeds 2] [--steps 100]``.

The shipped GPT-2 and mixtures of it are trained whole, each on the same blocks of text in four domains, and compared
by the loss on text that is held out. The table is Markdown, on stdout.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import torch
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainingArguments

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from real import checkpoints, corpora

import moeify
from moeify.routing.config import DataConfig
from moeify.routing.data import Blocks, read_blocks, tokenizer_for
from moeify.routing.loading import load_model

DOMAINS, SEQ_LEN, BATCH = ("english", "german", "logs", "python"), 128, 16
VARIANTS = {
    "dense": None,
    "4 copies, top-1": {"num_experts": 4, "top_k": 1},
    "4 copies, top-2": {"num_experts": 4, "top_k": 2},
    "4 slices of 4, top-1": {"num_experts": 4, "top_k": 1, "slices": 4},
    "4 copies, top-2, 4 null experts": {
        "num_experts": 4,
        "top_k": 2,
        "null_experts": 4,
        "null_kinds": ("zero", "copy", "constant"),
    },
    "4 copies redrawn by half, top-2": {"num_experts": 4, "top_k": 2, "reinit": 0.5},
}


def text(folder: Path, seed: int) -> tuple[Blocks, Blocks]:
    """Blocks to train on and blocks that are held out."""
    rows = corpora.domains(DOMAINS, max_documents=400, seed=seed)
    path = folder / "text.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = DataConfig(dataset=str(path), domain_column="domain", seed=seed)
    return read_blocks(config, tokenizer_for(checkpoints.demo_gpt2()), SEQ_LEN).split(0.1)


def rows_of(blocks: Blocks) -> list[dict[str, torch.Tensor]]:
    """Blocks as Trainer wants them, padding without labels."""
    inputs = blocks.inputs()
    inputs["labels"] = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    return [{name: values[row] for name, values in inputs.items()} for row in range(len(blocks))]


@torch.no_grad()
def held_out_loss(model: PreTrainedModel, rows: list[dict[str, torch.Tensor]]) -> float:
    """Nats a token."""
    model.eval()
    model.config.output_router_logits = False
    total = count = 0.0
    for row in rows:
        labels = float((row["labels"][1:] != -100).sum())
        total += labels * float(model(**{name: values[None] for name, values in row.items()}).loss)
        count += labels
    return total / count


def trained(
    folder: Path, train: list[dict[str, torch.Tensor]], scratch: Path, steps: int, seed: int
) -> PreTrainedModel:
    """The model of ``folder`` after ``steps`` of AdamW on all of its weights, balance loss included."""
    model = load_model(folder)
    if hasattr(model.config, "output_router_logits"):
        model.config.output_router_logits = True
    settings = TrainingArguments(
        output_dir=str(scratch),
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        learning_rate=1e-3,
        warmup_steps=steps // 10,
        lr_scheduler_type="cosine",
        seed=seed,
        data_seed=seed,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = Trainer(model=model, args=settings, train_dataset=train)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return model


def main() -> None:
    """Train every variant for every seed."""
    parser = argparse.ArgumentParser(description="Measure what kinds of mixtures learn of the same tokens.")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in VARIANTS}
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as scratch:
            train, held_out = map(rows_of, text(Path(scratch), seed))
            for name, variant in VARIANTS.items():
                folder = checkpoints.demo_gpt2()
                if variant is not None:
                    folder = Path(scratch, name)
                    moeify.upcycle(checkpoints.demo_gpt2(), folder, seed=seed, **variant)
                before = held_out_loss(load_model(folder), held_out)
                model = trained(folder, train, Path(scratch, "run"), options.steps, seed)
                found[name].append((before, held_out_loss(model, held_out)))
                print(f"seed {seed}, {name}: {found[name][-1]}", file=sys.stderr, flush=True)
    print(f"| | before | after {options.steps * BATCH * SEQ_LEN:,} tokens |\n| --- | --- | --- |")
    for name, losses in found.items():
        print(f"| {name} | {' | '.join(', '.join(f'{v:.3f}' for v in side) for side in zip(*losses, strict=True))} |")


if __name__ == "__main__":
    main()
