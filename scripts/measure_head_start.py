"""What does warming up routers buy? ``python scripts/measure_head_start.py WORK [--tokens 500000] [--seeds 3]``

Mixtures of four copies, top-2, whose routers are drawn, fitted to clusters or fitted to domains, with and without a
training of the routers alone on text of its own, are trained in full as measure_decoders.py trains them, at the rate
that it chose: is the head start still there at the end? And which balance does the full training need? As there, runs
are not repeated, and several processes may share the work. ``--table`` prints what there is as Markdown.
"""

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from evidence_models import SEQ_LEN, TOP_2, base, text
from evidence_runs import Run, Study, chosen_rate, decoder_arguments
from evidence_tables import head_start, read
from evidence_training import BATCH, fitted

import moeify
from moeify.routing.loading import load_model

FITS = {"drawn": "none", "k-means": "kmeans", "domains": "domains"}
WARMED = {f"{start}{warmed}": bool(warmed) for start in FITS for warmed in ("", ", warmed up")}
BALANCES = {f"k-means, warmed up, {balance}": balance for balance in ("bias", "none")}
"""Switch is that of all others."""
ARMS = [*WARMED, *BALANCES]


def started(run: Run, dense: Path, apart: Path, scratch: Path, steps: int) -> tuple[Path, int]:
    """The mixture before its full training, and tokens that its routers were fitted to and trained on."""
    fit, steps = FITS[run.arm.split(",")[0]], steps * WARMED.get(run.arm, True)
    moeify.upcycle(dense, scratch / "moe", seed=run.seed, router_bias=BALANCES.get(run.arm) == "bias", **TOP_2)
    if fit == "none" and not steps:
        return scratch / "moe", 0
    report = moeify.warmup(
        scratch / "moe",
        scratch / "warm",
        dataset=str(apart),
        domain_column="domain",
        fit=fit,
        steps=steps,
        eval_tokens=2048,
        batch=BATCH,
        seq_len=SEQ_LEN,
        seed=run.seed,
    )
    return scratch / "warm", report.fit_tokens + report.tokens


def main() -> None:
    """Run what is missing, or print what there is."""
    parser = decoder_arguments("Compare ways to start routers.", "head_start.json", ARMS, tokens=500_000)
    parser.add_argument("--steps", type=int, default=50, help="of 2,048 tokens, that routers are trained for alone")
    options = parser.parse_args()
    if options.table:
        print("\n".join(head_start(read(options.results), options.base)))
        return
    apart = options.work / f"apart-{options.tokens}.jsonl"
    texts = cache(lambda: text(options.tokens, options.measured, apart))

    def trained(run: Run) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as name:
            scratch, held = Path(name), texts()
            folder, tokens = started(run, base(run.base, options.work), apart, scratch, options.steps)
            found = fitted(load_model(folder), run, held, scratch, BALANCES.get(run.arm, "switch"))
            return {"warm_up_tokens": tokens, **found}

    Study(
        options,
        full=Run(base=options.base, tokens=options.tokens),
        arms=options.arm or ARMS,
        rates=dict.fromkeys(ARMS, chosen_rate(options.base, "4 copies, top-2")),
        make=trained,
    ).share()


if __name__ == "__main__":
    main()
