"""The text of a model card, section by section; everything from files is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from moeify.families.conversion import DENSE_TYPE
from moeify.families.engines import FOREIGN
from moeify.provenance.citations import citations
from moeify.provenance.exports import SCALED_FOR_OTHERS, SET_APART_BY_NOISE, is_as_exported
from moeify.provenance.markdown import inline, rows, table
from moeify.provenance.record import Record, Step, expert_sources
from moeify.provenance.subject import MixtureSize, Subject
from moeify.tables import Citation

PLACEHOLDER = "FOLDER_OR_REPO"
"""Stands in the snippets of a card until the checkpoint has an id on the Hub."""

_EXPERT_COLUMNS = ("experts", "know", "made of")
_COUNTS = ("params_dense", "params_total", "params_active")
_UNSHOWN = ("custom_code", "sources", "revision", "force", "max_shard_size", "papers", "push_to")
_HIDDEN = frozenset((*_COUNTS, *_UNSHOWN, DENSE_TYPE))


def card_sections(subject: Subject) -> Iterator[str]:
    """The sections of the card in order."""
    yield f"# {_title(subject)}"
    yield _summary(subject)
    if made := list(_experts(subject.record)):
        yield "## Experts\n\n" + table(made, _EXPERT_COLUMNS)
    if sizes := list(_sizes(subject)):
        yield "## Size\n\n" + table(sizes)
    yield "## Load it\n\n" + _snippets(subject)
    engines = subject.conversion.engines if subject.conversion else FOREIGN
    runs = [(engine.name, engine.says(subject.config)) for engine in engines]
    yield "## Where it runs\n\n" + table(runs, ("engine", "loads"))
    steps = subject.record.steps
    if steps:
        yield "## How it was made\n\n" + "\n\n".join(_step(step) for step in steps)
    yield "## Limits\n\n" + "\n".join(f"- {limit}" for limit in _limits(subject))
    if found := citations(steps):
        yield "## Methods\n\n" + "\n".join(f"- {_citation(citation)}" for citation in found)


def _title(subject: Subject) -> str:
    source = inline(subject.record.source)
    if subject.upcycled and subject.mixture is not None:
        return f"{source} as a mixture of {subject.mixture.num_experts} experts"
    return f"{source} after moeify {inline(subject.commands[-1])}" if subject.commands else source


def _summary(subject: Subject) -> str:
    name, revision = inline(subject.record.source), subject.record.revision
    base = f"`{name}`"
    if revision is not None:
        base = f"[{name}](https://huggingface.co/{name}) at revision `{inline(revision)}`"
    size = subject.mixture
    if size is None:
        return f"{base}, as a dense model. Made with moeify."
    layers = f"{size.moe_layers} of its {size.num_layers} layers"
    experts = f"{size.num_experts} experts in place of the feed-forward network of {layers}"
    if not subject.upcycled:
        experts = f"{size.num_experts} experts in each of {layers}"
    visited = size.top_k // size.slices
    where = f", {visited} in each of {size.slices} slices" if size.slices > 1 else ""
    if size.tied:
        where = f", {visited} {'copies' if visited > 1 else 'copy'} in {size.slices} slices"
    if size.shared:
        where += f", and {size.shared} slice{'s' * (size.shared > 1)} without a router"
    if size.nulls:
        where = f", or fewer where it chooses one of {size.nulls} null experts behind the first"
    return f"{base}, with {experts}. Each {size.route_by} visits {size.top_k} of them{where}. Made with moeify."


def _experts(record: Record) -> Iterator[tuple[str, ...]]:
    """Experts that were made of other models: their numbers, what they know, and the models."""
    if any(step.command in ("prune", "extract") for step in record.steps):
        return  # which numbers are left is in moeify.json, layer by layer
    for step in record.steps:
        for source in expert_sources(step):
            kind = ", a LoRA adapter" if source.get("adapter") else ""
            at = f" at {str(source['revision'])[:8]}" if source.get("revision") else ""
            numbers = ", ".join(map(str, source["experts"]))
            yield numbers, str(source.get("label")), f"{source.get('name')}{at}{kind}"


def _sizes(subject: Subject) -> Iterator[tuple[str, str]]:
    counted: dict[str, Any] = {}
    for step in subject.record.steps:
        counted |= {key: step.results[key] for key in _COUNTS if key in step.results}
    if subject.mixture is not None:
        yield from _mixture_sizes(subject.mixture, counted.get("params_dense"))
    elif isinstance(total := counted.get("params_total"), int):
        yield "parameters", f"{total:,}"


def _mixture_sizes(size: MixtureSize, dense: object) -> Iterator[tuple[str, str]]:
    yield "experts per layer", str(size.num_experts)
    yield "experts per token", str(size.top_k)
    if isinstance(dense, int):
        yield "parameters of the dense model", f"{dense:,}"
    yield "parameters in all", f"{size.total:,}"
    yield "parameters used by a token", f"{size.active:,}"


def _snippets(subject: Subject) -> str:
    auto, remote = subject.head.auto, subject.remote_code
    trust = ", trust_remote_code=True" if remote else ""
    loaded = {"tokenizer": "AutoTokenizer"} if subject.has_tokenizer else {}
    loaded |= {"model": auto}
    code = f"from transformers import {', '.join(loaded.values())}\n"
    for name, kind in loaded.items():
        code += f'\n{name} = {kind}.from_pretrained("{PLACEHOLDER}"{trust})'
    text = f"```python\n{code}\n```"
    if subject.encoder:
        text += (
            "\n\n```python\n"
            "from sentence_transformers import SentenceTransformer\n\n"
            f'model = SentenceTransformer("{PLACEHOLDER}"{trust})\n'
            'embeddings = model.encode(["a sentence", "another one"])\n'
            "```"
        )
    if remote:
        text += (
            "\n\nWhere moeify is installed and imported first (`import moeify`),"
            " `trust_remote_code=True` is not needed."
        )
    return text


def _limits(subject: Subject) -> Iterable[str]:
    conversion, steps = subject.conversion, subject.record.steps
    as_exported = is_as_exported(subject.config, subject.record)
    if as_exported is False:
        yield SCALED_FOR_OTHERS
    elif any(expert_sources(step) for step in steps):
        yield (
            "Its experts were trained apart from one another and put together without training:"
            " measure the model on your own task before you rely on it."
        )
    elif redrawn := [step for step in steps if step.options.get("reinit")]:
        yield (
            "Neurons of its experts were drawn anew: until it is trained, it does not compute what its base"
            f" computes{_start(redrawn[0])}."
        )
    elif subject.upcycled:
        yield (
            "An upcycled model computes what its base computes until it is trained: experts that"
            " start as copies give the router nothing to choose between."
        )
    if as_exported and any(step.options.get("noise") for step in steps):
        yield SET_APART_BY_NOISE
    warmed = [step.options.get("train", "routers") for step in steps if step.command == "warmup"]
    if warmed and set(warmed) == {"routers"}:
        yield "Warm-up changes the routers only; the experts still have to be trained to differ."
    if _is_untrained_since_cut(steps):
        yield ("Taking experts out was not followed by training: measure it on your own task before you rely on it.")
    if code := {str(n) for step in steps for n in _custom_code(step)}:
        yield (
            "Code of its own computed parts of its base, and is not part of this model:"
            f" {inline(', '.join(sorted(code)))}. Its base with `trust_remote_code=True` may give"
            " other results."
        )
    if subject.remote_code:
        yield "Loading it anywhere but beside moeify runs the Python files of this repository."
    if conversion is not None:
        yield from conversion.notes_on(subject.config)
    yield "Whatever limits and biases the base model has, this one has too."


def _start(step: Step) -> str:
    """The loss before training beside the base's, where it was measured."""
    found = step.results
    losses = [found.get(key) for key in ("eval_loss", "eval_loss_dense")]
    if not all(isinstance(loss, int | float) for loss in losses):
        return ""
    mixture, dense = (f"{loss:.4g}" for loss in losses)
    if found.get("loss") == "distill":
        return f" (its last hidden states are {mixture} from the base's, by the relative squared distance)"
    return f" ({inline(found.get('loss'))} loss {mixture} in place of {dense})"


