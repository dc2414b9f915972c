"""The checks that lead to a verdict, in the order in which a picture becomes an answer.

    inputs.py   provenance, runtime, pixels, tokens: what the two sides were given
    ladder.py   decoded, tiles, generation: what must be equal
    distances.py  embeddings, logits: what is near enough, and limits.py how near that is
    scores.py   answers, accuracy, classes, baseline: what came out

Each compares one thing of two sides that answered the same images. The first that is red is where the outputs diverge;
what is red behind it follows (:mod:`parity.judge.words`). Causes and fixes are likely ones: a gate sees results, not
programs.
"""
