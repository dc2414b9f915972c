"""From a photo to the square RGB canvas that the model sees: the phone's resize and padding, to the bit.

``letterbox`` takes a picture in memory, ``letterbox_file`` a file, and adds what a record has to say about it. With the
default contract both equal Android's own graphics code in every byte, but for files with a flag of :data:`NOT_EXACT`,
where the phone's decoder or colour conversion differs by some levels. :data:`FLAGS` says what each flag means.

The filter is Skia's legacy bilinear (``SkBitmapProcState_matrixProcs.cpp``, ``SkBitmapProcState_opts.h``): it reads at
most two rows and two columns of the photo for each one it writes. So only those are copied and converted, which makes
it faster than any filter that has to read the whole photo.
"""

import io
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from pipeline.contract import Contract, ImageContract
from pipeline.core.errors import UserError
from pipeline.core.files import read_regular, sha256_bytes, shown

PHONE = Contract()
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF")  # what Android and Pillow both decode
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1")  # Android decodes it, Pillow does not
MAX_SIDE = 16383  # from 16384 on Skia changes to nearest neighbour, from 32768 on Android versions differ
MAX_PIXELS = 178_956_970  # where Pillow speaks of a decompression bomb; 683 MiB decoded
SRGB_PRIMARIES = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)  # white, red, green, blue as a PNG's cHRM has them

FLAGS = {
    "animated": "only the first frame is used, as on the phone",
    "exif_orientation": "an orientation tag is set, which the phone ignores",
    "wide_gamut": "an RGB profile other than sRGB: Skia's conversion differs from this one's by up to 2 levels",
    "colour_profile_ignored": "a gray or CMYK colour profile or an unreadable one, which is not applied here",
    "png_gamma": "a PNG with gamma or primaries in place of a profile, which are not applied here",
    "png16": "a 16-bit PNG with colour or alpha: the phone rounds to 8 bits differently, by up to 7 levels",
    "transparent_webp": "a WebP with transparent pixels: the phone's decoder rounds differently, by 1 level",
    "avif": "AVIF: the phone's decoder has not been compared with this one",
}
NOT_EXACT = frozenset(FLAGS) - {"animated", "exif_orientation"}


class Letterboxed(NamedTuple):
    """A letterboxed file and what its record says about where it came from."""

    image: Image.Image
    """RGB, ``contract.image.size`` square."""
    source_size: tuple[int, int]
    """Width and height of the file as decoded, before any EXIF transposition, pixels."""
    source_sha256: str
    """SHA-256 (hex) of the file's bytes."""
    flags: tuple[str, ...]
    """Keys of :data:`FLAGS`, sorted."""

    @property
    def exact(self) -> bool:
        """Whether the phone makes these very bytes of the file (under the default image contract)."""
        return NOT_EXACT.isdisjoint(self.flags)


