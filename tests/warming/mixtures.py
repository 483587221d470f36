"""Small mixtures on disk, made by moeify's own upcycling from the shipped GPT-2 and tiny models."""

import hashlib
import json
import shutil
from pathlib import Path

from moeify.checkpoint.reader import Checkpoint
from moeify.upcycling.upcycle import upcycle

DEMO = Path(__file__).parents[2] / "moeify" / "demo"
FAST = {"device": "cpu", "seq_len": 32, "fit_tokens": 2048, "eval_tokens": 1024, "batch": 4}


def demo_mixture(folder: Path, **options: object) -> Path:
    """The shipped GPT-2 with four experts in each layer."""
    upcycle(DEMO / "gpt2", folder, **{"num_experts": 4, "layers": "0,2", **options})
    return folder


def corpus(folder: Path, count: int = 150) -> Path:
    """Texts of two domains: the shipped prose, and Python's own source."""
    lines = (DEMO / "text.jsonl").read_text(encoding="utf-8").splitlines()[:count]
    rows = [{"text": json.loads(line)["text"], "domain": "prose"} for line in lines]
    code = Path(json.__file__).with_name("decoder.py").read_text(encoding="utf-8")
    code += Path(hashlib.__file__).read_text(encoding="utf-8")
    rows += [{"text": code[start : start + 400], "domain": "code"} for start in range(0, len(code), 400)]
    path = folder / "corpus.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def with_tokenizer(folder: Path) -> Path:
    """Give a checkpoint the shipped tokenizer."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / "gpt2" / name, folder)
    return folder


def changed(before: Path, after: Path) -> set[str]:
    """Names of the tensors whose bytes differ; both folders hold the same names."""
    first, second = hashes(before), hashes(after)
    assert first.keys() == second.keys()
    return {name for name in first if first[name] != second[name]}


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every tensor's bytes, by name."""
    found = {}
    for name, tensor in Checkpoint.open(folder).tensors.items():
        with tensor.path.open("rb") as file:
            file.seek(tensor.start)
            found[name] = hashlib.sha256(file.read(tensor.nbytes)).hexdigest()
    return found
