"""Ways to make one model of four specialists: moeify's, those of mergekit-moe and MixtureKit, and averages."""

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from datasets import Dataset
from domain_models import BASE, DOMAINS, balanced
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import cross_entropy
from train_demo import blocks, held_out_loss
from transformers import AutoModelForCausalLM, AutoTokenizer

import moeify
from moeify.families.registry import moe_layout
from moeify.routing.loaded import LoadedMixture
from moeify.routing.loading import load_model
from moeify.routing.routes import one_expert

PROMPTS_PER_DOMAIN = 16
WARMUP_STEPS = 80
ALL_TOKENS = 200_000
"""More than the text has."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a way has to work with."""

    family: str
    """Model type of the base: qwen3, gpt2 or llama."""
    tuned: str
    """What specialists were trained in: ffn or whole."""
    base: Path
    sources: list[Path]
    """The specialists, in the order of ``DOMAINS``."""
    rest: str
    """Where attention, norms and embeddings come from: base or mean."""
    text: Path
    """Training passages of every domain, equally many, as .jsonl with a column ``domain``."""
    prompts: Path
    """Some of them by domain, as .json."""
    tools: dict[str, Path]
    """Commands of other tools, by name."""
    seed: int


Way = Callable[[Parts, Path], None]


def write_text(text: Path, prompts: Path, seed: int) -> None:
    """The two files that routers are computed from."""
    rows = balanced(seed)
    text.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    by_domain = {name: [r["text"] for r in rows if r["domain"] == name] for name in DOMAINS}
    shown = {name: {"positive": found[:PROMPTS_PER_DOMAIN]} for name, found in by_domain.items()}
    prompts.write_text(json.dumps(shown, indent=1), encoding="utf-8")


def assemble(parts: Parts, folder: Path, **options: object) -> None:
    """``moeify upcycle BASE --experts-from ...``."""
    moeify.upcycle(
        parts.base,
        folder,
        experts_from=[str(source) for source in parts.sources],
        labels=DOMAINS,
        rest=parts.rest,
        seed=parts.seed,
        **options,
    )


def _random(parts: Parts, folder: Path) -> None:
    assemble(parts, folder)


def _prompts(parts: Parts, folder: Path) -> None:
    assemble(parts, folder, router="prompts", prompts=parts.prompts)


def _data(**options: object) -> Way:
    def way(parts: Parts, folder: Path) -> None:
        text = {"dataset": str(parts.text), "domain_column": "domain", "seq_len": BASE.context}
        assemble(parts, folder, router="data", **text, **options)

    return way


def _warmed(fit: Way, **options: object) -> Way:
    def way(parts: Parts, folder: Path) -> None:
        fitted = folder.with_name("fitted")
        fit(parts, fitted)
        moeify.warmup(
            fitted,
            folder,
            dataset=str(parts.text),
            domain_column="domain",
            seq_len=BASE.context,
            steps=WARMUP_STEPS,
            eval_tokens=4096,
            balance="none",
            z_coef=0.0,
            seed=parts.seed,
            **options,
        )

    return way


_ALL_TEXT = _data(fit_tokens=ALL_TOKENS)
_BY_SEQUENCE = _data(route_by="sequence", fit_tokens=ALL_TOKENS)


def _average(parts: Parts, folder: Path) -> None:
    """Every tensor is the mean of the specialists'."""
    _changed(parts, folder, lambda changes: changes.mean(0))


def _ties(parts: Parts, folder: Path) -> None:
    """TIES merging (arXiv 2306.01708): of each one's changes the largest fifth, where they have their sum's sign."""

    def merged(changes: Tensor) -> Tensor:
        kept = changes.shape[1] // 5
        limits = changes.abs().topk(kept).values[:, -1:]
        trimmed = changes * (changes.abs() >= limits)
        agree = trimmed.sign() == trimmed.sum(0).sign()
        agree &= trimmed != 0
        return (trimmed * agree).sum(0) / agree.sum(0).clamp(min=1)

    _changed(parts, folder, merged)


def _changed(parts: Parts, folder: Path, merge: Callable[[Tensor], Tensor]) -> None:
    """The base with what ``merge`` makes of the specialists' changes [D, P], in tensors that one of them changed."""
    AutoModelForCausalLM.from_pretrained(parts.base).save_pretrained(folder)
    base = load_file(folder / "model.safetensors")
    loaded = [load_file(source / "model.safetensors") for source in parts.sources]
    names = [name for name in base if any(not torch.equal(one[name], base[name]) for one in loaded)]
    changes = torch.stack([torch.cat([(one[name] - base[name]).flatten() for name in names]) for one in loaded])
    found = merge(changes).split([base[name].numel() for name in names])
    base |= {name: base[name] + part.view_as(base[name]) for name, part in zip(names, found, strict=True)}
    save_file(base, folder / "model.safetensors", {"format": "pt"})


def _mergekit(parts: Parts, folder: Path) -> None:
    """``mergekit-moe`` with the gate that it computes from hidden states."""
    prompts = json.loads(parts.prompts.read_text(encoding="utf-8"))
    experts = [
        {"source_model": str(source.resolve()), "positive_prompts": prompts[name]["positive"]}
        for name, source in zip(DOMAINS, parts.sources, strict=True)
    ]
    recipe = {"base_model": str(parts.base.resolve()), "gate_mode": "hidden", "dtype": "float32", "experts": experts}
    path = folder.with_name("recipe.yaml")
    path.write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
    _run([str(parts.tools["mergekit"]), str(path), str(folder), "--device", "cpu"])


