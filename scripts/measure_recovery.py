"""How much of a pruning comes back? ``python scripts/measure_recovery.py WORK [--tokens 500000] [--seeds 5]``

Mixtures that measure_decoders.py compares are trained in full as there, at the rate that it chose, lose a quarter and
half of their experts by moeify's criterion and at random, and their routers alone are then distilled from the unpruned
mixture, on text that the training did not hold. Losses are on held-out text. As there, runs are not repeated, and
several processes may share the work. ``--table`` prints what there is as Markdown.
"""

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from evidence_models import SEQ_LEN, base, start, text
from evidence_runs import Run, Study, chosen_rate, decoder_arguments
from evidence_tables import read, recovery
from evidence_training import BATCH, fitted, measured

import moeify
from moeify.routing.data import Blocks, tokenizer_for
from moeify.routing.loading import load_model

ARMS = ["8 copies, top-2", "4 slices of 4"]
RATIOS, CRITERIA = (0.25, 0.5), ("reap", "random")


def pruned(moe: Path, held_out: Blocks, apart: Path, seed: int, steps: int) -> dict[str, Any]:
    """Held-out losses of every pruning of a mixture, before and after the distillation of its routers."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        few, again = Path(name, "few"), Path(name, "again")
        shared: dict[str, Any] = {
            "dataset": str(apart),
            "batch": BATCH,
            "seq_len": SEQ_LEN,
            "seed": seed,
            "force": True,
        }
        for ratio in RATIOS:
            found[f"{ratio:.0%}"] = {}
            for by in CRITERIA:
                moeify.prune(
                    moe, few, ratio=ratio, by=by, scores=Path(name, f"{by}.json"), max_tokens=60_000, **shared
                )
                losses = {"pruned": _loss(few, held_out)}
                for balance, coefficient in {"switch": 0.001, "none": 0.0}.items():
                    distilled = {"loss": "distill", "reference": str(moe), "balance": balance, "z_coef": coefficient}
                    moeify.warmup(few, again, fit="none", steps=steps, eval_tokens=2048, **distilled, **shared)
                    losses[f"balance {balance}"] = _loss(again, held_out)
                found[f"{ratio:.0%}"][by] = losses
    return found


def _loss(folder: Path, held_out: Blocks) -> float:
    return float(measured(load_model(folder), held_out)["loss"])


def main() -> None:
    """Run what is missing, or print what there is."""
    parser = decoder_arguments(
        "Measure what distilled routers give back after pruning.", "recovery.json", ARMS, tokens=500_000, seeds=5
    )
    parser.add_argument("--steps", type=int, default=50, help="of 2,048 tokens, that routers are distilled for")
    options = parser.parse_args()
    if options.table:
        print("\n".join(recovery(read(options.results), options.base)))
        return
    arms = options.arm or ARMS
    apart = options.work / f"apart-{options.tokens}.jsonl"
    texts = cache(lambda: text(options.tokens, options.measured, apart))

    def trained(run: Run) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as name:
            dense, moe, held = base(run.base, options.work), Path(name, "trained"), texts()
            model = start(run.arm, dense, Path(name), run.seed)
            found = fitted(model, run, held, Path(name))
            model.config.output_router_logits = False
            model.save_pretrained(moe)
            tokenizer_for(dense).save_pretrained(moe)
            losses = pruned(moe, held.test, apart, run.seed, options.steps)
            return {"unpruned": found["points"][-1]["loss"], "pruned": losses, **found}

    Study(
        options,
        full=Run(base=options.base, tokens=options.tokens),
        arms=arms,
        rates={arm: chosen_rate(options.base, arm) for arm in arms},
        make=trained,
    ).share()


if __name__ == "__main__":
    main()
