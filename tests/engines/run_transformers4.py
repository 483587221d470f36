"""Logits of checkpoint folders in the transformers before 5; it runs in its own Python, prints JSON."""

import json
import sys
from pathlib import Path

import torch
import transformers

KINDS = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")


@torch.no_grad()
def read(folder: str, tokens: list[list[int]], own: bool) -> dict:
    """What was wrong, and the logits; nothing where there is no such class."""
    name = json.loads(Path(folder, "config.json").read_text())["architectures"][0]
    loader = transformers.AutoModelForCausalLM if own else getattr(transformers, name, None)
    if loader is None:
        return {}
    try:
        model, said = loader.from_pretrained(
            folder, trust_remote_code=own, output_loading_info=True, dtype=torch.float32
        )
    except Exception as error:
        return {"wrong": str(error)}
    wrong = {kind: sorted(map(str, said[kind])) for kind in KINDS if said.get(kind)}
    return {"wrong": wrong, "logits": model.eval()(input_ids=torch.tensor(tokens)).logits.tolist()}


if __name__ == "__main__":
    task = json.loads(sys.argv.pop())
    transformers.logging.set_verbosity_error()
    found = {folder: read(folder, task["tokens"], own) for folder, own in task["folders"].items()}
    print("\n" + json.dumps({"version": transformers.__version__, "found": found}))
