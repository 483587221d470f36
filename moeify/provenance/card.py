"""The model card (README.md) of a checkpoint, made from its config and its record."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moeify.families.base import Config, Family
from moeify.provenance.record import Record

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

__all__ = ["write_card"]

_PIPELINES = {
    "ForMaskedLM": "fill-mask",
    "ForPreTraining": "fill-mask",
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "DoubleHeadsModel": "text-generation",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMultipleChoice": "multiple-choice",
    "Model": "feature-extraction",
}
_AUTO_CLASSES = {
    "ForMaskedLM": "AutoModelForMaskedLM",
    "ForPreTraining": "AutoModelForPreTraining",
    "ForCausalLM": "AutoModelForCausalLM",
    "LMHeadModel": "AutoModelForCausalLM",
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForTokenClassification": "AutoModelForTokenClassification",
    "ForQuestionAnswering": "AutoModelForQuestionAnswering",
    "ForMultipleChoice": "AutoModelForMultipleChoice",
    "ForNextSentencePrediction": "AutoModelForNextSentencePrediction",
}
_INHERITED = ("license", "license_name", "license_link", "language", "datasets")


def write_card(
    folder: Path, family: Family, config: Config, record: Record, base_folder: Path | None = None
) -> None:
    """Write README.md into ``folder``.

    Licence, languages and data sets are taken over from the card in ``base_folder``.
    """
    suffix = str(config["architectures"][0]).removeprefix(family.class_prefixes[1])
    metadata = _metadata(family, record, suffix, _base_metadata(base_folder))
    body = "\n\n".join(_sections(family, config, record, suffix))
    text = f"---\n{metadata.to_yaml()}\n---\n\n{body}\n"
    (folder / "README.md").write_text(text, encoding="utf-8")


def _base_metadata(folder: Path | None) -> dict[str, Any]:
    from huggingface_hub import ModelCard

    path = None if folder is None else folder / "README.md"
    if path is None or not path.is_file():
        return {}
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
        found = vars(ModelCard(text, ignore_metadata_errors=True).data)
    except ValueError:  # a card without readable metadata has nothing to hand on
        return {}
    return {key: found[key] for key in _INHERITED if found.get(key) is not None}


def _metadata(family: Family, record: Record, suffix: str, base: dict[str, Any]) -> ModelCardData:
    from huggingface_hub import ModelCardData

    return ModelCardData(
        **base,
        base_model=record.source,
        base_model_relation="finetune",
        library_name="transformers",
        pipeline_tag=_PIPELINES.get(suffix, "feature-extraction"),
        tags=["moe", "mixture-of-experts", "moeify", family.model_type],
    )


def _sections(family: Family, config: Config, record: Record, suffix: str) -> Iterable[str]:
    experts, top_k = family.moe.num_experts(config), family.moe.top_k(config)
    layers = family.moe.moe_layers(config)
    yield f"# {_inline(record.source)} as a mixture of {experts} experts"
    yield (
        f"The feed-forward layers of `{_inline(record.source)}` turned into {experts} experts"
        f" each, of which a token visits {top_k}, in {len(layers)} of"
        f" {family.dense.num_layers(config)} layers. Made with"
        " [moeify](https://github.com/moeify/moeify)."
    )
    yield "## Load it\n\n" + _snippet(family, suffix)
    yield "## How it was made\n\n" + _steps(record)
    limits = [
        "An upcycled model computes what its base computes until it is trained: experts that"
        " start as copies give the router nothing to choose between.",
        *family.notes,
    ]
    if family.remote_code:
        limits.append(
            "Engines that bring their own model code (vLLM, SGLang, llama.cpp, mlx-lm) do not"
            f" know `{family.moe.model_type}`; transformers loads it with the code in this"
            " repository."
        )
    yield "## Limits\n\n" + "\n".join(f"- {limit}" for limit in limits)
    yield (
        "## Methods\n\nSparse upcycling: Komatsuzaki et al., *Sparse Upcycling: Training"
        " Mixture-of-Experts from Dense Checkpoints*, arXiv:2212.05055."
    )


def _snippet(family: Family, suffix: str) -> str:
    auto = _AUTO_CLASSES.get(suffix, "AutoModel")
    trust = ", trust_remote_code=True" if family.remote_code else ""
    return (
        "```python\n"
        f"from transformers import AutoTokenizer, {auto}\n\n"
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER_OR_REPO")\n'
        f'model = {auto}.from_pretrained("FOLDER_OR_REPO"{trust})\n'
        "```"
    )


def _steps(record: Record) -> str:
    lines = []
    for step in record.steps:
        lines.append(f"### {_inline(step.command)}\n")
        lines.append("| | |\n|---|---|")
        for key, value in {**step.options, **step.results}.items():
            if isinstance(value, str | int | float | bool):
                lines.append(f"| {_inline(key)} | {_inline(_short(value))} |")
        versions = ", ".join(f"{name} {number}" for name, number in step.versions.items())
        lines.append(f"\nVersions: {_inline(versions)}.\n")
    return "\n".join(lines).rstrip()


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _inline(text: object) -> str:
    """Text from a file that cannot break out of a Markdown table cell or become HTML."""
    printable = "".join(c if c.isprintable() else " " for c in str(text))
    for character, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "&#124;")):
        printable = printable.replace(character, entity)
    return printable.replace("`", "'")