def letterbox(image: Image.Image, contract: Contract = PHONE) -> Image.Image:
    """Scale a picture to fit the square canvas and centre it there, as the contract says.

    ``image``: any Pillow mode but F; it is not changed. Mode I is read as 16-bit gray. Returns a new RGB image of
    ``contract.image.size`` squared. Always in R, G, B order: ``channel_order`` is about the bytes handed to the model
    and is applied there.

    Raises UserError: a side that scales to 0, a side of 16384 or more under ``android_bilinear``, a mode without a
    defined white.
    """
    settings = contract.image
    if settings.exif == "transpose":
        image = ImageOps.exif_transpose(image)
    width, height = scaled_size(image.size, settings)
    profile = _foreign_profile(image) if settings.colour_space == "android" else None
    if settings.resample == "android_bilinear":
        scaled = _skia_bilinear(image, width, height, settings, foreign=profile is not None)
    else:
        kernel = Image.Resampling.LANCZOS if settings.resample == "lanczos" else Image.Resampling.BOX
        scaled = _to_rgb(image, settings).resize((width, height), kernel)
    if (width, height) == (settings.size, settings.size):
        scaled.info = {}  # Pillow would write the photo's profile and EXIF into any file this is saved to
        return scaled  # the app draws no canvas here, so nothing converts the colour space either
    if profile is not None:
        scaled = _to_srgb(scaled, profile)
    half = 1 if settings.offset == "round_half_up" else 0
    canvas = Image.new("RGB", (settings.size, settings.size), settings.pad_color)
    canvas.paste(scaled, ((settings.size - width + half) // 2, (settings.size - height + half) // 2))
    return canvas


def letterbox_file(path: Path, contract: Contract = PHONE) -> Letterboxed:
    """Decode a file as Android does and letterbox it.

    Raises UserError, naming the file: what ``open_photo`` and ``letterbox`` raise.
    """
    data = _read(path)
    image = _decode(path, data)
    try:
        with warnings.catch_warnings(action="ignore"):  # Pillow's notes on damaged EXIF
            return Letterboxed(letterbox(image, contract), image.size, sha256_bytes(data), _flags(image, data))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:  # metadata and transparency are looked at here; see _decode
        raise UserError(f"{path}: {_damaged(error)}") from None


def open_photo(path: Path) -> Image.Image:
    """Decode the first frame of a file fully, in the file's own mode, without applying EXIF or colour profiles.

    Raises UserError, naming the file: unreadable, no regular file, empty, not an image, a format that Android does not
    decode (TIFF) or that is not known to decode to the same pixels, truncated or damaged, more than 179 million pixels.
    """
    return _decode(path, _read(path))


def scaled_size(source: tuple[int, int], settings: ImageContract) -> tuple[int, int]:
    """Width and height (pixels) of a ``source``-sized picture once it fits the canvas.

    The app's ``minOf(256f / w, 256f / h)`` and ``(w * scale).toInt()`` in Kotlin Float (IEEE single). Raises UserError
    where a side becomes 0, as ``createScaledBitmap`` does.
    """
    real = np.float32 if settings.geometry == "float32" else np.float64
    width, height = real(source[0]), real(source[1])
    scale = min(real(settings.size) / width, real(settings.size) / height)
    scaled = int(width * scale), int(height * scale)
    if 0 in scaled:
        raise UserError(
            f"a picture of {source[0]}x{source[1]} pixels scales to {scaled[0]}x{scaled[1]}, which Android refuses:"
            " crop it or leave it out"
        )
    return scaled


# --- Skia's bilinear -------------------------------------------------------------------------------------------------


class _Axis(NamedTuple):
    """For each position along one axis of the result: two source positions, and the second one's weight in 16ths."""

    first: NDArray[np.intp]
    second: NDArray[np.intp]
    weight: NDArray[Any]


def _fixed_axis(scaled: int, source: int, span: int) -> _Axis:
    """The mapping of the integer path: weights are whole 16ths.

    Skia maps the first position of every ``span`` in float32 and steps from there in 32.32 fixed point
    (``SkBitmapProcStateAutoMapper``, ``fInvSxFractionalInt``), then keeps 4 bits of fraction (``pack_filter``).
    """
    inverse = np.float32(1) / (np.float32(scaled) / np.float32(source))
    position = np.arange(scaled)
    step = position % span
    centre = ((position - step).astype(np.float32) + np.float32(0.5)) * inverse
    fixed_32 = (centre.astype(np.float64) * 2.0**32).astype(np.int64) - 2**31 + step * int(float(inverse) * 2**32)
    fixed_16 = fixed_32 >> 16
    first = np.clip(fixed_16 >> 16, 0, source - 1)
    second = np.clip((fixed_16 + 65536) >> 16, 0, source - 1)
    return _Axis(first, second, ((fixed_16 >> 12) & 15).astype(np.uint16))


def _float_axis(scaled: int, source: int) -> _Axis:
    """The mapping of the float path (``SkRasterPipeline``'s ``bilerp_clamp_8888``)."""
    inverse = np.float32(1) / (np.float32(scaled) / np.float32(source))
    centre = (np.arange(scaled).astype(np.float32) + np.float32(0.5)) * inverse - np.float32(0.5)
    floor = np.floor(centre)
    first = floor.astype(np.intp)
    weight = (centre - floor) * np.float32(16)
    return _Axis(np.clip(first, 0, source - 1), np.clip(first + 1, 0, source - 1), weight)


def _skia_bilinear(
    image: Image.Image, width: int, height: int, settings: ImageContract, *, foreign: bool
) -> Image.Image:
    """``image`` scaled to ``width`` x ``height`` as ``Bitmap.createScaledBitmap(.., filter=true)`` does; RGB.

    ``foreign``: it is not in sRGB. Android then seems to be on Skia's float path, which rounds where the integer path
    truncates: that fits the measured distances, but no golden proves it, hence the flag ``wide_gamut``.
    """
    if max(image.size) > MAX_SIDE:
        raise UserError(
            f"a picture of {image.width}x{image.height} pixels has a side above {MAX_SIDE}, where Android's filter"
            " changes: scale it down first"
        )
    if foreign:
        x, y = _float_axis(width, image.width), _float_axis(height, image.height)
    else:
        x = _fixed_axis(width, image.width, span=127)  # a row is shaded in spans of 127 pixels
        y = _fixed_axis(height, image.height, span=1)
    if 2 * height < image.height:
        image = _row_pairs(image, y.first)
        even = 2 * np.arange(height)
        y = _Axis(even, even + y.second - y.first, y.weight)
    columns = np.asarray(_to_rgb(image, settings)).take(np.concatenate([x.first, x.second]), axis=1)
    # One long row of channels: NumPy is ten times slower on a last axis of 3. The four weights sum to 256 and
    # 255 * 256 fits 16 bits, so nothing is lost by adding up the rows first.
    columns = columns.reshape(image.height, 2 * 3 * width).astype(x.weight.dtype)
    weight_x, weight_y = np.repeat(x.weight, 3), y.weight[:, None]
    rows = columns[y.first] * (16 - weight_y) + columns[y.second] * weight_y
    total = rows[:, : 3 * width] * (16 - weight_x) + rows[:, 3 * width :] * weight_x
    scaled = (total / 256 + 0.5 if foreign else total >> 8).astype(np.uint8)
    return Image.fromarray(scaled.reshape(height, width, 3))


def _row_pairs(image: Image.Image, top: NDArray[np.int64]) -> Image.Image:
    """Rows ``top[j]`` and ``top[j] + 1`` of ``image`` as rows 2j and 2j + 1 of a small one of the same mode.

    ``numpy.asarray`` would copy the whole photo, and any change of mode convert it; at 12 megapixels that is most of
    the time. What lies below the last row is black, and is not used.
    """
    pairs = image.crop((0, 0, image.width, 2 * len(top)))  # keeps palette, transparency and profile
    for j, row in enumerate(top.tolist()):
        pairs.paste(image.crop((0, row, image.width, row + 2)), (0, 2 * j))
    return pairs


# --- colours ---------------------------------------------------------------------------------------------------------


def _to_rgb(image: Image.Image, settings: ImageContract) -> Image.Image:
    """Any mode to RGB as Android decodes it, each pixel by itself; transparency as ``settings.alpha`` says."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "F":
        raise UserError("a picture of floating-point pixels (mode F) has no defined white: convert it to L first")
    if image.mode.startswith("I"):
        return _gray16_to_rgb(image, settings)
    if image.mode == "LAB":
        transform = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
        return _applied(image, transform)
    if not image.has_transparency_data:
        return image.convert("RGB")
    if settings.alpha == "drop":
        return image.convert("LA" if image.mode == "La" else "RGBA").convert("RGB")
    if image.mode == "La":
        return image.getchannel(0).convert("RGB")
    if image.mode != "RGBa":
        image = image.convert("RGBA").convert("RGBa")  # premultiplied, rounded as Skia does: over black
    return Image.merge("RGB", image.split()[:3])


def _gray16_to_rgb(image: Image.Image, settings: ImageContract) -> Image.Image:
    """The high byte, as Android decodes a 16-bit gray PNG; Pillow's own ``convert("RGB")`` clips at 255 instead."""
    values = np.asarray(image)
    if image.mode == "I" and (values.min() < 0 or values.max() > 65535):
        raise UserError("a picture of 32-bit pixels (mode I) goes beyond 16-bit gray: convert it to I;16 or L first")
    gray = (values >> 8).astype(np.uint8)
    if settings.alpha == "black" and "transparency" in image.info:
        gray[values == image.info["transparency"]] = 0
    return Image.fromarray(gray).convert("RGB")


def _rgb_profile(image: Image.Image) -> ImageCms.ImageCmsProfile | None:
    """The embedded colour profile, or None where there is none, or a gray, CMYK or unreadable one."""
    data = image.info.get("icc_profile") or b""
    if data[16:20] != b"RGB ":  # the header's data colour space
        return None
    try:
        return ImageCms.ImageCmsProfile(io.BytesIO(data))
    except OSError:
        return None


def _foreign_profile(image: Image.Image) -> ImageCms.ImageCmsProfile | None:
    """The embedded RGB profile where it is something else than sRGB, or None.

    A profile is sRGB if it changes no probe colour by more than one level (``skcms_ApproximatelyEqualProfiles``).
    """
    profile = _rgb_profile(image)
    if profile is None:
        return None
    levels = np.arange(0, 256, 51, dtype=np.uint8)
    probe = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(36, 6, 3)
    try:
        seen = np.asarray(_to_srgb(Image.fromarray(probe), profile))
    except ImageCms.PyCMSError:
        return None
    return profile if np.abs(seen.astype(int) - probe).max() > 1 else None


def _to_srgb(image: Image.Image, profile: ImageCms.ImageCmsProfile) -> Image.Image:
    """An RGB image from ``profile``'s colours to sRGB's (relative colorimetric, as skcms)."""
    intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
    return _applied(image, ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), "RGB", "RGB", intent))


