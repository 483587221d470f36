"""How much longer MiniLM takes for 2,048 tokens in slices (4 experts, 4 slices, top-1), and as copies, than dense."""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import AutoModel

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from real.checkpoints import minilm

import moeify

WAYS = {"slices": {"slices": 4}, "copies": {}}
ROUNDS = 15


def seconds(model: torch.nn.Module, ids: torch.Tensor) -> float:
    """One forward pass."""
    begun = time.perf_counter()
    model(ids)
    return time.perf_counter() - begun


def main() -> None:
    """Print medians of ratios, each of two passes one after the other."""
    torch.set_num_threads(1)
    ids = torch.randint(1000, 30_000, (16, 128), generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as scratch, torch.no_grad():
        folders = {"dense": minilm()} | {name: Path(scratch, name) for name in WAYS}
        for name, options in WAYS.items():
            moeify.upcycle(folders["dense"], folders[name], num_experts=4, top_k=1, **options)
        models = {name: AutoModel.from_pretrained(folder).eval() for name, folder in folders.items()}
        runs = [{name: seconds(model, ids) for name, model in models.items()} for _ in range(ROUNDS + 1)]
    for name in WAYS:
        ratio = statistics.median(run[name] / run["dense"] for run in runs[1:])
        print(f"{name}: {ratio:.2f} x dense")


if __name__ == "__main__":
    main()
