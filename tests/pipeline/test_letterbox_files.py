"""Files on their way to the letterbox: what is flagged, what is refused and in which words."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, features

from pipeline.core.errors import UserError
from pipeline.letterbox import FLAGS, letterbox_file, open_photo

GOLDENS = Path(__file__).parents[2] / "android_fixtures" / "goldens" / "files"


def noise(width: int, height: int, channels: int = 3) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8))


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, depth: int, colour_type: int, row: bytes, *chunks: bytes) -> bytes:
    """A PNG of equal rows, for what Pillow does not write."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress((b"\0" + row) * height))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + pixels + chunk(b"IEND", b"")


SMALL = noise(60, 40)
GAMMA = chunk(b"gAMA", struct.pack(">I", 45455))
PRIMARIES = chunk(b"cHRM", struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000))
P3_PRIMARIES = chunk(b"cHRM", struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000))
SAYS_SRGB = chunk(b"sRGB", b"\0")
LAB_PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
SRGB_PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
SOME_ALPHA = noise(60, 40, channels=4)
OPAQUE = Image.merge("RGBA", [*SMALL.split(), Image.new("L", SMALL.size, 255)])
TWO_FRAMES: dict[str, Any] = {"save_all": True, "append_images": [SMALL.rotate(180)]}


@pytest.mark.parametrize(
    ("data", "flags"),
    [
        (encoded(SMALL, "PNG"), ()),
        (encoded(SMALL, "PNG", icc_profile=SRGB_PROFILE), ()),
        (encoded(SMALL, "PNG", icc_profile=LAB_PROFILE), ("colour_profile_ignored",)),
        (encoded(SMALL, "PNG", icc_profile=b"nonsense"), ("colour_profile_ignored",)),
        (png(60, 40, 8, 2, bytes(180), GAMMA, PRIMARIES), ("png_gamma",)),
        (png(60, 40, 8, 2, bytes(180), P3_PRIMARIES), ("png_gamma",)),
        (png(60, 40, 8, 2, bytes(180), PRIMARIES), ()),
        (png(60, 40, 8, 2, bytes(180), SAYS_SRGB, GAMMA, PRIMARIES), ()),
        (png(60, 40, 16, 2, bytes(360)), ("png16",)),
        (png(60, 40, 16, 0, bytes(120)), ()),
        (encoded(SOME_ALPHA, "PNG"), ()),
        (encoded(SOME_ALPHA, "WEBP", lossless=True), ("transparent_webp",)),
        (encoded(OPAQUE, "WEBP", lossless=True), ()),
        (encoded(SMALL, "GIF", **TWO_FRAMES), ("animated",)),
        (encoded(SMALL, "WEBP", **TWO_FRAMES), ("animated",)),
        (encoded(SMALL, "MPO", **TWO_FRAMES), ()),
    ],
)
def test_flags(tmp_path: Path, data: bytes, flags: tuple[str, ...]) -> None:
    path = tmp_path / "photo"
    path.write_bytes(data)
    result = letterbox_file(path)
    assert result.flags == flags
    assert result.exact == (flags in ((), ("animated",)))
    assert set(flags) <= FLAGS.keys()


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow is built without AVIF")
def test_avif_is_decoded_and_flagged(tmp_path: Path) -> None:
    path = tmp_path / "photo.avif"
    path.write_bytes(encoded(SMALL, "AVIF"))
    assert letterbox_file(path).flags == ("avif",)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_first_frame_of_an_animation(tmp_path: Path, format: str) -> None:
    path = tmp_path / "photo"
    path.write_bytes(encoded(SMALL, format, lossless=True, **TWO_FRAMES))
    still = tmp_path / "still"
    still.write_bytes(encoded(SMALL, format, lossless=True))
    assert letterbox_file(path).image.tobytes() == letterbox_file(still).image.tobytes()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"no picture at all", "this is not a picture"),
        (encoded(SMALL, "TIFF"), "the format is TIFF, which Android does not decode"),
        (encoded(SMALL, "ICO"), "the format is ICO"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "the format is HEIF"),
        (b"\0\0\0\x18ftypisom\0\0\2\0isommp41", "this is not a picture"),
        (encoded(SMALL, "JPEG")[:-500], "truncated or damaged"),
        (encoded(SMALL, "PNG")[:-2000], "truncated or damaged"),
        (encoded(SMALL, "WEBP")[:-500], "truncated or damaged"),
        (encoded(SMALL, "GIF")[:-500], "truncated or damaged"),
        (encoded(SMALL, "BMP")[:-500], "truncated or damaged"),
        (png(20000, 9000, 1, 0, b"")[:200], "more than 179 million pixels"),
        (png(16384, 80, 1, 0, bytes(2048)), "a side above 16383"),
        (encoded(Image.new("L", (300, 1)), "PNG"), "scales to 256x0"),
    ],
)
def test_file_that_cannot_be_letterboxed(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "photo"
    path.write_bytes(data)
    with pytest.raises(UserError) as caught:
        letterbox_file(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_and_folder_are_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent.jpg"):
        with pytest.raises(UserError, match=f"{path}: cannot be read"):
            open_photo(path)


def test_bytes_changed_at_random_are_decoded_or_refused(tmp_path: Path) -> None:
    """Never another exception, nor a warning."""
    path = tmp_path / "photo"
    rng = np.random.default_rng(0)
    originals = [path.read_bytes() for path in sorted(GOLDENS.iterdir()) if path.name not in ("empty.jpg", "zeros.jpg")]
    decoded, refusals = 0, []
    for _ in range(400):
        data = np.frombuffer(originals[rng.integers(len(originals))], np.uint8).copy()
        places = rng.integers(0, min(len(data), rng.choice([64, 600, 10**6])), 4)
        data[places] = rng.integers(0, 256, 4)
        path.write_bytes(data[: rng.choice([len(data), len(data) // 2])].tobytes())
        try:
            decoded += letterbox_file(path).image.size == (256, 256)
        except UserError as error:
            refusals.append(str(error))
    assert decoded > 50
    assert len(refusals) == 400 - decoded
    assert all(message.startswith(f"{path}: ") for message in refusals)
