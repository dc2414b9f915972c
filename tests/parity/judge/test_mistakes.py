"""What was done to pixels is tried and proven by hash: each mistake planted on real photos, and named."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageOps
from sides import FIVE, change_rows, gate, results, right

from parity.judge.judge import judge
from parity.judge.mistakes import prove_pixels
from parity.results import Results
from pipeline.contract import Contract
from pipeline.core.files import sha256_bytes
from pipeline.letterbox import letterbox, open_photo, scaled_size

Pixels = npt.NDArray[np.uint8]
N = 30
CONTRACT = Contract()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Photos of odd sizes; each has an orientation tag, which the phone ignores."""
    folder = tmp_path_factory.mktemp("photos")
    made = []
    for number in range(N):
        coarse = np.random.default_rng(number).integers(0, 256, (9, 9, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((301 + 7 * number, 203 + 3 * number), Image.Resampling.BICUBIC)
        exif = image.getexif()
        exif[0x0112] = 6
        path = folder / f"{number}.png"
        image.save(path, exif=exif)
        made.append(path)
    return made


@pytest.fixture(scope="module")
def canvases(photos: list[Path]) -> list[Pixels]:
    return [np.asarray(letterbox(open_photo(path))) for path in photos]


def sha(pixels: Pixels) -> str:
    return sha256_bytes(np.ascontiguousarray(pixels).tobytes())


def sides(canvases: list[Pixels], given: list[Pixels], contract: Contract = FIVE) -> tuple[Results, Results]:
    """Two sides whose keys are the canvases' own hashes; the candidate was given other bytes."""
    made = []
    for name, pixels in (("hf", canvases), ("llamacpp", given)):
        side = results(right(N, contract), name, contract)
        rows = {}
        for row, canvas, fed in zip(side.rows.values(), canvases, pixels, strict=True):
            rows[sha(canvas)] = row.model_copy(update={"key": sha(canvas), "rgb_sha256": sha(fed)})
        made.append(Results(side.header, rows))
    return made[0], made[1]


def proved(
    canvases: list[Pixels], given: list[Pixels], photos: list[Path] | None = None, contract: Contract = CONTRACT
) -> str | None:
    by_key = {sha(canvas): number for number, canvas in enumerate(canvases)}
    photo_of = None if photos is None else lambda key: photos[by_key[key]]
    ours, theirs = sides(canvases, given)
    found = prove_pixels(ours, theirs, contract, lambda key: canvases[by_key[key]], photo_of)
    if found is None:
        return None
    (cause,) = found.found
    assert (found.how, cause.kind) == ("matched", "pixels")
    assert cause.fix
    assert cause.detail.startswith("llama.cpp received ")
    return cause.detail.removeprefix("llama.cpp received ")


ON_CANVAS: dict[str, Callable[[Pixels], Pixels]] = {
    "B,G,R where the contract says R,G,B: 30 of 30": lambda rgb: rgb[..., ::-1],
    "pictures upside down: 24 of 30 canvases tried": lambda rgb: rgb[::-1],
    "pictures mirrored:": lambda rgb: rgb[:, ::-1],
    "pictures with rows and columns exchanged:": lambda rgb: rgb.transpose(1, 0, 2),
    "pictures turned by 90 degrees:": lambda rgb: np.rot90(rgb),
    "pictures turned by 270 degrees and with red and blue swapped:": lambda rgb: np.rot90(rgb, 3)[..., ::-1],
    "pictures moved by +1, +0 pixels:": lambda rgb: np.roll(rgb, 1, 1),
    "pictures moved by +0, -1 pixels:": lambda rgb: np.roll(rgb, -1, 0),
}


@pytest.mark.parametrize("said", ON_CANVAS)
def test_what_was_done_to_the_canvas(canvases: list[Pixels], said: str) -> None:
    found = proved(canvases, [ON_CANVAS[said](canvas) for canvas in canvases])
    assert found is not None
    assert found.startswith(said)
    assert "match yours after that change" in found


def pillow(photo: Image.Image, resample: Image.Resampling) -> Pixels:
    """An app's own letterbox with one of Pillow's filters."""
    photo = photo.convert("RGB")
    size = scaled_size(photo.size, CONTRACT.image)
    canvas = Image.new("RGB", (256, 256))
    canvas.paste(photo.resize(size, resample), ((256 - size[0] + 1) // 2, (256 - size[1] + 1) // 2))
    return np.asarray(canvas)


ON_PHOTO: dict[str, Callable[[Image.Image], Pixels]] = {
    "photos turned by their EXIF orientation:": lambda photo: np.asarray(letterbox(ImageOps.exif_transpose(photo))),
    "photos resized with Pillow's bilinear filter": lambda photo: pillow(photo, Image.Resampling.BILINEAR),
    "photos resized with Pillow's nearest-neighbour filter": lambda photo: pillow(photo, Image.Resampling.NEAREST),
    "photos resized with Pillow's bicubic filter and with red and blue swapped": lambda photo: pillow(
        photo, Image.Resampling.BICUBIC
    )[..., ::-1],
    "photos stretched to a square:": lambda photo: np.asarray(
        photo.convert("RGB").resize((256, 256), Image.Resampling.BILINEAR)
    ),
    "pictures padded with white:": lambda photo: np.asarray(
        letterbox(photo, Contract(image=CONTRACT.image.model_copy(update={"pad_color": (255, 255, 255)})))
    ),
}


@pytest.mark.parametrize("said", ON_PHOTO)
def test_what_was_done_to_the_photo(canvases: list[Pixels], photos: list[Path], said: str) -> None:
    given = [ON_PHOTO[said](open_photo(path)) for path in photos]
    found = proved(canvases, given, photos)
    assert found is not None
    assert found.startswith(said)
    assert proved(canvases, given) is None  # without the photos nobody knows


def test_a_margin_that_is_rounded_down(canvases: list[Pixels], photos: list[Path]) -> None:
    """Where the margin is even nothing differs; the others are explained."""
    other = Contract(image=CONTRACT.image.model_copy(update={"offset": "floor"}))
    given = [np.asarray(letterbox(open_photo(path), other)) for path in photos]
    apart = sum(not np.array_equal(a, b) for a, b in zip(canvases, given, strict=True))
    assert 0 < apart < N
    found = proved(canvases, given, photos)
    assert found is not None
    # A picture between bands of one colour that is moved by one is the same.
    assert found.startswith(("pictures whose odd margin is rounded down:", "pictures moved by"))


def test_rows_in_another_order(canvases: list[Pixels]) -> None:
    found = proved(canvases, [*canvases[1:], canvases[0]])
    assert found is not None
    assert found.startswith("the pictures in another order: 30 rows have another image's canvas, such as image_0000,")
    assert found.endswith("which has that of image_0001")


def test_a_contract_that_says_bgr(canvases: list[Pixels]) -> None:
    contract = Contract(image=CONTRACT.image.model_copy(update={"channel_order": "bgr"}))
    swapped = [canvas[..., ::-1] for canvas in canvases]
    by_key = {sha(canvas): canvas for canvas in canvases}
    ours, theirs = sides(canvases, swapped)
    found = prove_pixels(theirs, ours, contract, by_key.get)
    assert found is not None
    # Here the reference is right, and the other one is to be explained, whatever its name.
    assert "received R,G,B where the contract says B,G,R" in found.found[0].detail
    assert found.found[0].fix.endswith("contract.image.channel_order: rgb")


def test_what_is_not_known_stays_a_guess(canvases: list[Pixels], photos: list[Path]) -> None:
    noisy = [canvas ^ 1 for canvas in canvases]
    assert proved(canvases, noisy, photos) is None
    one = [canvases[0] ^ 1, *(canvas[::-1] for canvas in canvases[1:])]
    assert proved(canvases, one, photos) is None  # all that was tried must match
    assert proved(canvases, canvases) is None
    ours, theirs = sides(canvases, noisy)
    assert prove_pixels(ours, theirs, CONTRACT, lambda key: None) is None


def test_the_verdict_says_it_and_later_stages_are_silent(canvases: list[Pixels]) -> None:
    by_key = {sha(canvas): canvas for canvas in canvases}
    ours, theirs = sides(canvases, [canvas[..., ::-1] for canvas in canvases])
    theirs = change_rows(theirs, lambda row: {"label": "metal", "text": " metal"})
    causes = prove_pixels(ours, theirs, CONTRACT, by_key.get)
    verdict = judge(ours, theirs, FIVE, causes=causes)
    assert verdict.headline == "Do not ship: llama.cpp gets different pixels (accuracy 100.0 to 20.0 %)"
    assert verdict.cause.startswith("llama.cpp received B,G,R where the contract says R,G,B: 30 of 30 canvases")
    assert verdict.fix == "swap red and blue in the app's bridge, or train with contract.image.channel_order: bgr"
    assert gate(verdict, "pixels").cause == verdict.cause
    for stage in ("accuracy", "classes"):
        assert gate(verdict, stage).red
        assert (gate(verdict, stage).cause, gate(verdict, stage).fix) == ("follows from S1 pixels", "")
