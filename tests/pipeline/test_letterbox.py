"""The letterbox against Android's own results (goldens), against Skia, and setting by setting."""

import functools
import hashlib
import json
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skia
from PIL import Image, ImageCms, ImageOps

import pipeline.letterbox
from pipeline.contract import Contract
from pipeline.core.errors import UserError
from pipeline.letterbox import letterbox, letterbox_file, open_photo, scaled_size

GOLDENS = Path(__file__).parents[2] / "android_fixtures" / "goldens"
CASES = json.loads((GOLDENS / "goldens.json").read_text())
FILES = {case["file"]: case for case in CASES["files"]}

# What Android shows and this refuses: half of a truncated photo.
REFUSED = {"truncated.jpg"}
# Not exact; the bound stands in test_wide_gamut_is_close_to_skia.
WIDE_GAMUT = {"adobe_rgb.jpg", "adobe_rgb_square.jpg"}
EXACT = [name for name, case in FILES.items() if "letterbox" in case and name not in REFUSED | WIDE_GAMUT]
ERRORS = [name for name, case in FILES.items() if "letterbox" not in case or name in REFUSED]


def with_image(**settings: Any) -> Contract:
    return Contract.model_validate({"image": settings})


def sha256(image: Image.Image) -> str:
    return hashlib.sha256(image.tobytes()).hexdigest()


def synthetic(width: int, height: int, seed: int) -> Image.Image:
    """The picture a golden of this size and seed was made from (the goldens' README). In bands, to spare memory."""
    rng = np.random.default_rng(seed)
    pixels = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, 256):
        band = pixels[top : top + 256]
        y, x = np.mgrid[top : top + len(band), :width]
        base = np.stack([x * 255 // max(1, width - 1), y * 255 // max(1, height - 1), (x ^ y) & 255], -1)
        band[:] = np.clip(base + rng.integers(-60, 61, band.shape), 0, 255)
    return Image.fromarray(pixels)


def noise(width: int, height: int, seed: int = 0, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


# --- Android's own results -------------------------------------------------------------------------------------------


def test_every_golden_file_is_used() -> None:
    assert len(FILES) == 39
    assert sorted([*EXACT, *ERRORS, *WIDE_GAMUT]) == sorted(FILES)
    assert len(EXACT) == 32
    for name, case in FILES.items():
        assert hashlib.sha256((GOLDENS / "files" / name).read_bytes()).hexdigest() == case["file_sha256"]


@pytest.mark.parametrize("name", EXACT)
def test_golden_file_to_the_byte(name: str) -> None:
    result = letterbox_file(GOLDENS / "files" / name)
    assert sha256(result.image) == FILES[name]["letterbox"]["rgb_sha256"]
    assert result.source_size == (FILES[name]["decoded"]["width"], FILES[name]["decoded"]["height"])
    assert result.source_sha256 == FILES[name]["file_sha256"]
    assert result.exact
    assert result.flags == (("exif_orientation",) if name == "exif_rotate90.jpg" else ())


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("empty.jpg", "the file is empty"),
        ("zeros.jpg", "this is not a picture"),
        ("pic.tiff", "the format is TIFF, which Android does not decode"),
        ("sliver.png", "a picture of 300x1 pixels scales to 256x0, which Android refuses"),
        ("truncated.jpg", "truncated or damaged"),
    ],
)
def test_golden_file_that_is_an_error(name: str, reason: str) -> None:
    path = GOLDENS / "files" / name
    assert name in ERRORS
    with pytest.raises(UserError) as caught:
        letterbox_file(path)
    assert str(caught.value).startswith(f"{path}: {reason}")


@pytest.mark.parametrize("case", CASES["synthetic"], ids=lambda case: f"{case['width']}x{case['height']}")
def test_golden_size_to_the_byte(case: dict[str, Any]) -> None:
    image = synthetic(case["width"], case["height"], case["seed"])
    assert sha256(letterbox(image)) == case["letterbox_rgb_sha256"]


cached_synthetic = functools.cache(synthetic)


def failing_goldens(letterbox: Callable[[Image.Image], Image.Image]) -> list[str]:
    """Sizes of at most 1.5 megapixels that a version of the letterbox gets wrong."""
    failing = []
    for case in CASES["synthetic"]:
        size = case["width"], case["height"]
        if size[0] * size[1] <= 1_500_000:
            image = cached_synthetic(*size, case["seed"])
            if sha256(letterbox(image)) != case["letterbox_rgb_sha256"]:
                failing.append(f"{size[0]}x{size[1]}")
    return failing


@pytest.mark.parametrize(
    "settings",
    [{"geometry": "float64"}, {"resample": "lanczos"}, {"resample": "area"}, {"offset": "floor"}],
    ids=str,
)
def test_goldens_notice_a_wrong_setting(settings: dict[str, str]) -> None:
    assert failing_goldens(lambda image: letterbox(image, with_image(**settings)))


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("- 2**31 +", "+"),  # positions off by half a pixel
        ("span=127", "span=1 << 40"),  # a whole row stepped through in one go
        ("span=127", "span=128"),
        ("np.float32(1) / (np.float32(scaled) / np.float32(source))", "np.float32(source / scaled)"),
        ("(fixed_16 >> 12) & 15", "(fixed_16 + 2048 >> 12) & 15"),  # weights rounded instead of truncated
        ("total >> 8", "(total + 128) >> 8"),  # rounded instead of truncated
        ("int(width * scale), int(height * scale)", "round(width * scale), round(height * scale)"),
    ],
)
def test_goldens_notice_wrong_arithmetic(line: str, wrong: str) -> None:
    source = Path(pipeline.letterbox.__file__).read_text()
    assert line in source
    mutant = types.ModuleType("mutant")
    exec(source.replace(line, wrong), vars(mutant))
    assert failing_goldens(mutant.letterbox)


