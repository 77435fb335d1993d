"""An original's bytes in, three JPEG squares out: the only code that decodes what strangers upload.

One decode to 612 pixels, from which the smaller squares are made: 0.14 s for a 12-megapixel JPEG on one of 2 cores at
2.5 GHz (progressive 0.36 s, WebP 0.38 s, HEIC 0.92 s). A decode for each of the three took 0.27 s; Pillow took 0.15 s,
and three times the memory for a large PNG, which libvips streams.

HEIC goes through pillow-heif, for libvips' wheel has no HEVC decoder. AVIF is refused: at 108 megapixels its decoders
took up to 2.5 GB, and hardly a phone shoots it.

What keeps a hostile file cheap: its bytes, its format by its magic (libvips never guesses), its pixels and its JPEG
scans are checked before a pixel is decoded; libpng limits its texts; libheif holds every tile to the size it declares;
of an animation only the first frame is read. What is left costs seconds. A Python signal handler does not interrupt
the C code that spends them, so a worker's time limit takes effect only after the decode.
WebP and HEIC have no checksums: bytes that rot inside a complete file show, as they do in a browser.
"""

import logging
import re

import pillow_heif
import pyvips

RENDITIONS = {"thumbnail": 150, "low_resolution": 306, "standard_resolution": 612}
"""The renditions and the side of each in pixels. All are squares."""

MAX_BYTES = 20 * 1024 * 1024

MAX_PIXELS = 120_000_000
"""Takes a phone's 108 megapixels; the 200 of some rarely fit in MAX_BYTES. Decoding needs up to 9 bytes a pixel (for
interlaced 16-bit PNG with alpha; also measured, at 108 megapixels: progressive CMYK JPEG 8, WebP 8, 10-bit HEIC 7.5,
an ordinary JPEG 0.4), so a worker needs at most about 1 GB."""

MAX_SIDE = 65_535
"""What JPEG can hold. A PNG of 1 by 100 million pixels took 48 s, one of 100 million by 1 took 2.3 GB."""

MAX_SCANS = 50
"""Ordinary progressive JPEGs have about 10, their previews as many again. Each scan walks over all pixels: a file of
1 MB with 600 scans held libjpeg for 35 s, with 2600 for minutes."""

_EDGE = max(RENDITIONS.values())
_SCAN = re.compile(rb"\xff\xda\0[\x06\x08\x0a\x0c][\x01-\x04]")
_FORMATS = [
    (re.compile(rb"\xff\xd8\xff"), "JPEG"),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "PNG"),
    (re.compile(rb"RIFF.{4}WEBP", re.DOTALL), "WebP"),
    (re.compile(rb".{4}ftyp(?:.{4}){0,32}?avi[fs]", re.DOTALL), "AVIF"),
    (re.compile(rb".{4}ftyp(?:.{4}){0,32}?(?:he[iv][cxms]|m[is]f1)", re.DOTALL), "HEIC"),
    (re.compile(rb".{4}ftyp", re.DOTALL), "Video"),
    (re.compile(rb"GIF8"), "GIF"),
    (re.compile(rb"II\*\0|MM\0\*"), "TIFF"),
    (re.compile(rb"%PDF"), "PDF"),
    (re.compile(rb"\s{0,100}(?:<[?!].{0,1000})?<svg", re.DOTALL), "SVG"),
]
_LOADERS = {
    "JPEG": pyvips.Image.jpegload_buffer,
    "PNG": pyvips.Image.pngload_buffer,
    "WebP": pyvips.Image.webpload_buffer,
}
_TAKEN = "A photo has to be a JPEG, PNG, WebP or HEIC file."
_NO_MEMORY = re.compile(r"out of memory|Insufficient memory|Allocating \d+ bytes failed")
_HARMLESS = re.compile(r"extraneous bytes|Invalid SOS|JFIF revision|Adobe color|bad ICC")

# One photo at a time in each of several worker processes: threads would only compete, and no result is wanted twice.
pyvips.concurrency_set(1)
pyvips.cache_set_max(0)
pyvips.block_untrusted_set(True)
logging.getLogger("pyvips").setLevel(logging.WARNING)  # it tells each step of each photo at INFO
pillow_heif.options.DECODE_THREADS = 1
pillow_heif.options.THUMBNAILS = pillow_heif.options.DEPTH_IMAGES = pillow_heif.options.AUX_IMAGES = False


class NotAPicture(ValueError):
    """The original cannot become a photo. The message is for the photo's owner: what is wrong, and with which value."""


