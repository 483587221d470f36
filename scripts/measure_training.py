"""What training routers is worth where experts really differ.

    python scripts/measure_training.py [--seeds 3] [--first-seed 0] [--steps 200] [--fit kmeans]
        [--keep FOLDER [--tune DOMAIN]]

The shipped GPT-2 is fine-tuned on each of four domains by itself (FFNs only), and the four sets of
FFNs become four experts. Then the routers are warmed up, and on held-out text the loss is compared
with that of random routing, of the best single expert and of a domain oracle, which sends every
token to the expert of its domain. The table is Markdown, on stdout. --keep keeps the fine-tuned
experts for a next run, and --tune makes only one of them, for a machine that is lent in pieces.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from real import checkpoints, corpora

import moeify
from moeify.families.registry import moe_layout
from moeify.routing.config import DataConfig
from moeify.routing.data import read_blocks, tokenizer_for
from moeify.routing.examples import Examples
from moeify.routing.held_out import Reading, read_held_out
from moeify.routing.loading import load_model
from moeify.routing.passes import WholeModel

DOMAINS, SEQ_LEN = ("english", "german", "logs", "python"), 128
NAMES = {
    "up_proj": "c_fc.weight",
    "up_proj_bias": "c_fc.bias",
    "down_proj": "c_proj.weight",
    "down_proj_bias": "c_proj.bias",
}


def fine_tuned(dense: Path, data: Path, steps: int, seed: int) -> dict[str, torch.Tensor]:
    """The FFN weights of the dense model after training on one domain."""
    torch.manual_seed(seed)
    model, tokenizer = load_model(dense), tokenizer_for(dense)
    blocks = read_blocks(DataConfig(dataset=str(data), seed=seed), tokenizer, SEQ_LEN)
    train, _ = blocks.split(0.1)
    wanted = [p for n, p in model.named_parameters() if ".mlp." in n]
    optimizer = torch.optim.AdamW(wanted, lr=1e-3)
    draw = np.random.default_rng(seed)
    for _ in range(steps):
        inputs = train.take(draw.integers(0, len(train), 16)).inputs()
        labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
        model(**inputs, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return {n: p.detach() for n, p in model.state_dict().items() if ".mlp." in n}


def kept(root: Path, name: str, seed: int, keep: Path | None, steps: int) -> dict[str, torch.Tensor]:
    """The expert of a domain: read from ``keep`` where it is there, else fine-tuned."""
    path = None if keep is None else keep / f"{name}-{seed}-{steps}.safetensors"
    if path is not None and path.is_file():
        return load_file(path)
    expert = fine_tuned(checkpoints.demo_gpt2(), root / f"{name}.jsonl", steps, seed)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({n: t.contiguous() for n, t in expert.items()}, path)
    return expert


def assemble(dense: Path, folder: Path, experts: list[dict[str, torch.Tensor]], seed: int) -> None:
    """A mixture whose experts are the given FFNs."""
    moeify.upcycle(dense, folder, num_experts=len(experts), noise=0.0, seed=seed)
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        for name in tensors:
            if ".experts." in name:
                stem, role = name.split(".experts.")
                stacked = [expert[f"{stem}.{NAMES[role]}"] for expert in experts]
                tensors[name] = torch.stack(stacked).contiguous()
        save_file(tensors, path, {"format": "pt"})


def oracle_loss(folder: Path, data: Path, seed: int, held_out: float, eval_tokens: int) -> float:
    """Loss on the slice that the warm-up holds out, every token sent to its domain's expert."""
    from moeify.warming.session import some_blocks

    model, tokenizer = load_model(folder), tokenizer_for(folder)
    config = DataConfig(dataset=str(data), domain_column="domain", seed=seed)
    blocks = read_blocks(config, tokenizer, SEQ_LEN)
    slice_ = some_blocks(blocks.split(held_out)[1], eval_tokens, seed)
    layout, passes = moe_layout(model.config.to_dict()), WholeModel(model, head=True)
    total = count = 0.0
    for domain in range(len(DOMAINS)):

        def own(_, logits, weights, experts, domain=domain):
            return weights.sum(-1, keepdim=True), experts[:, :1] * 0 + domain

        part = slice_.take(slice_.domains == domain)
        examples = Examples(part, "causal", tokenizer, seed)
        labels = float(part.tokens - len(part))
        readings = [Reading(route=own)]
        (losses,) = read_held_out(passes, layout, examples, readings, batch_size=8)
        total += losses.mean() * labels
        count += labels
    return total / count


def main() -> None:
    """Assemble, warm up and compare."""
    parser = argparse.ArgumentParser(description="Measure what training routers is worth.")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--tuning", type=int, default=150, help="steps of fine-tuning per domain")
    parser.add_argument("--fit", default="kmeans")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--keep", type=Path, help="folder that keeps the fine-tuned experts")
    parser.add_argument("--tune", choices=DOMAINS, help="make this domain's expert and stop")
    options = parser.parse_args()
    dense = checkpoints.demo_gpt2()
    print("| seed | random | best expert | fitted | trained | oracle | gap closed | MaxVio | dead |")
    print("|---|---|---|---|---|---|---|---|---|")
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        with tempfile.TemporaryDirectory() as scratch:
            root = Path(scratch)
            rows = corpora.domains(DOMAINS, max_documents=254, seed=seed)
            for domain in ("all", *DOMAINS):
                lines = [json.dumps(r) for r in rows if domain in ("all", r["domain"])]
                (root / f"{domain}.jsonl").write_text("\n".join(lines) + "\n")
            wanted = DOMAINS if options.tune is None else (options.tune,)
            experts = [kept(root, name, seed, options.keep, options.tuning) for name in wanted]
            if options.tune is not None:
                continue
            assemble(dense, root / "moe", experts, seed)
            report = moeify.warmup(
                root / "moe",
                root / "warm",
                dataset=str(root / "all.jsonl"),
                seed=seed,
                domain_column="domain",
                fit=options.fit,
                steps=options.steps,
                learning_rate=options.learning_rate,
                eval_tokens=8192,
                batch=8,
            )
            oracle = oracle_loss(root / "moe", root / "all.jsonl", seed, 0.1, 8192)
        room = report.headroom
        closed = (room.loss_random - report.eval_loss_after) / (room.loss_random - oracle)
        print(
            f"| {seed} | {room.loss_random:.4f} | {room.loss_static:.4f} |"
            f" {report.eval_loss_fitted:.4f} | {report.eval_loss_after:.4f} | {oracle:.4f} |"
            f" {100 * closed:.0f} % | {report.max_violation_after:.2f} | {report.dead_after} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