def _mixturekit(learning_rate: float) -> Way:
    """MixtureKit's mixture, its routers trained by its recipe, on as many tokens as a warm-up's, and exported."""

    def way(parts: Parts, folder: Path) -> None:
        merge, training, built, text, trained = (
            folder.with_name(name) for name in ("merge.yaml", "training.yaml", "built", "text", "trained")
        )
        experts = [
            {"expert_name": name, "model_id": str(source.resolve())}
            for name, source in zip(DOMAINS, parts.sources, strict=True)
        ]
        method = {"moe_method": "traditional", "model_type": "specialists", "num_experts_per_tok": 2, "alpha": 0.01}
        merge.write_text(yaml.safe_dump({**method, "dtype": "float32", "experts": experts}), encoding="utf-8")
        rows = [json.loads(line)["text"] for line in parts.text.read_text(encoding="utf-8").splitlines()]
        tokens = blocks(AutoTokenizer.from_pretrained(parts.base), rows, BASE.context)
        Dataset.from_dict({"input_ids": tokens.tolist()}).save_to_disk(text)
        recipe = {
            "model_id": str(built),
            "dataset_path": str(text),
            "output_dir": str(trained),
            "max_steps": WARMUP_STEPS,
            "per_device_train_batch_size": 8,
            "learning_rate": learning_rate,
            "lr_scheduler_type": "cosine",
            "warmup_steps": WARMUP_STEPS // 20,
            "max_length": BASE.context,
            "bf16": False,
            "use_cpu": True,
            "save_strategy": "no",
            "report_to": "none",
            "seed": parts.seed,
        }
        training.write_text(yaml.safe_dump(recipe), encoding="utf-8")
        tool = str(parts.tools["mixturekit"])
        _run([tool, "build", str(merge), "--output", str(built)])
        _run([tool, "train", str(training)])
        _run([tool, "export", str(trained), str(folder)])

    return way


def _run(command: list[str]) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{Path(command[0]).name} failed: {done.stderr[-2000:]}")


WAYS: dict[str, Way] = {
    "weights averaged": _average,
    "TIES": _ties,
    "mergekit-moe, hidden": _mergekit,
    "MixtureKit, routers trained at 3e-6": _mixturekit(3e-6),
    "MixtureKit, routers trained at 1e-3": _mixturekit(1e-3),
    "MixtureKit, routers trained at 1e-2": _mixturekit(1e-2),
    "MixtureKit, routers trained at 3e-2": _mixturekit(3e-2),
    "random routers": _random,
    "prompts": _prompts,
    "data": _data(),
    "data, top-1": _data(top_k=1),
    "data, warmed up": _warmed(_data()),
    "data, all text": _ALL_TEXT,
    "data, all text, warmed up at 1e-4": _warmed(_ALL_TEXT, learning_rate=1e-4),
    "data, by sequence": _BY_SEQUENCE,
    "data, by sequence, warmed up at 1e-4": _warmed(_BY_SEQUENCE, learning_rate=1e-4),
}


def available(way: str, parts: Parts) -> bool:
    """Whether ``way`` can be had, and is asked for.

    GPT-2 is there for routing by sequence, which Qwen's mixtures cannot. Other tools are needed for their own ways;
    mergekit-moe keeps the base's rest. Where whole models were tuned, no router can help much.
    """
    if parts.family == "gpt2":
        return way.startswith(("data, all text", "data, by sequence"))
    if way.startswith("mergekit"):
        return "mergekit" in parts.tools and parts.rest == "base"
    if way.startswith("MixtureKit"):  # which averages the rest: of such specialists, the base's
        return "mixturekit" in parts.tools and parts.tuned == "ffn"
    if way.startswith("data, all text"):
        return parts.tuned == "ffn"
    return "by sequence" not in way


@torch.no_grad()
def measured(folder: Path, blocks: dict[str, torch.Tensor]) -> dict[str, float]:
    """Held-out loss of a model on each domain, in nats a token, and its routers' aim.

    ``own ...`` is the weight that the domain's own expert gets, averaged over tokens and layers.
    """
    model = load_model(folder, "float32")
    top_k, found = getattr(model.config, "num_experts_per_tok", None), {}
    for place, (name, rows) in enumerate(blocks.items()):
        losses, weights = [], []
        for batch in rows.split(8):
            output = model(input_ids=batch, **({"output_router_logits": True} if top_k else {}))
            losses.append(cross_entropy(output.logits[:, :-1].transpose(1, 2), batch[:, 1:]))
            for logits in output.router_logits if top_k else ():
                top, chosen = logits.softmax(-1).topk(top_k)
                own = top * (chosen == place) / top.sum(-1, keepdim=True)
                weights.append(own.sum(-1).mean())
        found[name] = float(torch.stack(losses).mean())
        if top_k:
            found[f"own {name}"] = float(torch.stack(weights).mean())
    return found


def oracle(parts: Parts, folder: Path, blocks: dict[str, torch.Tensor]) -> dict[str, float]:
    """Loss where every token visits the expert of its domain and no other."""
    assemble(parts, folder)
    model = load_model(folder)
    layout, found = moe_layout(model.config.to_dict()), {}
    for place, (name, rows) in enumerate(blocks.items()):
        with LoadedMixture(model, layout).rerouted(one_expert(place)):
            found[name] = held_out_loss(model, rows)
    return found
