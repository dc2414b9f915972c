"""Which pair of quantizations to ship: every text type with every mmproj type, measured and judged one after another.

    runs/<recipe>/sweep/   sweep.json  sweep.md  sweep.png  sweep.svg
        reference/              the Hugging Face side, run once: rows, log-probabilities, embeddings
        gguf/                   each half, converted once
        pairs/<text>-<mmproj>/  both sides' rows, ladder.jsonl, verdict.json, cost.json, worker.log
        stages/                 what is done

Each pair runs in a process of its own, so that neither its memory nor its crash is another's. Never two at a time: they
would slow each other down.
"""
