"""Run llama.cpp's converter: `convert.py TREE FOLDER --outfile FILE ...`."""

import sys

tree = sys.argv.pop(1)
sys.path[:0] = [tree, f"{tree}/gguf-py"]

import convert_hf_to_gguf  # noqa: E402
from conversion.base import TextModel  # noqa: E402

# The converter knows tokenizers by a fingerprint; SmolLM2's in a Qwen is none that it has.
TextModel.get_vocab_base_pre = lambda self, tokenizer: "qwen2"


def without_sentencepiece(self: TextModel) -> None:
    """The converter imports the package before it sees that a Llama has no such tokenizer."""
    raise FileNotFoundError("tokenizer.model")


TextModel._set_vocab_sentencepiece = without_sentencepiece
convert_hf_to_gguf.main()
