"""The commands that are killed, and the small checkpoints they work on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from moeify.upcycling.upcycle import upcycle
from tests.faults.processes import Place
from tests.hub.stand_in import TOKEN, HubStandIn
from tests.real.checkpoints import demo_gpt2
from tests.real.hub_shapes import bert_base_uncased_like, qwen_like
from tests.warming.mixtures import corpus

FAMILIES = ("gpt2", "bert", "qwen2", "qwen3")
_SHORT = ("--seq-len", "32", "--max-tokens", "2048", "--batch", "4")
_WARM = (
    "--seq-len",
    "32",
    "--fit-tokens",
    "1024",
    "--eval-tokens",
    "256",
    "--batch",
    "2",
    "--steps",
    "12",
    "--save-steps",
    "3",
    "--device",
    "cpu",
    "--fit",
    "kmeans",
)


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A command without its output, and what it may not change.

    ``resumes`` names what an interrupted run leaves beside the output for the next one; ``heavy``
    commands import torch. ``force`` has them replace an output that is there.
    """

    family: str
    command: str
    source: Path
    arguments: tuple[str, ...] = ()
    heavy: bool = False
    force: bool = False
    resumes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.command} {self.family}" + (" --force" if self.force else "")

    def line(self, output: str, *more: str) -> list[str]:
        """The arguments of moeify."""
        target = [] if self.command == "push" else [output]
        return [self.command, str(self.source), *target, *self.arguments, "--json", *more]


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Dense checkpoints and mixtures by family, and text for them."""

    dense: dict[str, Path]
    mixtures: dict[str, Path]
    text: Path


def make_sources(folder: Path, families: tuple[str, ...] = FAMILIES) -> Sources:
    """Small checkpoints with tokenizers; GPT-2 is a trained one, the others are random."""
    makers = {
        "gpt2": lambda path: demo_gpt2(),
        "bert": lambda path: bert_base_uncased_like(path, hidden=128, layers=4),
        "qwen2": lambda path: qwen_like(path, "qwen2", hidden=128, layers=4, ffn=512),
        "qwen3": lambda path: qwen_like(path, "qwen3", hidden=128, layers=4, ffn=512),
    }
    folder.mkdir(parents=True, exist_ok=True)
    dense = {family: makers[family](folder / family) for family in families}
    mixtures = {family: folder / f"{family}-moe" for family in families}
    for family, mixture in mixtures.items():
        upcycle(dense[family], mixture, num_experts=4, noise=0.3)
    return Sources(dense=dense, mixtures=mixtures, text=corpus(folder, count=60))


def scenarios(sources: Sources) -> list[Scenario]:
    """Every writing command on every family."""
    found = []
    text = str(sources.text)
    for family, dense in sources.dense.items():
        moe = sources.mixtures[family]
        noisy = ("--experts", "8", "--noise", "0.01", "--max-shard-size", "2MB")
        scored = (*_SHORT, "--dataset", text, "--keep", "2", "--by", "reap")
        found += [
            Scenario(family=family, command="upcycle", source=dense, arguments=noisy),
            Scenario(family=family, command="upcycle", source=dense, arguments=noisy, force=True),
            Scenario(family=family, command="attach", source=moe),
            Scenario(family=family, command="extract", source=moe),
            Scenario(
                family=family, command="prune", source=moe, arguments=scored, heavy=True, resumes=(".out.scores.json",)
            ),
            Scenario(
                family=family,
                command="warmup",
                source=moe,
                heavy=True,
                arguments=(*_WARM, "--dataset", text),
                resumes=("out.warmup",),
            ),
            Scenario(family=family, command="push", source=moe, arguments=("user/moe",)),
        ]
    return found


@contextmanager
def place_for(scenario: Scenario, folder: Path) -> Iterator[tuple[Place, HubStandIn | None]]:
    """A working directory, and for a push a Hub to push to."""
    from tests.hub.stand_in import running_hub

    folder.mkdir(parents=True)
    if scenario.command != "push":
        yield Place(folder=folder), None
        return
    with running_hub() as hub:
        variables = {
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(folder / "hf"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        yield Place(folder=folder, environment=variables), hub
