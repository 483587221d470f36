"""The text of a model card, section by section; everything from files is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from moeify.families.base import Config, Family
from moeify.provenance.citations import Citation, citations
from moeify.provenance.engines import engines, ignores_renormalisation
from moeify.provenance.record import Record, Step, expert_sources

__all__ = ["PLACEHOLDER", "card_sections", "inline", "pipeline_task"]

PLACEHOLDER = "FOLDER_OR_REPO"
"""Stands in the snippets of a card until the checkpoint has an id on the Hub."""

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
_EXPERT_COLUMNS = ("experts", "know", "made of")
_COUNTS = ("params_dense", "params_total", "params_active")
_HIDDEN = frozenset({*_COUNTS, "sources", "revision", "force", "max_shard_size", "push_to"})


def pipeline_task(suffix: str) -> str:
    """The Hub's name of what a class with this head does."""
    return _PIPELINES.get(suffix, "feature-extraction")


def card_sections(
    family: Family, config: Config, record: Record, suffix: str, encoder: bool
) -> Iterator[str]:
    """The sections of the card in order; ``encoder`` says that it is a sentence encoder."""
    yield f"# {inline(record.source)} as a mixture of {family.moe.num_experts(config)} experts"
    yield _summary(family, config, record)
    if rows := _experts(record):
        yield "## Experts\n\n" + _table(rows, _EXPERT_COLUMNS)
    yield "## Size\n\n" + _table(_sizes(family, config, record))
    yield "## Load it\n\n" + _snippets(family, suffix, encoder)
    yield "## Where it runs\n\n" + _table(
        [(engine.name, engine.verdict) for engine in engines(family, config)], ("engine", "loads")
    )
    if record.steps:
        yield "## How it was made\n\n" + "\n\n".join(_step(step) for step in record.steps)
    yield "## Limits\n\n" + "\n".join(f"- {limit}" for limit in _limits(family, config, record))
    if found := citations(record.steps):
        yield "## Methods\n\n" + "\n".join(f"- {_citation(citation)}" for citation in found)


def _summary(family: Family, config: Config, record: Record) -> str:
    experts, top_k = family.moe.num_experts(config), family.moe.top_k(config)
    layers = family.moe.moe_layers(config)
    unit = family.moe.rule.route_by(config)
    if record.revision is None:
        base = f"`{inline(record.source)}`"
    else:
        name = inline(record.source)
        base = f"[{name}](https://huggingface.co/{name}) at revision `{inline(record.revision)}`"
    return (
        f"{base}, with {experts} experts in place of the feed-forward network of {len(layers)} of"
        f" its {family.dense.num_layers(config)} layers. Each {unit} visits {top_k} of them. Made"
        " with moeify."
    )


def _experts(record: Record) -> list[tuple[str, ...]]:
    """Experts that were made of other models: their numbers, what they know, and the models."""
    rows: list[tuple[str, ...]] = []
    for step in record.steps:
        if step.command == "prune":
            return []  # which numbers are left is in moeify.json, layer by layer
        for source in expert_sources(step):
            kind = ", a LoRA adapter" if source.get("adapter") else ""
            at = f" at {str(source['revision'])[:8]}" if source.get("revision") else ""
            numbers = ", ".join(map(str, source.get("experts") or ()))
            rows.append((numbers, str(source.get("label")), f"{source.get('name')}{at}{kind}"))
    return rows


def _sizes(family: Family, config: Config, record: Record) -> list[tuple[str, str]]:
    rows = [
        ("experts per layer", str(family.moe.num_experts(config))),
        ("experts per token", str(family.moe.top_k(config))),
    ]
    latest: dict[str, Any] = {}
    for step in record.steps:
        if "params_total" in step.results:  # what was counted of the model before is void
            latest = {key: latest[key] for key in ("params_dense",) if key in latest}
        latest |= {key: step.results[key] for key in _COUNTS if key in step.results}
    labels = ("parameters of the dense model", "parameters in all", "parameters used by a token")
    for key, label in zip(_COUNTS, labels, strict=True):
        if isinstance(latest.get(key), int):
            rows.append((label, f"{latest[key]:,}"))
    return rows


