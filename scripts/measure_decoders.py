"""Does upcycling pay? ``python scripts/measure_decoders.py WORK [--base gpt2] [--tokens 2000000] [--seeds 3]``

A dense model, and mixtures made of it in every way that moeify has, are trained on the same new text in four domains
and compared on text that is held out, by tokens and by FLOPs. Each arm takes the best of three learning rates, chosen
on a quarter of the tokens and a part of the text that nothing is reported of. All are then trained on a quarter of the
tokens too, and those that cost more a token on as many as the dense model's FLOPs pay for. Runs that stand in the
results already are not repeated, so the command goes on where it was interrupted, and several processes may share its
work: each takes runs that no other one has. ``--table`` prints what there is as Markdown.
"""

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from evidence_models import ARMS, READ_AGAIN, base, start, text
from evidence_runs import DECODER_RATES, Run, Study, decoder_arguments
from evidence_tables import decoders, read
from evidence_training import fitted

DEARER = 1.1
"""FLOPs a token relative to the dense model's from which on an arm is trained on fewer tokens as well."""


def main() -> None:
    """Run what is missing, or print what there is."""
    options = decoder_arguments(
        "Compare dense models and mixtures at equal tokens and FLOPs.", "decoders.json", list(ARMS), tokens=2_000_000
    ).parse_args()
    if options.table:
        print("\n".join(decoders(read(options.results), options.base)))
        return
    texts = cache(lambda tokens: text(tokens, options.measured))

    def trained(run: Run) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as scratch:
            model = start(run.arm, base(options.base, options.work), Path(scratch), run.seed)
            # Shorter runs that are reported are measured on the same text.
            held = texts(options.tokens if run.part == "test" else run.tokens)
            if share := READ_AGAIN.get(run.arm):
                held = held.beginning(round(share * run.tokens))
            return fitted(model, run, held, Path(scratch))

    def shorter(arm: str) -> list[Run]:
        """On a quarter of the tokens, and where an arm costs more on what the dense model's FLOPs pay for."""
        quarter = Run(base=options.base, tokens=options.tokens // 4)
        dense, own = (found and found["flops_per_token"] for found in map(study.tuned, ("dense", arm)))
        if not dense or own <= DEARER * dense:
            return [quarter]
        return [quarter, Run(base=options.base, tokens=round(options.tokens * dense / own))]

    study = Study(
        options,
        full=Run(base=options.base, tokens=options.tokens),
        short=Run(base=options.base, tokens=options.tokens // 4, seed=100, part="tune"),
        arms=options.arm or list(ARMS),
        rates=DECODER_RATES,
        make=trained,
        also=shorter,
    )
    study.share()


if __name__ == "__main__":
    main()
