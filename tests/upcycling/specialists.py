"""Dense checkpoints that differ from a base as fine-tuned ones do."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from moeify.checkpoint.files import SourceFiles
from moeify.checkpoint.reader import Checkpoint
from moeify.families.dense_checkpoint import Dense, open_dense
from moeify.families.registry import dense_layout

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def dense_view(folder: Path) -> Dense:
    checkpoint = Checkpoint.open(folder)
    return open_dense(checkpoint, dense_layout(checkpoint.config))


def specialist(base: Path, folder: Path, seed: int, *, scale: float = 0.3, everything: bool = False) -> Path:
    """A copy of ``base`` with other FFN weights, or with every weight changed."""
    shutil.copytree(base, folder)
    view = dense_view(folder)
    starts = [t.start for layer in range(view.num_layers) for t in view.ffn(layer).values()]
    stored = Checkpoint.open(folder).tensors.values()  # one of them may hold several roles
    ffn = {t.name for t in stored if any(t.start <= start < t.start + t.nbytes for start in starts)}
    generator = torch.Generator().manual_seed(seed)
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if everything or name in ffn:
            noise = torch.randn(tensor.shape, generator=generator) * tensor.float().std()
            tensors[name] = (tensor.float() + scale * noise).to(tensor.dtype)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def change_config(folder: Path, **changes: object) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def ffn_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """FFN tensors by their names relative to the base model."""
    view = dense_view(folder)
    stored = {t.name for layer in range(view.num_layers) for t in view.ffn(layer).values()}
    with SourceFiles() as files:
        return {
            name: torch.frombuffer(files.read(t.path, t.start, t.nbytes), dtype=_DTYPES[t.dtype]).reshape(t.shape)
            for name, t in view.base.items()
            if t.name in stored
        }


def spoil(path: Path, name: str) -> None:
    """Put a NaN into one tensor."""
    tensors = load_file(path)
    tensors[name][0, 0] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})
