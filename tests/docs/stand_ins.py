"""What the names in the pages' commands stand for: small checkpoints with the files of real ones, and texts."""

from __future__ import annotations

import json
from itertools import cycle
from pathlib import Path

import moeify

from ..hub.models import contents
from ..hub.stand_in import TOKEN, HubStandIn
from ..real.hub_shapes import bert_base_uncased_like, gpt2_like, qwen_like, sentence_encoder_like
from ..upcycling.test_adapters import save_adapter

DEMO = Path(moeify.__file__).parent / "demo"
SOURCES = ("base", "code", "german", "logs", "sql")
LIKE = {
    "minilm": "all-MiniLM-L6-v2",
    "my-bert": "bert-base-uncased",
    "my-qwen3": "Qwen3-0.6B",
    "dense": "gpt2",
    "gpt2": "gpt2",
    "my-dense": "gpt2",
    "trained": "my-moe",
    "moe": "my-moe",
    "Qwen3-30B-A3B": "Qwen3-30B-A3B",
}
"""Folders that the pages name, and what lies in them."""
HUB = {
    "bert-base-uncased": "bert-base-uncased",
    "gpt2": "gpt2",
    "sentence-transformers/all-MiniLM-L6-v2": "all-MiniLM-L6-v2",
    "Qwen/Qwen3-0.6B": "Qwen3-0.6B",
    "Qwen/Qwen3-30B-A3B": "Qwen3-30B-A3B",
    "Qwen/Qwen1.5-MoE-A2.7B": "Qwen1.5-MoE-A2.7B",
    "me/lora-german": "lora-german",
    "me/qwen3-moe": "qwen3-moe",
}
"""Repositories that the pages name, and what lies in them."""
TEXTS = ("text.jsonl", "texts.jsonl", "my.jsonl", "mixed.jsonl", "held-out.jsonl", "calibration.jsonl")
C4 = "---\nconfigs:\n- config_name: en\n  data_files: en.jsonl\n- config_name: de\n  data_files: en.jsonl\n---\n"


def make_checkpoints(folder: Path) -> None:
    """Every checkpoint that a name may stand for."""
    bert_base_uncased_like(folder / "bert-base-uncased")
    sentence_encoder_like(folder / "all-MiniLM-L6-v2")
    gpt2_like(folder / "gpt2", hidden=32)
    moeify.upcycle(folder / "gpt2", folder / "my-moe", num_experts=8)
    for seed, name in enumerate(SOURCES):
        qwen_like(folder / name, "qwen3", seed=seed)
    save_adapter(folder / "base", folder / "lora-german", target_modules=["down_proj"])
    qwen_like(folder / "Qwen3-0.6B", "qwen3", ffn=64)
    moeify.upcycle(folder / "Qwen3-0.6B", folder / "qwen3-moe", num_experts=4)
    moeify.upcycle(folder / "Qwen3-0.6B", folder / "Qwen3-30B-A3B", num_experts=128, top_k=8)
    moeify.upcycle(qwen_like(folder / "qwen2", "qwen2"), folder / "Qwen1.5-MoE-A2.7B", num_experts=60, top_k=4)


def publish(hub: HubStandIn, checkpoints: Path) -> None:
    """Fill the Hub anew; the reader is "me"."""
    hub.users[TOKEN] = "me"
    hub.repositories.clear()
    for repo_id, name in HUB.items():
        repository = hub.add(repo_id, contents(checkpoints / name))
        repository.references["warm"] = repository.references["main"]
    hub.add("team/moe", {"README.md": b"soon"})
    hub.add("datasets/allenai/c4", {"README.md": C4.encode(), "en.jsonl": texts().encode()})


def prepare(place: Path, checkpoints: Path) -> None:
    """A folder in which a reader may be who follows a page."""
    for name, kind in {**LIKE, **dict(zip(SOURCES, SOURCES, strict=True)), "my-moe": "my-moe"}.items():
        (place / name).symlink_to(checkpoints / kind)
    for name in TEXTS:
        (place / name).write_text(texts(), "utf-8")
    (place / "book.txt").write_text("\n\n".join(json.loads(row)["text"] for row in texts().splitlines()), "utf-8")
    (place / "prompts.yaml").write_text('code: ["def main():"]\ngerman: ["Der Zug nach München"]\n', "utf-8")
    (place / "logs.yaml").write_text('logs: ["session opened for user root"]\nrest: ["In the beginning"]\n', "utf-8")


def texts() -> str:
    """Texts that name one of two domains."""
    rows = [json.loads(line)["text"] for line in (DEMO / "text.jsonl").read_text("utf-8").splitlines()[:40]]
    return "".join(json.dumps({"text": t, "domain": d}) + "\n" for t, d in zip(rows, cycle(("code", "german"))))