def test_goldens_of_the_mutation_checks_pass_unchanged() -> None:
    assert failing_goldens(letterbox) == []


# --- Skia ------------------------------------------------------------------------------------------------------------


def skia_draw(
    pixels: np.ndarray,
    size: tuple[int, int],
    scale: tuple[float, float] = (1, 1),
    offset: tuple[float, float] = (0, 0),
    kind: skia.ColorType = skia.kBGRA_8888_ColorType,
    source_space: skia.ColorSpace | None = None,
    space: skia.ColorSpace | None = None,
) -> np.ndarray:
    """RGB pixels drawn by Skia on a black canvas: BGRA on the integer path, as Android's bitmaps, RGBA on the float."""
    order = [2, 1, 0, 3] if kind == skia.kBGRA_8888_ColorType else [0, 1, 2, 3]
    opaque = np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])
    bitmaps = []
    for (width, height), its_space in (((pixels.shape[1], pixels.shape[0]), source_space), (size, space)):
        bitmap = skia.Bitmap()
        bitmap.allocPixels(skia.ImageInfo.Make(width, height, kind, skia.kPremul_AlphaType, its_space))
        bitmaps.append(bitmap)
    np.array(bitmaps[0], copy=False)[:] = opaque[..., order]
    canvas = skia.Canvas(bitmaps[1])
    canvas.clear(skia.ColorBLACK)
    canvas.scale(*scale)
    filtered = scale != (1, 1)
    sampling = skia.SamplingOptions(skia.FilterMode.kLinear) if filtered else skia.SamplingOptions()
    canvas.drawImage(skia.Image.MakeFromBitmap(bitmaps[0]), *offset, sampling, None)
    return np.array(bitmaps[1])[..., order[:3]]


def skia_letterbox(pixels: np.ndarray, size: int, **kinds: Any) -> np.ndarray:
    """The app's three steps: scale into a bitmap of its own, then draw that at (size - scaled) / 2 in float."""
    height, width = pixels.shape[:2]
    scaled = scaled_size((width, height), with_image(size=size).image)
    scale = (np.float32(scaled[0]) / np.float32(width), np.float32(scaled[1]) / np.float32(height))
    space = kinds.pop("source_space", None)
    drawn = skia_draw(pixels, scaled, tuple(map(float, scale)), source_space=space, space=space, **kinds)
    offset = ((size - scaled[0]) / 2, (size - scaled[1]) / 2)
    return skia_draw(drawn, (size, size), offset=offset, source_space=space, space=space and skia.ColorSpace.MakeSRGB())


