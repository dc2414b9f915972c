"""Does the harness catch what goes wrong? Faults are planted one at a time, and each must be caught at its own stage.

forge.py   changed copies of a GGUF
bench.py   a finished run on which a fault is planted: one side's stages in memory, the other run again and again
inputs.py  faults of what the two sides are given: files, pixels, tiles, tokens, provenance, runtime
models.py  faults of what is run, and of what becomes of the answers
faults.py  all of them
run.py     plants, judges, tabulates
"""
