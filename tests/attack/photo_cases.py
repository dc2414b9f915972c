"""Photos that are damaged where their formats have parts: chunks, segments, sizes, tables."""

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from itertools import product

import numpy as np
from malformed import byte_cases, of_bytes
from PIL import Image, ImageCms
from trial import Case

SIZE = (64, 48)
Parts = list[tuple[bytes, bytes]]
"""(name, payload) of each part of a file."""


def seeds() -> dict[str, bytes]:
    """Valid photos of every format and mode that a phone's user may have; file name -> content."""
    noise = np.random.default_rng(5).integers(0, 256, (SIZE[1], SIZE[0], 4), np.uint8)
    rgba = Image.fromarray(noise)
    rgb = rgba.convert("RGB")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a picture"
    frames = {"save_all": True, "append_images": [rgb.rotate(90), rgb.rotate(180)]}
    palette = rgb.quantize(16)
    made = {
        "rgb.png": (rgb, "PNG", {"exif": exif, "icc_profile": profile, "dpi": (72, 72)}),
        "rgba.png": (rgba, "PNG", {}),
        "palette.png": (palette, "PNG", {"transparency": bytes(range(16))}),
        "gray.png": (rgb.convert("L"), "PNG", {"transparency": 7}),
        "gray-alpha.png": (rgba.convert("LA"), "PNG", {}),
        "gray16.png": (Image.fromarray(noise[..., :2].copy().view(np.uint16)[..., 0]), "PNG", {}),
        "one-bit.png": (rgb.convert("1"), "PNG", {}),
        "animated.png": (rgb, "PNG", frames),
        "rgb.jpg": (rgb, "JPEG", {"exif": exif, "icc_profile": profile}),
        "progressive.jpg": (rgb, "JPEG", {"progressive": True, "comment": b"hello"}),
        "gray.jpg": (rgb.convert("L"), "JPEG", {}),
        "cmyk.jpg": (rgb.convert("CMYK"), "JPEG", {}),
        "several.jpg": (rgb, "MPO", frames),
        "lossy.webp": (rgb, "WEBP", {"exif": exif, "icc_profile": profile}),
        "lossless.webp": (rgba, "WEBP", {"lossless": True}),
        "animated.webp": (rgb, "WEBP", frames),
        "palette.gif": (palette, "GIF", {"transparency": 3}),
        "animated.gif": (palette, "GIF", {"save_all": True, "append_images": [palette.rotate(90)], "loop": 0}),
        "rgb.bmp": (rgb, "BMP", {}),
        "palette.bmp": (palette, "BMP", {}),
        "rgb.avif": (rgb, "AVIF", {"exif": exif}),
    }
    found = {}
    for name, (image, kind, options) in made.items():
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        found[name] = buffer.getvalue()
    return found


def cases_of(name: str, data: bytes) -> list[Case]:
    """All attacks on one photo."""
    known: dict[str, Callable[[bytes], Iterator[tuple[str, bytes]]]] = {
        "png": _png, "jpg": _jpeg, "webp": _webp, "gif": _gif, "bmp": _bmp,
    }  # fmt: skip
    own = known.get(name.rpartition(".")[2], lambda data: iter(()))
    found = [of_bytes(f"{name}, {what}", bytes, changed) for what, changed in own(data)]
    found += [Case(f"{name}, {case.name}", case.put) for case in byte_cases(data, 40, 60)]
    for pixels in ((1, 1), (1, 16383), (16384, 1), (3000, 1)):  # from one photo alone: they do not depend on it
        if name == "rgb.png":
            buffer = io.BytesIO()
            Image.new("RGB", pixels).save(buffer, "PNG")
            found.append(of_bytes(f"a PNG of {pixels[0]}x{pixels[1]}", bytes, buffer.getvalue()))
    return found