def _snippets(family: Family, suffix: str, encoder: bool) -> str:
    auto = _AUTO_CLASSES.get(suffix, "AutoModel")
    trust = ", trust_remote_code=True" if family.remote_code else ""
    code = (
        "```python\n"
        f"from transformers import AutoTokenizer, {auto}\n\n"
        f'tokenizer = AutoTokenizer.from_pretrained("{PLACEHOLDER}"{trust})\n'
        f'model = {auto}.from_pretrained("{PLACEHOLDER}"{trust})\n'
        "```"
    )
    if encoder:
        code += (
            "\n\n```python\n"
            "from sentence_transformers import SentenceTransformer\n\n"
            f'model = SentenceTransformer("{PLACEHOLDER}"{trust})\n'
            'embeddings = model.encode(["a sentence", "another one"])\n'
            "```"
        )
    if family.remote_code:
        code += (
            "\n\nWhere moeify is installed and imported first (`import moeify`),"
            " `trust_remote_code=True` is not needed."
        )
    return code


def _limits(family: Family, config: Config, record: Record) -> Iterable[str]:
    commands = {step.command for step in record.steps}
    if any(expert_sources(step) for step in record.steps):
        yield (
            "Its experts were trained apart from one another and put together without training:"
            " measure the model on your own task before you rely on it."
        )
    else:
        yield (
            "An upcycled model computes what its base computes until it is trained: experts that"
            " start as copies give the router nothing to choose between."
        )
    if _rounding_chooses(family, record):
        yield (
            "The routers are as `--compat gguf` left them, so flat that rounding chooses between"
            " experts that noise set apart, and each engine rounds its own way: the same prompt may"
            " give other tokens in llama.cpp, mlx-lm and transformers until the routers are"
            " trained. `--noise 0` avoids that."
        )
    if "warmup" in commands:
        yield "Warm-up changes the routers only; the experts still have to be trained to differ."
    if "prune" in commands:
        yield (
            "Pruning was not followed by training: measure it on your own task before you rely"
            " on it."
        )
    if family.remote_code:
        yield "Loading it anywhere but beside moeify runs the Python files of this repository."
    # The family's own notes are about renormalised weights, which an export may have turned off.
    if not family.notes or ignores_renormalisation(family, config):
        yield from family.notes
    yield "Whatever limits and biases the base model has, this one has too."


def _step(step: Step) -> str:
    parts = [f"### moeify {inline(step.command)}"]
    if options := list(_rows(step.options)):
        parts.append(_table(options, ("option", "value")))
    if results := list(_rows(step.results)):
        parts.append(_table(results, ("result", "value")))
    if versions := ", ".join(f"{name} {number}" for name, number in step.versions.items()):
        parts.append(f"Versions: {inline(versions)}.")
    return "\n\n".join(parts)


def _rounding_chooses(family: Family, record: Record) -> bool:
    """Whether experts differ behind the flat routers that an export for llama.cpp starts with."""
    flat = False
    for step in record.steps:
        if step.command == "upcycle":
            exported = step.options.get("compat") == "gguf" and family.gguf_renormalises is False
            flat = exported and bool(step.options.get("noise"))
        elif step.command == "warmup":
            flat = False
        elif step.command == "attach":
            flat = flat and step.options.get("router") == "zeros"
    return flat


def _rows(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Plain values, one level of nesting included; long lists by their length."""
    for key, value in values.items():
        name = f"{prefix}{key}".replace("_", " ")
        if key in _HIDDEN or value is None:
            continue
        if isinstance(value, bool):
            yield name, "yes" if value else "no"
        elif isinstance(value, float):
            yield name, f"{value:.4g}"
        elif isinstance(value, int):
            yield name, f"{value:,}" if value >= 10_000 else str(value)
        elif isinstance(value, str):
            yield name, value
        elif isinstance(value, list):
            short = len(value) <= 8 and all(isinstance(item, str | int | float) for item in value)
            yield name, ", ".join(map(str, value)) if short else f"{len(value)} values"
        elif isinstance(value, dict) and not prefix:
            yield from list(_rows(value, f"{key} "))[:12]


def _table(rows: Iterable[tuple[str, ...]], head: tuple[str, ...] = ("", "")) -> str:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *(f"| {' | '.join(map(inline, row))} |" for row in rows)])


def _citation(citation: Citation) -> str:
    paper = f"[arXiv:{citation.arxiv}](https://arxiv.org/abs/{citation.arxiv})"
    named = f"{citation.authors}, *{citation.title}*, {paper}"
    return f"{citation.used_for[0].upper()}{citation.used_for[1:]}: {named}"


def inline(text: object) -> str:
    """Text from a file that cannot break out of a line or table cell, become HTML or a link."""
    printable = "".join(c if c.isprintable() else " " for c in str(text))[:400]
    for character, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "&#124;"),
                              ("[", "&#91;"), ("]", "&#93;"), ("*", "&#42;")):  # fmt: skip
        printable = printable.replace(character, entity)
    return printable.replace("`", "'")