def random_size(rng: np.random.Generator, size: int) -> tuple[int, int]:
    """A width and height whose letterbox has no empty side: from one pixel to 1,600, all aspects."""
    while True:
        width, height = (int(side) for side in np.exp(rng.uniform(0, np.log(1600), 2)))
        if max(width, height) < size * min(width, height):
            return width, height


@pytest.mark.parametrize("seed", range(20))
def test_equals_skia_on_random_sizes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(20):
        side = int(rng.choice([256, 256, 256, 127, 128, 384, 1000]))
        width, height = random_size(rng, side)
        pixels = noise(width, height, seed)
        ours = np.asarray(letterbox(Image.fromarray(pixels), with_image(size=side)))
        assert np.array_equal(ours, skia_letterbox(pixels, side)), f"{width}x{height} to {side}"


@pytest.mark.parametrize("name", sorted(WIDE_GAMUT))
def test_wide_gamut_is_close_to_skia(name: str) -> None:
    """Distance from Skia's float path: measured mean 0.036 and largest 2; equal where no canvas converts it.

    The goldens have hashes alone, so Android's own distance cannot be measured here. That it takes the float path is
    inferred: the integer path is off from the float one by mean 0.35 and largest 17, as it was from Android's pixels.
    """
    data = (GOLDENS / "files" / name).read_bytes()
    encoded = skia.Image.MakeFromEncoded(skia.Data.MakeWithCopy(data))  # must outlive its colour space
    expected = skia_letterbox(
        np.asarray(open_photo(GOLDENS / "files" / name)),
        256,
        kind=skia.kRGBA_8888_ColorType,
        source_space=encoded.colorSpace() if name == "adobe_rgb.jpg" else None,  # a square one is not converted
    )
    result = letterbox_file(GOLDENS / "files" / name)
    difference = np.abs(np.asarray(result.image).astype(int) - expected)
    assert difference.max() <= 2
    assert difference.mean() < 0.05
    assert result.flags == ("wide_gamut",)
    assert not result.exact


# --- every Pillow mode -----------------------------------------------------------------------------------------------


