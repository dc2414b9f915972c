"""The examples at the end of each command's ``--help``: lines of at most 78 columns that can be copied."""

EXAMPLES: dict[str, tuple[str, ...]] = {
    "run": (
        "parity run configs/tiny.yaml",
        "parity run configs/photos.yaml --set dataset.path=photos",
        "parity run configs/tiny.yaml --set 'train.epochs=1 name=quick'",
    ),
    "check": (
        "parity check my-model model-Q8_0.gguf mmproj-Q8_0.gguf photos",
        "parity check my-model model-Q8_0.gguf mmproj-Q8_0.gguf photos \\",
        "    --labels cat,dog --limit 200",
        "parity check owner/name photos --hf owner/name-GGUF:Q8_0",
    ),
    "sweep": (
        "parity sweep configs/tiny.yaml",
        "parity sweep configs/tiny.yaml --text Q8_0,Q4_K_M --mmproj Q8_0",
    ),
    "ship": (
        "parity ship configs/tiny.yaml",
        "parity ship configs/tiny.yaml --pair Q4_K_M+Q8_0",
    ),
    "hf": ("parity hf configs/tiny.yaml",),
    "llamacpp": (
        "parity llamacpp configs/tiny.yaml",
        "parity llamacpp configs/tiny.yaml --feed bgr",
    ),
    "judge": (
        "parity judge hf.results.jsonl llamacpp.results.jsonl",
        "parity judge hf.results.jsonl device.results.jsonl --out verdict.json",
        "parity judge hf.results.jsonl llamacpp.results.jsonl \\",
        "    device.results.jsonl --plan plan.json",
    ),
    "plan": (
        "parity plan hf.results.jsonl llamacpp.results.jsonl",
        "parity plan hf.results.jsonl llamacpp.results.jsonl --budget 300",
    ),
    "diff": ("parity diff old/llamacpp.results.jsonl new/llamacpp.results.jsonl",),
    "baseline": (
        "parity baseline hf.results.jsonl llamacpp.results.jsonl \\",
        "    --out baselines/tiny.json",
    ),
    "report": (
        "parity report runs/tiny",
        "parity report runs/tiny --out report.html",
    ),
    "swap": ("parity swap configs/tiny.yaml --samples 32",),
    "selftest": (
        "parity selftest configs/tiny.yaml",
        "parity selftest configs/tiny.yaml --only 'EXIF transposed'",
    ),
    "families": (
        "parity families",
        "parity families qwen3-vl gemma3",
    ),
    "gate": (
        "parity gate runs/tiny",
        "parity gate runs/tiny --public-key key.pub",
        "parity gate runs/tiny --app app-release.apk --package org.example.app",
    ),
    "sign": ("parity sign runs/tiny --key key.pem",),
}
