"""Greedy tokens, or pooled vectors, of checkpoint folders in vLLM; it runs in its own Python, prints JSON."""

import json
import sys

from vllm import LLM, SamplingParams

LIMITS = {"dtype": "float32", "enforce_eager": True, "max_model_len": 256, "max_num_seqs": 2}


def tokens(folder: str, task: dict) -> list[list[int]]:
    """What follows each prompt."""
    model = LLM(folder, skip_tokenizer_init=True, **LIMITS)
    greedy = SamplingParams(temperature=0, max_tokens=task["num_tokens"], ignore_eos=True, detokenize=False)
    prompts = [{"prompt_token_ids": prompt} for prompt in task["prompts"]]
    return [list(found.outputs[0].token_ids) for found in model.generate(prompts, greedy)]


def vectors(folder: str, task: dict) -> list[list[float]]:
    """What the encoder's pooling gives for each text."""
    model = LLM(folder, runner="pooling", trust_remote_code=True, model_impl="transformers", **LIMITS)
    return [list(found.outputs.embedding) for found in model.embed(task["texts"])]


if __name__ == "__main__":
    task = json.loads(sys.argv.pop())
    run = vectors if "texts" in task else tokens
    print("\n" + json.dumps({folder: run(folder, task) for folder in sys.argv[1:]}))