def render(original: bytes) -> dict[str, bytes]:
    """Turn an uploaded file into its renditions: rendition name → JPEG bytes.

    They are upright, cropped to the centre square, in sRGB, on white where the original was transparent, and carry no
    metadata (no place, no camera, no profile). A picture smaller than a rendition is enlarged, for clients lay out
    their grids by the sizes that they are promised. Of an animation the first frame is taken.

    Raises NotAPicture for what is not a JPEG, PNG, WebP or HEIC, is too large, or is damaged; MemoryError when memory
    ran out, which is no fault of the photo: try again.
    """
    kind = _format(original)
    try:
        square = _heic_square(original) if kind == "HEIC" else _square(kind, original)
    except NotAPicture:
        raise
    except (pyvips.Error, ValueError, RuntimeError, SyntaxError, EOFError, OSError) as error:
        if _NO_MEMORY.search(str(error)):
            raise MemoryError(str(error)) from error
        raise NotAPicture(
            f"This {kind} file of {len(original):,} bytes is cut short or damaged. Please upload it again."
        ) from error
    sizes = {name: square.thumbnail_image(side) for name, side in RENDITIONS.items()}
    return {name: size.jpegsave_buffer(Q=85, optimize_coding=True, keep="none") for name, size in sizes.items()}


def _format(original: bytes) -> str:
    """Name the format by the file's first bytes, and refuse what would be costly or futile to look at further."""
    if not original:
        raise NotAPicture(f"The file is empty. {_TAKEN}")
    if len(original) > MAX_BYTES:
        raise NotAPicture(f"The file has {len(original):,} bytes; a photo may have {MAX_BYTES:,} (20 MB).")
    kind = next((name for magic, name in _FORMATS if magic.match(original)), None)
    if kind is None:
        raise NotAPicture(f"The file is not a picture: it starts with {original[:12]!r}. {_TAKEN}")
    if kind != "HEIC" and kind not in _LOADERS:
        raise NotAPicture(f"{kind} files are not taken. {_TAKEN}")
    scans = len(_SCAN.findall(original)) if kind == "JPEG" else 0
    if scans > MAX_SCANS:
        raise NotAPicture(f"This JPEG file has {scans:,} scans; a photo may have {MAX_SCANS}.")
    return kind


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise NotAPicture(
            f"The picture has {width:,} by {height:,} pixels; a photo may have {MAX_PIXELS:,} in all"
            f" and {MAX_SIDE:,} on a side."
        )


def _square(kind: str, original: bytes) -> pyvips.Image:
    load = _LOADERS[kind]
    header = load(original)
    _check_size(header.width, header.height)
    if kind != "JPEG":
        return _upright_square(load(original, access="sequential", fail_on="error"))
    # libjpeg decodes to 1/2, 1/4 or 1/8 almost for free; twice the edge is left for a good filter to shrink.
    room = min(header.width, header.height) / (2 * _EDGE)
    shrink = max(factor for factor in (1, 2, 4, 8) if factor <= max(room, 1))
    # Lost pixels are but a warning to libjpeg. So are slips of cameras whose photos every browser shows in full.
    try:
        return _upright_square(load(original, shrink=shrink, access="sequential", fail_on="warning"))
    except pyvips.Error as error:
        if not _HARMLESS.search(str(error)):
            raise
        return _upright_square(load(original, shrink=shrink, access="sequential", fail_on="error"))


def _heic_square(original: bytes) -> pyvips.Image:
    """libheif turns and mirrors by HEIC's own properties; its EXIF orientation repeats them and must not count."""
    heif = pillow_heif.open_heif(original)
    _check_size(*heif.size)
    data, (width, height), bands = heif.data, heif.size, len(heif.mode)
    image = pyvips.Image.new_from_memory(data, width, height, bands, "uchar")
    image = image.copy(interpretation="srgb" if bands > 2 else "b-w")
    if profile := heif.info.get("icc_profile"):
        image.set_type(pyvips.GValue.blob_type, "icc-profile-data", profile)
    return _upright_square(image)


def _upright_square(image: pyvips.Image) -> pyvips.Image:
    """Decode all of the image (so damage anywhere shows) and bring it to the largest rendition's form, in memory."""
    if image.interpretation == "cmyk":
        # Not left to thumbnail_image: libvips 8.18.7 attaches a profile there that it frees too early (a crash).
        image = _srgb(image)
    if min(image.width, image.height) < _EDGE:
        # Cropped before it is enlarged: 1 by 3,000 pixels would become 612 by 1,836,000, in minutes.
        image = _centre(image.copy_memory())
    scale = _EDGE / min(image.width, image.height)
    width, height = round(image.width * scale), round(image.height * scale)
    image = image.thumbnail_image(width, height=height, size="force", no_rotate=True).copy_memory()
    image = _centre(image).autorot()
    if image.get_typeof("icc-profile-data"):
        image = _srgb(image)
    image = image.colourspace("srgb")
    if image.hasalpha():
        image = image.flatten(background=255)
    return image.copy_memory()


def _srgb(image: pyvips.Image) -> pyvips.Image:
    """By the embedded profile, or libvips' own where that is missing or broken, as browsers do."""
    image = image.icc_transform("srgb", embedded=True).copy()
    image.remove("icc-profile-data")
    return image


def _centre(image: pyvips.Image) -> pyvips.Image:
    side = min(image.width, image.height)
    return image.crop((image.width - side) // 2, (image.height - side) // 2, side, side)