def _applied(image: Image.Image, transform: ImageCms.ImageCmsTransform) -> Image.Image:
    result = ImageCms.applyTransform(image, transform)
    assert result is not None  # None only for inPlace=True
    return result


# --- files -----------------------------------------------------------------------------------------------------------


def _read(path: Path) -> bytes:
    try:
        data = read_regular(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    if not data:
        raise UserError(f"{path}: the file is empty: fetch it again or leave it out")
    return data


def _decode(path: Path, data: bytes) -> Image.Image:
    """The first frame, loaded. Raises UserError as ``open_photo`` says."""
    try:
        with warnings.catch_warnings(action="ignore"):  # notes on damaged metadata and on bombs, which are judged here
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            if image.width * image.height > MAX_PIXELS:  # Pillow's own limit can be changed from afar
                raise Image.DecompressionBombError
            image.load()
            return image
    except Image.DecompressionBombError:
        raise UserError(f"{path}: more than {MAX_PIXELS / 1e6:.0f} million pixels: scale it down first") from None
    except UnidentifiedImageError:
        raise UserError(f"{path}: {_unknown_format(data)}") from None
    except Exception as error:  # Pillow's decoders raise anything from struct.error to IndexError on damaged files
        raise UserError(f"{path}: {_damaged(error)}") from None


def _damaged(error: Exception) -> str:
    return f"truncated or damaged ({shown(error) or type(error).__name__}): fetch it again or leave it out"


def _unknown_format(data: bytes) -> str:
    """Why none of :data:`FORMATS` fits, and what to do."""
    name = "HEIF" if data[4:8] == b"ftyp" and data[8:12] in HEIF_BRANDS else None
    try:
        with warnings.catch_warnings(action="ignore"):
            name = name or Image.open(io.BytesIO(data)).format
    except Exception:  # see _decode
        pass
    if name is None:
        return "this is not a picture, or not of a known format: leave it out"
    return f"the format is {name}, which Android does not decode, or not to the same pixels: convert it to PNG or JPEG"


def _is_animated(image: Image.Image) -> bool:
    if image.format == "MPO":
        return False  # a phone's JPEG with its previews or gain map
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # a GIF whose second frame is damaged; see _decode
        return True


def _flags(image: Image.Image, data: bytes) -> tuple[str, ...]:
    """What a decoded file has that is ignored, or not exact on the phone: keys of :data:`FLAGS`, sorted."""
    info = image.info
    png = image.format == "PNG"
    untagged = png and not {"icc_profile", "srgb"} & info.keys()
    found = {
        "animated": _is_animated(image),
        "exif_orientation": image.getexif().get(0x0112, 1) != 1,
        "wide_gamut": _foreign_profile(image) is not None,
        "colour_profile_ignored": "icc_profile" in info and _rgb_profile(image) is None,
        "png_gamma": untagged and ("gamma" in info or info.get("chromaticity", SRGB_PRIMARIES) != SRGB_PRIMARIES),
        "png16": png and data[24] == 16 and data[25] != 0,  # IHDR's bit depth; colour type, 0 for gray
        "transparent_webp": image.format == "WEBP" and image.mode == "RGBA" and np.asarray(image)[..., 3].min() < 255,
        "avif": image.format == "AVIF",
    }
    return tuple(sorted(flag for flag, present in found.items() if present))
