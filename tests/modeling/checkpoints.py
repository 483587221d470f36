"""Checkpoint folders as a converter would leave them, and a way to load them elsewhere."""

import json
import os
import shutil
import string
import subprocess
from pathlib import Path

import torch

from moeify.modeling import REMOTE_CODE
from tests.elsewhere import python_without_moeify
from tests.modeling.tiny_models import dense_model, inputs, upcycle, vary_experts

REPOSITORY = Path(__file__).parents[2]
HEADS = {"bert_moe": "BertForPreTraining", "gpt2_moe": "GPT2LMHeadModel"}


def write_checkpoint(model_type: str, folder: Path, **options: object) -> None:
    """A checkpoint with code, tokenizer and, beside it, what the model must compute."""
    head = HEADS[model_type]
    model = vary_experts(upcycle(dense_model(head), moe_layers=[0, 2], **options))
    model.save_pretrained(folder)
    for path in folder.glob("*.py"):
        path.unlink()
    code = REMOTE_CODE[model_type]
    for path in code.paths:
        shutil.copy(path, folder)
    config = json.loads((folder / "config.json").read_text())
    del config["tokenizer_class"]
    config["auto_map"] = dict(code.auto_map)
    (folder / "config.json").write_text(json.dumps(config))
    _write_tokenizer(model_type, folder)
    batch = inputs(head)
    with torch.no_grad():
        logits = model(**batch)[0]
    torch.save((batch, logits), folder.with_suffix(".expected"))


def _write_tokenizer(model_type: str, folder: Path) -> None:
    """As the oldest repositories have it: the vocabulary, and no word on the class."""
    if model_type == "bert_moe":
        tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.ascii_lowercase]
        (folder / "vocab.txt").write_text("\n".join(tokens))
    else:
        tokens = ["<|endoftext|>", *string.ascii_letters, "\u0120"]
        (folder / "vocab.json").write_text(json.dumps({t: n for n, t in enumerate(tokens)}))
        (folder / "merges.txt").write_text("#version: 0.2\n")


def run_elsewhere(code: str, *arguments: object, cache: Path) -> str:
    """Run Python code offline where moeify is not installed and return what it prints."""
    environment = os.environ | {
        "HF_HOME": str(cache),
        "HF_MODULES_CACHE": str(cache / "modules"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [str(python_without_moeify(cache / "venv")), "-I", "-c", code, *map(str, arguments)],
        cwd=cache,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
