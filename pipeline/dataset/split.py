"""Which images are for training and which for validation, decided by what they show.

Each image is drawn on its own: a hash of the seed and of its content, read as a number from 0 to 1, falls below
``val_fraction`` or not. So neither order nor names nor what else is in the set matters, and an image that was in one
split stays there when others are added: a model trained yesterday is never validated on what it has learned. The price:
each class gets its share of validation images only on average (100 images at 0.2 give 20, with a standard deviation of
4). No rule can give exact shares and never move an image.

One exception keeps small sets usable: a class of two or more images in which the draw put none on one side sends there
the image that came nearest. When the class grows, that one image may go back to where its own draw puts it.
"""

from collections import defaultdict
from collections.abc import Mapping

from pipeline.core.errors import UserError
from pipeline.core.files import sha256_bytes


def draw(content: str, seed: int) -> float:
    """A number from 0 (included) to 1 (not) that depends on the content's hash and the seed alone."""
    return int(sha256_bytes(f"{seed}:{content}".encode())[:13], 16) / 16**13  # 52 bits: exact in a double


def validation_part(labels: Mapping[str, str], val_fraction: float, seed: int) -> frozenset[str]:
    """The contents that are for validation; all others are for training.

    ``labels``: content hash (any hex hash of what is in the image) -> label. ``val_fraction``: 0 to 1, both excluded.
    A class of one image follows its draw to validation or training.

    Raises UserError for another ``val_fraction``.
    """
    if not 0 < val_fraction < 1:
        raise UserError(f"val_fraction is {val_fraction}: choose a number between 0 and 1, such as 0.2")
    classes: dict[str, list[str]] = defaultdict(list)
    for content, label in labels.items():
        classes[label].append(content)
    chosen: set[str] = set()
    for contents in classes.values():
        ranked = sorted(contents, key=lambda content: (draw(content, seed), content))
        count = sum(draw(content, seed) < val_fraction for content in ranked)
        if len(ranked) > 1:
            count = min(max(count, 1), len(ranked) - 1)
        chosen.update(ranked[:count])
    return frozenset(chosen)
