"""The pipelines that are compared; it imports transformers only, so that it runs anywhere."""

import json
import sys
from typing import Any

INPUTS = {
    "fill-mask": "the [MASK] of a",
    "feature-extraction": "a sentence",
    "text-classification": "a sentence",
    "text-generation": "once upon",
}


def run(task: str, folder: object, **options: Any) -> Any:
    from transformers import pipeline

    pipe = pipeline(task, model=str(folder), device="cpu", **options)
    more = {"max_new_tokens": 8, "do_sample": False} if task == "text-generation" else {}
    return pipe(INPUTS[task], **more)


if __name__ == "__main__":
    folders = json.loads(sys.argv[1])
    answers = {task: run(task, path, trust_remote_code=True) for task, path in folders.items()}
    print(json.dumps(answers))
