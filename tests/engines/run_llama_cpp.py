"""Greedy tokens of a GGUF file in llama.cpp; it runs in the engines' Python and prints JSON."""

import json
import sys

import xllamacpp

model, task = sys.argv[1], json.loads(sys.argv[2])
options = xllamacpp.CommonParams()
options.model.path, options.n_ctx, options.n_parallel = model, 128, 1
options.cpuparams.n_threads, options.warmup = 1, False
# Keys and values would be rounded to half precision.
options.cache_type_k = options.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
server = xllamacpp.Server(options)


def following(prompt: list[int]) -> int:
    request = {"prompt": prompt, "n_predict": 1, "temperature": 0, "ignore_eos": True}
    answer = server.handle_completions(request | {"logprobs": 1})
    return answer["choices"][0]["logprobs"]["content"][0]["id"]


found = []
for prompt in task["prompts"]:
    tokens: list[int] = []
    for _ in range(task["num_tokens"]):
        tokens.append(following(prompt + tokens))
    found.append(tokens)
print("\n" + json.dumps(found))
