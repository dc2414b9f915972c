"""Which images are for training, for validation and for the test, decided by what they show.

Each image is drawn on its own: a hash of the seed and of its content, read as a number from 0 to 1. Below
``val_fraction`` it is for validation, from 1 less ``test_fraction`` on for the test, between them for training. So
neither order nor names nor what else is in the set matters, and an image that was in one split stays there when others
are added: a model trained yesterday is never judged on what it has learned. The price: each class gets its share only
on average (100 images at 0.2 give 20, with a standard deviation of 4). No rule can give exact shares and never move an
image.

One exception keeps small sets usable: a part in which the draw put no image of a class gets the one that came nearest;
training and validation come first, the test where there is a third. When the class grows, that image may go back to
where its own draw puts it.
"""

from collections import defaultdict
from collections.abc import Mapping
from typing import Literal

from pipeline.core.errors import UserError
from pipeline.core.files import sha256_bytes

Split = Literal["test", "validation"]
"""Which images a model is judged on."""


def draw(content: str, seed: int) -> float:
    """A number from 0 (included) to 1 (not) that depends on the content's hash and the seed alone."""
    return int(sha256_bytes(f"{seed}:{content}".encode())[:13], 16) / 16**13  # 52 bits: exact in a double


def held_out(
    labels: Mapping[str, str], val_fraction: float, test_fraction: float, seed: int
) -> tuple[frozenset[str], frozenset[str]]:
    """The contents for validation and those for the test; all others are for training.

    ``labels``: content hash (any hex hash of what is in the image) -> label. ``val_fraction``: 0 to 1, both excluded;
    ``test_fraction``: 0 (no test part) to 1, together less than 1. The validation part does not depend on
    ``test_fraction``: what is for the test would be for training without it. A class of one image follows its draw.

    Raises UserError for other fractions.
    """
    if not 0 < val_fraction < 1:
        raise UserError(f"val_fraction is {val_fraction}: choose a number between 0 and 1, such as 0.1")
    if not 0 <= test_fraction < 1 - val_fraction:
        raise UserError(
            f"test_fraction is {test_fraction} and val_fraction {val_fraction}: together they must leave images to"
            " train on"
        )
    classes: dict[str, list[str]] = defaultdict(list)
    for content, label in labels.items():
        classes[label].append(content)
    validation: set[str] = set()
    test: set[str] = set()
    for contents in classes.values():
        ranked = sorted(contents, key=lambda content: (draw(content, seed), content))
        count = sum(draw(content, seed) < val_fraction for content in ranked)
        last = sum(draw(content, seed) >= 1 - test_fraction for content in ranked)
        if len(ranked) > 1:
            count = min(max(count, 1), len(ranked) - 1)
            last = min(max(last, 1 if test_fraction else 0), len(ranked) - count - 1)
        validation.update(ranked[:count])
        test.update(ranked[len(ranked) - last :])
    return frozenset(validation), frozenset(test)