def _custom_code(step: Step) -> list[Any]:
    named = step.results.get("custom_code")
    return named if isinstance(named, list) else []


def _is_untrained_since_cut(steps: Iterable[Step]) -> bool:
    """Whether experts were taken out and nothing but routers trained since."""
    cut = False
    for step in steps:
        if step.command in ("prune", "extract"):
            cut = True
        elif step.command == "warmup" and step.options.get("steps"):
            cut = cut and step.options.get("train", "routers") == "routers"
    return cut


def _step(step: Step) -> str:
    parts = [f"### moeify {inline(step.command)}"]
    if options := list(rows(step.options, _HIDDEN)):
        parts.append(table(options, ("option", "value")))
    pairs = {key.removesuffix("_before") for key in step.results if key.endswith("_before")}
    compared = [key for key in sorted(pairs) if f"{key}_after" in step.results]
    if compared:
        parts.append(table(_compared(step.results, compared), ("measured", "before", "after")))
    shown = frozenset(f"{key}_{when}" for key in compared for when in ("before", "after"))
    if results := list(rows(step.results, _HIDDEN | shown)):
        parts.append(table(results, ("result", "value")))
    if versions := ", ".join(f"{name} {number}" for name, number in step.versions.items()):
        parts.append(f"Versions: {inline(versions)}.")
    return "\n\n".join(parts)


def _compared(results: dict[str, Any], keys: list[str]) -> Iterator[tuple[str, ...]]:
    """One row for each figure that was measured before and after."""
    for key in keys:
        both = {when: results[f"{key}_{when}"] for when in ("before", "after")}
        yield (key.replace("_", " "), *(value for _, value in rows(both, _HIDDEN)))


def _citation(citation: Citation) -> str:
    paper = f"[arXiv:{citation.arxiv}](https://arxiv.org/abs/{citation.arxiv})"
    named = f"{inline(citation.authors)}, *{inline(citation.title)}*, {paper}"
    used_for = inline(citation.used_for)
    return f"{used_for[:1].upper()}{used_for[1:]}: {named}"