def over_black(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """colour * alpha / 255 rounded to nearest, as Skia's SkMulDiv255Round."""
    return np.round(colour.astype(float) * alpha / 255).astype(np.uint8)


def as_rgb(gray: np.ndarray) -> np.ndarray:
    return np.repeat(gray[..., None], 3, axis=-1).astype(np.uint8)


def in_lab(rgb: np.ndarray) -> Image.Image:
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    lab = ImageCms.applyTransform(Image.fromarray(rgb), ImageCms.buildTransform(*profiles, "RGB", "LAB"))
    assert lab is not None
    return lab


def mode_case(mode: str, size: tuple[int, int]) -> tuple[Image.Image, np.ndarray, np.ndarray]:
    """A picture in a mode, and its RGB pixels with transparency over black and with it dropped."""
    rgba = noise(*size, channels=4)
    rgb, alpha, gray = rgba[..., :3], rgba[..., 3:], rgba[..., 0]
    deep = np.random.default_rng(1).integers(0, 65536, gray.shape).astype(np.uint16)
    colour = Image.fromarray(rgb)
    match mode:
        case "RGB":
            return colour, rgb, rgb
        case "RGBX":
            return colour.convert("RGBX"), rgb, rgb
        case "RGBA":
            return Image.fromarray(rgba), over_black(rgb, alpha), rgb
        case "RGBa":  # what is dropped is the alpha of the nearest straight colour
            image = Image.fromarray(rgba).convert("RGBa")
            return image, over_black(rgb, alpha), np.asarray(image.convert("RGBA"))[..., :3]
        case "L":
            return Image.fromarray(gray), as_rgb(gray), as_rgb(gray)
        case "LA" | "La":
            image = Image.merge("LA", [Image.fromarray(gray), Image.fromarray(alpha[..., 0])]).convert(mode)
            straight = np.asarray(image.convert("LA"))[..., 0]
            return image, as_rgb(over_black(gray, alpha[..., 0])), as_rgb(straight)
        case "1":
            bits = gray > 127
            return Image.fromarray(bits), as_rgb(bits * 255), as_rgb(bits * 255)
        case "P" | "P+alpha" | "PA":
            image = Image.fromarray(gray)
            image.putpalette(rgb[:16, :16].tobytes())
            table = rgb[:16, :16].reshape(256, 3)
            if mode == "P":
                return image, table[gray], table[gray]
            if mode == "PA":
                image = image.convert("PA")
                image.putalpha(Image.fromarray(alpha[..., 0]))
                return image, over_black(table[gray], alpha), table[gray]
            opacity = alpha[:16, :16].reshape(256, 1)
            image.info["transparency"] = opacity.tobytes()
            return image, over_black(table[gray], opacity[gray]), table[gray]
        case "L+key":
            image = Image.fromarray(gray)
            image.info["transparency"] = 200
            return image, as_rgb(np.where(gray == 200, 0, gray)), as_rgb(gray)
        case "RGB+key":
            few = rgb // 128 * 255
            image = Image.fromarray(few)
            image.info["transparency"] = (255, 255, 0)
            return image, np.where((few == [255, 255, 0]).all(-1, keepdims=True), 0, few).astype(np.uint8), few
        case "I;16" | "I;16L" | "I;16B":
            raw = deep.astype(">u2" if mode == "I;16B" else "<u2").tobytes()
            return Image.frombytes(mode, size, raw), as_rgb(deep >> 8), as_rgb(deep >> 8)
        case "I;16+key":
            deep &= 0xF00F
            image = Image.fromarray(deep)
            image.info["transparency"] = 0x700F
            return image, as_rgb(np.where(deep == 0x700F, 0, deep >> 8)), as_rgb(deep >> 8)
        case "I":
            return Image.fromarray(deep.astype(np.int32)), as_rgb(deep >> 8), as_rgb(deep >> 8)
        case "LAB":
            image = in_lab(rgb)
            back = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
            seen = np.asarray(ImageCms.applyTransform(image, ImageCms.buildTransform(*back, "LAB", "RGB")))
            return image, seen, seen
    image = colour.convert(mode)  # CMYK, YCbCr, HSV: Pillow's own way back
    return image, np.asarray(image.convert("RGB")), np.asarray(image.convert("RGB"))


MODES = [
    "RGB",
    "RGBX",
    "RGBA",
    "RGBa",
    "L",
    "LA",
    "La",
    "1",
    "P",
    "P+alpha",
    "PA",
    "L+key",
    "RGB+key",
    "I;16",
    "I;16L",
    "I;16B",
    "I;16+key",
    "I",
    "CMYK",
    "YCbCr",
    "HSV",
    "LAB",
]


@pytest.mark.parametrize("size", [(300, 700), (50, 70)], ids=["tall", "small"])  # above 2 x 256 rows only some are read
@pytest.mark.parametrize("mode", MODES)
def test_any_mode(mode: str, size: tuple[int, int]) -> None:
    image, black, dropped = mode_case(mode, size)
    before = image.tobytes()
    assert sha256(letterbox(image)) == sha256(letterbox(Image.fromarray(black)))
    drop = with_image(alpha="drop")
    assert sha256(letterbox(image, drop)) == sha256(letterbox(Image.fromarray(dropped)))
    assert letterbox(image).mode == "RGB"
    assert image.tobytes() == before


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (Image.new("F", (300, 200)), "floating-point"),
        (Image.fromarray(np.full((9, 9), 70000, np.int32)), "beyond 16-bit gray"),
        (Image.fromarray(np.full((9, 9), -1, np.int32)), "beyond 16-bit gray"),
        (Image.new("L", (16384, 300)), "16384x300 pixels has a side above 16383"),
        (Image.new("L", (1, 257)), "1x257 pixels scales to 0x256"),
    ],
    ids=["F", "I above", "I below", "side", "sliver"],
)
def test_picture_that_cannot_be_letterboxed(image: Image.Image, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        letterbox(image)


# --- every setting ---------------------------------------------------------------------------------------------------

PHOTO = Image.fromarray(noise(641, 427))  # scales to 256x170: an even margin
ODD = Image.fromarray(noise(640, 427))  # 256x170 too, and 255x170 is what a long side of 427 would give
TALL = Image.fromarray(noise(333, 500))  # 170x256


def placed(scaled: Image.Image, left: int, top: int) -> Image.Image:
    canvas = Image.new("RGB", (256, 256))
    canvas.paste(scaled, (left, top))
    return canvas


def test_size_is_the_canvas() -> None:
    assert letterbox(PHOTO, with_image(size=384)).size == (384, 384)


def test_pad_color_fills_the_margin_alone() -> None:
    red = np.asarray(letterbox(PHOTO, with_image(pad_color=(255, 0, 9))))
    assert (red[:43] == [255, 0, 9]).all()
    assert (red[213:] == [255, 0, 9]).all()
    assert np.array_equal(red[43:213], np.asarray(letterbox(PHOTO))[43:213])


def test_geometry_is_the_precision_of_the_scaled_size() -> None:
    for long in (3024, 427):  # 255 in Kotlin Float, 256 in Python
        assert scaled_size((long, 200), with_image().image)[0] == 255
        assert scaled_size((long, 200), with_image(geometry="float64").image)[0] == 256


@pytest.mark.parametrize(
    ("resample", "kernel"), [("lanczos", Image.Resampling.LANCZOS), ("area", Image.Resampling.BOX)]
)
def test_resample_alternatives_are_pillows(resample: str, kernel: Image.Resampling) -> None:
    expected = placed(PHOTO.resize((256, 170), kernel), 0, 43)
    assert sha256(letterbox(PHOTO, with_image(resample=resample))) == sha256(expected)


def test_offset_of_an_odd_margin() -> None:
    photo = Image.fromarray(noise(640, 428))  # 256x171: 42.5 rows above
    up, floor = np.asarray(letterbox(photo)), np.asarray(letterbox(photo, with_image(offset="floor")))
    assert not up[:43].any()
    assert up[43].any()
    assert np.array_equal(np.roll(up, -1, axis=0), floor)


def test_exif_is_ignored_or_applied() -> None:
    path = GOLDENS / "files" / "exif_rotate90.jpg"
    upright = ImageOps.exif_transpose(open_photo(path))
    assert upright.size == (280, 420)
    result = letterbox_file(path, with_image(exif="transpose"))
    assert sha256(result.image) == sha256(letterbox(upright))
    assert result.source_size == (420, 280)
    assert result.flags == ("exif_orientation",)


def test_colour_space_ignore_keeps_the_files_own_numbers() -> None:
    photo = open_photo(GOLDENS / "files" / "adobe_rgb.jpg")
    expected = letterbox(Image.fromarray(np.asarray(photo)))  # the same pixels without the profile
    assert sha256(letterbox(photo, with_image(colour_space="ignore"))) == sha256(expected)
    assert sha256(letterbox(photo)) != sha256(expected)


def test_channel_order_is_left_to_the_model_input() -> None:
    assert sha256(letterbox(PHOTO, with_image(channel_order="bgr"))) == sha256(letterbox(PHOTO))


@pytest.mark.parametrize("resample", ["android_bilinear", "lanczos", "area"])
def test_result_carries_none_of_the_photos_metadata(resample: str) -> None:
    photo = open_photo(GOLDENS / "files" / "adobe_rgb_square.jpg")
    assert letterbox(photo, with_image(resample=resample)).info == {}
