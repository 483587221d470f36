"""Run llama.cpp's converter: `convert.py TREE FOLDER --outfile FILE ...`."""

import sys

tree = sys.argv.pop(1)
sys.path[:0] = [tree, f"{tree}/gguf-py"]

import convert_hf_to_gguf  # noqa: E402
from conversion.base import TextModel  # noqa: E402

# The converter knows tokenizers by a fingerprint; SmolLM2's in a Qwen is none that it has.
TextModel.get_vocab_base_pre = lambda self, tokenizer: "qwen2"
convert_hf_to_gguf.main()
