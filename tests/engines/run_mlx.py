"""Greedy tokens of a checkpoint folder in mlx-lm; it runs in the engines' Python, prints JSON."""

import json
import sys
from pathlib import Path

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model

folder, task = Path(sys.argv[1]), json.loads(sys.argv[2])
model, _ = load_model(folder)
model.eval()
found = []
for prompt in task["prompts"]:
    tokens: list[int] = []
    cache, unseen = make_prompt_cache(model), prompt
    for _ in range(task["num_tokens"]):
        logits = model(mx.array([unseen]), cache=cache)
        unseen = [int(mx.argmax(logits[0, -1]))]
        tokens += unseen
    found.append(tokens)
print("\n" + json.dumps(found))
