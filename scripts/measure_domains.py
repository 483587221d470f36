"""Four specialists of one base, put together in several ways, and what each way keeps of them.

    python scripts/measure_domains.py WORK [--seeds 3] [--settings ffn-base,...,llama-ffn-base]
        [--mergekit VENV] [--mixturekit VENV] [--minutes 8] [--again WAY]

A Qwen3, a GPT-2 and a Llama of 2M parameters are trained on real text in four domains and then on each
domain by itself, their FFNs alone (ffn) or whole. The four become one model: as experts of a
mixture (moeify, mergekit-moe, MixtureKit), the rest taken from the base or averaged, or as
averaged weights (plain, TIES).
Losses are on passages that nothing was trained or fitted on. Everything is kept in WORK: the same
command goes on where --minutes stopped it. Tables are Markdown, on stdout. VENV is made where it
is missing.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import torch
from domain_figures import Losses, tables
from domain_mixtures import WAYS, Parts, available, measured, oracle, write_text
from domain_models import DOMAINS, held_out_blocks, kept, train_base, train_specialist
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.peers import PEERS, installed_peer

ORACLE = "domain oracle"
SETTINGS = {
    "ffn-base": ("qwen3", "ffn", "base"),
    "whole-base": ("qwen3", "whole", "base"),
    "whole-mean": ("qwen3", "whole", "mean"),
    "gpt2-ffn-base": ("gpt2", "ffn", "base"),
    "llama-ffn-base": ("llama", "ffn", "base"),
}
"""Family, what was tuned, and where the rest comes from."""


class OutOfTimeError(Exception):
    """The minutes of this call are used up."""


class Experiment:
    """A folder of one family: models that were trained and losses that were measured."""

    def __init__(self, work: Path, family: str, deadline: float, tools: dict[str, Path]) -> None:
        self.work, self.family, self.tools = work, family, tools
        self.deadline = deadline
        work.mkdir(parents=True, exist_ok=True)
        self.base = self.model("base", lambda out: train_base(out, family))
        self.blocks = held_out_blocks(self.base)

    def model(self, name: str, make) -> Path:
        """A folder of WORK, made once."""
        if not (self.work / name).is_dir():
            self.check_time(name)
        return kept(self.work / name, make)

    def check_time(self, step: str) -> None:
        """Raise ``OutOfTimeError`` where no new step is to begin."""
        if time.monotonic() > self.deadline:
            raise OutOfTimeError(step)
        print(f"{time.strftime('%H:%M:%S')} {step}", file=sys.stderr, flush=True)

    def losses(self, seed: int, setting: str, again: set[str]) -> Losses:
        """Every way's losses for one seed and setting; measures what is missing."""
        _, tuned, rest = SETTINGS[setting]
        parts = self.parts(seed, tuned, rest)
        dense = self.steps(seed, tuned, ["base", *DOMAINS], parts, again)
        ways = [ORACLE, *(way for way in WAYS if available(way, parts))]
        return dense | self.steps(seed, setting, ways, parts, again)

    def parts(self, seed: int, tuned: str, rest: str) -> Parts:
        """Specialists and text of one seed; makes what is missing."""
        sources = [
            self.model(
                f"seed{seed}/{tuned}/{domain}", lambda out, d=domain: train_specialist(self.base, out, d, tuned, seed)
            )
            for domain in DOMAINS
        ]
        text, prompts = self.work / f"seed{seed}/fit.jsonl", self.work / f"seed{seed}/prompts.json"
        write_text(text, prompts, seed)
        return Parts(
            family=self.family,
            tuned=tuned,
            base=self.base,
            sources=sources,
            rest=rest,
            text=text,
            prompts=prompts,
            tools=self.tools,
            seed=seed,
        )

    def steps(self, seed: int, name: str, steps: list[str], parts: Parts, again: set[str]) -> Losses:
        """Losses by step, kept in one file of WORK."""
        path = self.work / f"seed{seed}/{name}.json"
        found: Losses = json.loads(path.read_text()) if path.is_file() else {}
        for step in steps:
            if step not in found or step in again:
                self.check_time(f"seed {seed}, {name}: {step}")
                found[step] = self.step(step, parts)
                path.write_text(json.dumps(found, indent=1))
        return {step: found[step] for step in steps}

    def step(self, step: str, parts: Parts) -> dict[str, float]:
        """The losses of the base, a specialist, the oracle or a way."""
        if step == "base":
            return measured(parts.base, self.blocks)
        if step in DOMAINS:
            return measured(parts.sources[DOMAINS.index(step)], self.blocks)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch, "out")
            if step == ORACLE:
                return oracle(parts, folder, self.blocks)
            WAYS[step](parts, folder)
            return measured(folder, self.blocks)


def main() -> int:
    """Train and measure what is missing, then print the tables."""
    parser = argparse.ArgumentParser(description="Measure mixtures of specialists.")
    parser.add_argument("work", type=Path, metavar="WORK")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--settings", default=",".join(SETTINGS))
    for tool in PEERS:
        parser.add_argument(f"--{tool}", type=Path, metavar="VENV", help="made where it is missing")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin nothing new after them")
    parser.add_argument("--again", action="append", default=[], metavar="WAY")
    options = parser.parse_args()
    deadline = time.monotonic() + 60 * options.minutes
    torch.set_num_threads(1)
    disable_progress_bar()
    set_verbosity_error()
    venvs = {tool: getattr(options, tool) for tool in PEERS}
    tools = {tool: installed_peer(tool, folder) for tool, folder in venvs.items() if folder}
    results: dict[str, list[Losses]] = {}
    try:
        for setting in options.settings.split(","):
            family = SETTINGS[setting][0]
            folder = options.work if family == "qwen3" else options.work / family
            experiment = Experiment(folder, family, deadline, tools)
            results[setting] = [experiment.losses(seed, setting, set(options.again)) for seed in range(options.seeds)]
    except OutOfTimeError as step:
        print(f"out of time before {step}: run the same command again", file=sys.stderr)
        return 1
    print(tables(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
