"""Sound checkpoints of every kind, tiny, from which hostile ones are made."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Seed:
    """A sound checkpoint: where it is, what it is, and the file of its folder to change."""

    folder: Path
    kind: str  # dense or moe
    target: str


def write_seeds(folder: Path) -> list[Seed]:
    """Make every sound checkpoint below ``folder``; a seed for each of its files that is read."""
    # A process that only reads them must stay small, for its growth to be measured.
    from moeify.pruning.prune import prune
    from moeify.upcycling.upcycle import upcycle
    from tests.faults.words import write_tokenizer
    from tests.inspection.test_headers import _split
    from tests.pruning import tiny_mixtures
    from tests.tiny import LM_HEADS, save_tiny

    made: list[tuple[Path, str]] = []
    for family in LM_HEADS:
        dense = save_tiny(folder / family, family)
        write_tokenizer(dense, family)
        upcycle(dense, folder / f"{family}-moe", num_experts=4, top_k=2)
        made += [(dense, "dense"), (folder / f"{family}-moe", "moe")]
    for model_type in tiny_mixtures.MODEL_TYPES:
        if model_type not in tiny_mixtures.OWN:
            tiny_mixtures.save(model_type, folder / model_type)
            made.append((folder / model_type, "moe"))
    (folder / "halves").mkdir()
    made.append((_split(folder / "qwen3_moe", folder / "halves"), "moe"))
    scored = folder / "scored"
    text = folder / "text.txt"
    text.write_text("\n\n".join(f"the cat {i} sat on the mat {i * i}" for i in range(300)))
    shutil.copytree(folder / "gpt2-moe", scored)
    prune(
        folder / "gpt2-moe",
        folder / "cut",
        keep=2,
        by="reap",
        dataset=str(text),
        seq_len=16,
        scores=scored / "scores.json",
    )
    made.append((scored, "moe"))
    return [Seed(path, kind, target) for path, kind in made for target in _targets(path)]


def _targets(folder: Path) -> list[str]:
    names = [
        "config.json",
        INDEX,
        "moeify.json",
        "scores.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "README.md",
    ]
    weights = sorted(path.name for path in folder.glob("*.safetensors"))[-1:]
    return [*(name for name in names if (folder / name).exists()), *weights]


def listed(seeds: list[Seed]) -> str:
    """Seeds as JSON, for processes that did not make them."""
    return json.dumps([(str(seed.folder), seed.kind, seed.target) for seed in seeds])
