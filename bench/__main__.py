"""Compares speeds and holds them against their floors: ``make bench``, or ``python -m bench`` once that has run.

Prints its tables and writes ``runs/bench.json``. Exit codes: 0, or 1 where a floor is missed, or 2 where something that
it needs is not there. On a machine that does other work at the same time the figures mean nothing.
"""

import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

from bench import ladder, letterbox, predictors
from bench.report import ladder_missed, letterbox_text, missed, predictor_text
from pipeline.cli import RUNS, open_build, quieten
from pipeline.core.errors import EXIT_FAIL, EXIT_INTERRUPTED, EXIT_PASS, EXIT_USAGE, UserError
from pipeline.core.files import write_json
from pipeline.core.provenance import machine, versions

RECIPE = Path("configs/tiny.yaml")
"""The floors are those of this recipe's model."""


def main() -> int:
    """Run both comparisons; returns the exit code."""
    quieten()
    build = open_build(RECIPE, None, RUNS, quiet=True)
    about = machine() | {"load_average": f"{os.getloadavg()[0]:.2f}"}
    print(f"{about['cpu']}, {about['cores']} cores, load average {about['load_average']} at the start")
    if os.getloadavg()[0] > (os.cpu_count() or 1) / 2:
        print("note: the machine is or was at other work; figures made beside it mean nothing")
    print("\nLetterbox of a decoded RGB photo to 256x256, median of turns\n")
    photos = letterbox.run()
    print(letterbox_text(photos))
    ways, setting = predictors.run(build)
    print(
        f"\n{setting['model']}, {setting['n_threads']} threads, n_ctx {setting['n_ctx']}, n_batch {setting['n_batch']},"
        f" KV {setting['type_k']}/{setting['type_v']}, flash attention {'on' if setting['flash_attn'] else 'off'},"
        f" at most {setting['max_new_tokens']} tokens, greedy,\nfrom the decoded canvas to the answer,"
        f" median of turns\n"
    )
    print(predictor_text(ways))
    print("\nBoth sides without and with the ladder, and memory of long runs\n")
    spent, held = ladder.cost(build), ladder.memory(build)
    print(ladder.text(spent, held))
    problems = missed(photos, ways) + ladder_missed(spent, held)
    report = {
        "machine": about,
        "versions": versions(),
        "letterbox": photos,
        "predictors": {"setting": setting, "ways": ways},
        "ladder": {"cost": spent, "memory": held},
        "missed": problems,
    }
    write_json(RUNS / "bench.json", report)
    print(f"\n{RUNS / 'bench.json'}")
    for problem in problems:
        print(f"missed: {problem}")
    return EXIT_FAIL if problems else EXIT_PASS


if __name__ == "__main__":

    def stop(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)  # so that the server is stopped, too
    try:
        sys.exit(main())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_USAGE)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