def _damaged(parts: Parts, build: Callable[[Parts], bytes]) -> Iterator[tuple[str, bytes]]:
    """Each part removed, doubled, moved, and with other payloads."""
    for index, (kind, payload) in enumerate(parts):
        name = f"{kind.decode('latin-1')} ({index})"
        before, after = parts[:index], parts[index + 1 :]
        yield f"{name} removed", build(before + after)
        yield f"{name} twice", build([*before, parts[index], parts[index], *after])
        yield f"{name} first", build([parts[index], *before, *after])
        yield f"{name} last", build([*before, *after, parts[index]])
        others = {
            "empty": b"",
            "of 1 byte": payload[:1] or b"\0",
            "of 2 bytes": (payload + b"MM")[:2],
            "of 300 bytes": (payload + bytes(300))[:300],
            "half": payload[: len(payload) // 2],
            "of zeros": bytes(len(payload)),
            "of ones": b"\xff" * len(payload),
            "backwards": payload[::-1],
            "a byte longer": payload + b"\0",
        }
        for what, other in others.items():
            yield f"{name} {what}", build([*before, (kind, other), *after])


# --- PNG -------------------------------------------------------------------------------------------------------------

PNG_BEGIN = b"\x89PNG\r\n\x1a\n"


def chunk(kind: bytes, payload: bytes, length: int | None = None, crc: int | None = None) -> bytes:
    right = zlib.crc32(kind + payload)
    size = len(payload) if length is None else length
    return struct.pack(">I", size) + kind + payload + struct.pack(">I", right if crc is None else crc)


def png_parts(data: bytes) -> Parts:
    found, at = [], 8
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


def png_of(parts: Parts) -> bytes:
    return PNG_BEGIN + b"".join(chunk(*part) for part in parts)


TIFF_LOOP = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\x08\0\0\0"
"""An EXIF block whose next directory is itself."""

METADATA = {
    "of 2 bytes": b"MM",
    "of nothing": b"",
    "of 1 byte": b"I",
    "of 8 bytes": b"MM\0*\0\0\0\x08",
    "far away": b"II*\0\xff\xff\xff\xff",
    "of itself": TIFF_LOOP,
    "of many entries": b"II*\0\x08\0\0\0\xff\xff" + bytes(100),
    "of a huge value": b"II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\xff\xff\xff\x7f\x08\0\0\0\0\0\0\0",
    "of text": b"not an EXIF block at all",
    "of a fraction": b"II*\0\x08\0\0\0\x01\0\x12\x01\x05\0\x01\0\0\0\x08\0\0\0\0\0\0\0",
    "of no orientation": b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\0\0\0\0\0\0\0\0\0\0\0\0",
}
"""What is not EXIF, or hardly."""

BOMB = zlib.compress(bytes(64 << 20), 9)


def _png(data: bytes) -> Iterator[tuple[str, bytes]]:
    parts = png_parts(data)
    yield from _damaged(parts, png_of)
    head, rest = parts[0][1], parts[1:]
    for width, height in product((0, 1, 16383, 16384, 65535, 2**31 - 1, 2**32 - 1), (0, 1, 48, 16383, 2**31 - 1)):
        changed = struct.pack(">II", width, height) + head[8:]
        yield f"IHDR of {width}x{height}", png_of([(b"IHDR", changed), *rest])
    for depth, kind in product((0, 1, 2, 4, 8, 16, 32, 255), (0, 1, 2, 3, 4, 6, 7, 255)):
        changed = head[:8] + bytes([depth, kind]) + head[10:]
        yield f"IHDR of {depth} bits, colour type {kind}", png_of([(b"IHDR", changed), *rest])
    for place, value in product((10, 11, 12), (1, 2, 255)):
        changed = head[:place] + bytes([value]) + head[place + 1 :]
        yield f"IHDR byte {place} is {value}", png_of([(b"IHDR", changed), *rest])
    added: Parts = [(b"eXIf", content) for content in METADATA.values()]
    added += [(b"tRNS", bytes(length)) for length in (0, 1, 2, 5, 6, 7, 256, 257, 300, 70_000)]
    added += [(b"PLTE", bytes(length)) for length in (0, 1, 3, 768, 771, 70_000)]
    added += [(b"gAMA", content) for content in (b"", b"\0", bytes(4), b"\xff" * 4)]
    added += [(b"cHRM", content) for content in (b"", bytes(31), bytes(32), b"\xff" * 32)]
    added += [(b"sRGB", content) for content in (b"", b"\xc8", bytes(9))]
    added += [(b"iCCP", content) for content in (b"", b"x", b"x\0", b"x\0\x09", b"x\0\0", b"x\0\0" + b"\xff" * 99)]
    added += [
        (b"iCCP", b"x\0\0" + zlib.compress(content)) for content in (b"", b"RGB " * 40, bytes(128), b"\xff" * 999)
    ]
    added += [(b"iCCP", b"x\0\0" + BOMB), (b"zTXt", b"x\0\0" + BOMB), (b"iTXt", b"x\0\1\0\0\0" + BOMB)]
    added += [(b"zTXt", content) for content in (b"", b"x", b"x\0", b"x\0\x07")]
    added += [(b"iTXt", content) for content in (b"", b"x\0", b"x\0\1", b"x\0\1\0\xff\0\xff\0\xff")]
    added += [(b"tEXt", content) for content in (b"", b"\0", b"x" * (2 << 20), b"\xff\0\xff")]
    added += [(b"pHYs", content) for content in (b"", bytes(8), bytes(9), b"\xff" * 9)]
    added += [(b"acTL", content) for content in (b"", bytes(7), bytes(8), b"\xff" * 8, b"\0\0\0\2" + bytes(4))]
    added += [(b"fcTL", content) for content in (b"", bytes(25), bytes(26), b"\xff" * 26)]
    added += [
        (b"fdAT", b""),
        (b"sBIT", b""),
        (b"bKGD", b""),
        (b"tIME", b""),
        (b"hIST", b""),
        (b"cICP", b""),
        (b"\0\0\0\0", b""),
    ]
    added += [(b"IDAT", b""), (b"IEND", b""), (b"XXXX", b""), (b"IHDR", head), (b"\xff\xff\xff\xff", b"x")]
    for kind, payload in added:
        what = f"{kind.decode('latin-1')!r} of {len(payload)} bytes {payload[:8]!r}"
        yield f"{what} behind IHDR", png_of([parts[0], (kind, payload), *rest])
        yield f"{what} before IEND", png_of([*parts[:-1], (kind, payload), parts[-1]])
    for index, (kind, payload) in enumerate(parts):
        before, after = png_of(parts[:index]), b"".join(chunk(*part) for part in parts[index + 1 :])
        name = f"{kind.decode()} ({index})"
        yield f"{name} with a wrong CRC", before + chunk(kind, payload, crc=1) + after
        for length in (0, len(payload) + 1, 2**31 - 1, 2**32 - 1):
            yield f"{name} that says it has {length} bytes", before + chunk(kind, payload, length=length) + after
    yield "IDAT that unpacks to 64 MB", png_of([parts[0], (b"IDAT", BOMB), (b"IEND", b"")])


# --- JPEG ------------------------------------------------------------------------------------------------------------


def jpeg_parts(data: bytes) -> tuple[Parts, bytes]:
    """(segments up to the first scan, the rest)."""
    found, at = [], 2
    while data[at + 1] != 0xDA:
        (length,) = struct.unpack(">H", data[at + 2 : at + 4])
        found.append((data[at : at + 2], data[at + 4 : at + 2 + length]))
        at += 2 + length
    return found, data[at:]


def segment(kind: bytes, payload: bytes, length: int | None = None) -> bytes:
    size = len(payload) + 2 if length is None else length
    return kind + struct.pack(">H", min(size, 65535)) + payload


def _jpeg(data: bytes) -> Iterator[tuple[str, bytes]]:
    parts, scan = jpeg_parts(data)

    def build(parts: Parts) -> bytes:
        return b"\xff\xd8" + b"".join(segment(*part) for part in parts) + scan

    for what, changed in _damaged(parts, build):
        yield what.encode("ascii", "backslashreplace").decode(), changed
    for index, (kind, payload) in enumerate(parts):
        before, after = build(parts[:index])[: -len(scan)], build(parts[index + 1 :])[2:]
        for length in (0, 1, 2, len(payload) + 3, 65535):
            yield f"segment {index} that says it has {length} bytes", before + segment(kind, payload, length) + after
    for index, (kind, payload) in enumerate(parts):
        if kind[1] in (0xC0, 0xC2):
            for height, width in product((0, 1, 16384, 65535), (0, 1, 16384, 65535)):
                changed = payload[:1] + struct.pack(">HH", height, width) + payload[5:]
                yield f"a frame of {width}x{height}", build([*parts[:index], (kind, changed), *parts[index + 1 :]])
            for components in (0, 2, 4, 255):
                changed = payload[:5] + bytes([components]) + payload[6:]
                yield (
                    f"a frame of {components} components",
                    build([*parts[:index], (kind, changed), *parts[index + 1 :]]),
                )
    added = [(b"\xff\xe1", b"Exif\0\0" + content) for content in METADATA.values()]
    added += [
        (b"\xff\xe1", b"Exif"),
        (b"\xff\xe1", b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta"),
        (b"\xff\xe0", b"JFIF"),
    ]
    icc = b"ICC_PROFILE\0"
    added += [
        (b"\xff\xe2", icc + content)
        for content in (b"", b"\1", b"\0\0", b"\1\1", b"\2\1" + bytes(128), b"\1\1" + b"RGB " * 40)
    ]
    added += [(b"\xff\xe2", b"MPF\0" + content) for content in (b"", *METADATA.values())]
    added += [
        (b"\xff\xed", b"Photoshop 3.0\0" + content)
        for content in (b"", b"8BIM", b"8BIM\4\4\0\0\xff\xff\xff\xff", b"8BIM\3\xed\0\0\0\0\0\2xx")
    ]
    added += [(b"\xff\xee", content) for content in (b"Adobe", b"Adobe\0\x64\0\0\0\0\2", b"Adobe\xff" * 3)]
    added += [
        (b"\xff\xdb", b""),
        (b"\xff\xc4", b""),
        (b"\xff\xdd", b""),
        (b"\xff\xfe", bytes(65_000)),
        (b"\xff\xcc", b"x"),
    ]
    for kind, payload in added:
        yield f"a segment {kind[1]:x} {payload[:24]!r} of {len(payload)} bytes", build([(kind, payload), *parts])
    yield "no scan", build(parts)[: -len(scan)]
    yield "a scan and nothing else", b"\xff\xd8" + scan
    yield "a thousand scans", build(parts) + scan[:2000] * 1000


# --- WebP, GIF, BMP --------------------------------------------------------------------------------------------------


def webp_parts(data: bytes) -> Parts:
    found, at = [], 12
    while at + 8 <= len(data):
        (length,) = struct.unpack("<I", data[at + 4 : at + 8])
        found.append((data[at : at + 4], data[at + 8 : at + 8 + length]))
        at += 8 + length + length % 2
    return found


def webp_of(parts: Parts, size: int | None = None) -> bytes:
    body = b"WEBP"
    for kind, payload in parts:
        body += kind + struct.pack("<I", len(payload)) + payload + b"\0" * (len(payload) % 2)
    return b"RIFF" + struct.pack("<I", len(body) if size is None else size) + body


def _webp(data: bytes) -> Iterator[tuple[str, bytes]]:
    parts = webp_parts(data)
    yield from _damaged(parts, webp_of)
    for size in (0, 3, 2**31, 2**32 - 1):
        yield f"RIFF that says it has {size} bytes", webp_of(parts, size)
    picture = [part for part in parts if part[0] in (b"VP8 ", b"VP8L", b"ANIM", b"ANMF", b"ALPH")]
    for flags in range(0, 64, 2):
        for side in (0, 63, 16383, 2**24 - 1):
            wide = struct.pack("<I", side)[:3]
            yield (
                f"VP8X of flags {flags} and side {side}",
                webp_of([(b"VP8X", bytes([flags, 0, 0, 0]) + wide * 2), *picture]),
            )
    canvas = struct.pack("<I", SIZE[0] - 1)[:3] + struct.pack("<I", SIZE[1] - 1)[:3]
    for what, content in METADATA.items():
        for begin in (b"", b"Exif\0\0"):
            parts = [(b"VP8X", b"\x08\0\0\0" + canvas), *picture, (b"EXIF", begin + content)]
            yield f"EXIF {what} behind {begin!r}", webp_of(parts)
    for content in (b"", b"x", bytes(128), b"RGB " * 40, b"\xff" * 500):
        yield f"ICCP {content[:8]!r}", webp_of([(b"VP8X", b"\x20\0\0\0" + canvas), (b"ICCP", content), *picture])


def _gif(data: bytes) -> Iterator[tuple[str, bytes]]:
    for width, height in product((0, 1, 16384, 65535), (0, 1, 16384, 65535)):
        yield f"a screen of {width}x{height}", data[:6] + struct.pack("<HH", width, height) + data[10:]
    for place in range(10, min(len(data), 14)):
        for value in (0, 1, 0x7F, 0x80, 0xF7, 0xFF):
            yield f"byte {place} is {value}", data[:place] + bytes([value]) + data[place + 1 :]
    at = data.index(b",", 13)
    for field in (1, 3, 5, 7):
        for value in (0, 1, 16384, 65535):
            place = at + field
            yield f"the picture's field {field} is {value}", data[:place] + struct.pack("<H", value) + data[place + 2 :]
    for place in (at + 9, at + 10, at + 11):
        for value in (0, 1, 9, 12, 13, 200, 255):
            yield f"the picture's byte {place - at} is {value}", data[:place] + bytes([value]) + data[place + 1 :]
    yield "comments without end", data[:-1] + b"!\xfe" + b"\xff" * (1 << 20)
    yield "a thousand empty pictures", data[:-1] + (b"," + bytes(9) + b"\2\0") * 1000 + b";"


def _bmp(data: bytes) -> Iterator[tuple[str, bytes]]:
    for name, place, width in (
        ("file size", 2, 4), ("offset", 10, 4), ("header size", 14, 4), ("width", 18, 4), ("height", 22, 4),
        ("planes", 26, 2), ("bits", 28, 2), ("compression", 30, 4), ("data size", 34, 4), ("colours", 46, 4),
    ):  # fmt: skip
        for value in (0, 1, 2, 3, 4, 8, 12, 16, 24, 32, 40, 64, 108, 124, 16384, 65535, 2**31 - 1, 2**31, 2**32 - 1):
            changed = (value % 2 ** (8 * width)).to_bytes(width, "little")
            yield f"{name} {value}", data[:place] + changed + data[place + width :]
