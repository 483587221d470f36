"""The snippets of every card load the model, on a machine that has never heard of moeify."""

import json
import re
import subprocess
from pathlib import Path

import pytest

import moeify

from ..elsewhere import python_without_moeify
from ..real.hub_shapes import bert_base_uncased_like, gpt2_like, qwen_like, sentence_encoder_like
from ..tiny import FAMILIES_ONCE, save_tiny

PROGRAM = """
import json, sys
answers = {}
for name, code in json.load(sys.stdin).items():
    scope = {}
    exec(code, scope)
    model = scope["model"]
    answers[name] = [type(model).__name__, type(scope.get("tokenizer")).__name__]
print(json.dumps(answers))
"""
WITH_TOKENIZER = {
    "bert": bert_base_uncased_like,
    "gpt2": gpt2_like,
    "encoder": sentence_encoder_like,
    "qwen2": lambda f: qwen_like(f, "qwen2"),
    "qwen3": lambda f: qwen_like(f, "qwen3"),
}


def snippets(folder: Path) -> list[str]:
    card = (folder / "README.md").read_text()
    blocks = re.findall(r"^```python\n(.+?)^```", card, re.M | re.S)
    return [block.replace("FOLDER_OR_REPO", str(folder)) for block in blocks]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A mixture of every class, and of every family with a tokenizer."""
    root, found = tmp_path_factory.mktemp("cards"), {}
    for family, head in FAMILIES_ONCE:
        save_tiny(root / "dense" / head, family, head)
        found[head] = root / "dense" / head
    for name, write in WITH_TOKENIZER.items():
        found[name] = write(root / "dense" / name)
    for name, dense in found.items():
        moeify.upcycle(dense, root / name, num_experts=2)
    return {name: root / name for name in found}


@pytest.fixture(scope="module")
def loaded(folders, tmp_path_factory):
    """Names of the classes of model and tokenizer by the name of the mixture."""
    home = tmp_path_factory.mktemp("home")
    code = {}
    for name, folder in folders.items():
        code[name], *further = snippets(folder)
        code |= {f"{name} {number}": block for number, block in enumerate(further)}
    done = subprocess.run(
        [str(python_without_moeify(home / "venv")), "-I", "-c", PROGRAM],
        input=json.dumps(code),
        env={"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("head", [head for _, head in FAMILIES_ONCE])
def test_every_head(head, folders, loaded):
    (named,) = json.loads((folders[head] / "config.json").read_text())["architectures"]
    # No auto class has the two heads of this one; its card loads the one for language.
    expected = named.replace("DoubleHeadsModel", "LMHeadModel")
    assert loaded[head] == [expected, "NoneType"]


@pytest.mark.parametrize("name", WITH_TOKENIZER)
def test_tokenizers_come_with_it(name, loaded):
    model, tokenizer = loaded[name]
    assert "Moe" in model
    assert "Tokenizer" in tokenizer


def test_the_second_snippet_of_a_sentence_encoder(loaded):
    assert loaded["encoder 0"] == ["SentenceTransformer", "NoneType"]
