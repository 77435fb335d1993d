"""What `photos.imaging.render` makes of good, odd, broken and hostile files. Every picture is made here."""

import functools
import io
import pathlib
import random
import struct
import subprocess
import sys
import zlib

import pillow_heif
import pytest
import pyvips
from PIL import Image, ImageCms, PngImagePlugin

import photos
from photos.imaging import MAX_BYTES, RENDITIONS, NotAPicture, render

pillow_heif.register_heif_opener()

ROOT = pathlib.Path(photos.__file__).parent.parent

RED, GREEN, BLUE, YELLOW = (200, 30, 30), (30, 160, 30), (30, 30, 200), (220, 210, 40)
WHITE = (255, 255, 255)
EXIF_ORIENTATION, EXIF_GPS, EXIF_CAMERA = 0x0112, 0x8825, 0x0110
# How a camera that writes this orientation has stored the picture that one is to see.
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def quarters(width=900, height=800):
    """Red, green on top; blue, yellow below: no two of the eight orientations look alike."""
    picture = Image.new("RGB", (width, height), RED)
    picture.paste(GREEN, (width // 2, 0, width, height))
    picture.paste(BLUE, (0, height // 2, width, height))
    picture.paste(YELLOW, (width // 2, height // 2, width, height))
    return picture


def noise(width=900, height=800):
    """Does not compress, so that half of the file is half of the picture."""
    return Image.frombytes("RGB", (width, height), random.Random(1).randbytes(3 * width * height))


def plain(interpretation, *channels):
    """700 by 700 pixels of one colour, in what Pillow cannot write."""
    pixels = bytes(channels) * (700 * 700)
    image = pyvips.Image.new_from_memory(pixels, 700, 700, len(channels), "uchar")
    return image.copy(interpretation=interpretation)


def encode(picture, kind, **options):
    out = io.BytesIO()
    if kind == "HEIF":
        options["enc_params"] = {"preset": "ultrafast"}
    picture.save(out, kind, **options)
    return out.getvalue()


@functools.cache
def encoded_noise(size, kind, **options):
    return encode(noise(*size), kind, **options)


def exif(orientation=1):
    tags = Image.Exif()
    tags[EXIF_ORIENTATION] = orientation
    tags[EXIF_CAMERA] = "Camera-of-the-test"
    tags.get_ifd(EXIF_GPS).update({1: "N", 2: (52.0, 31.0, 12.0), 3: "E", 4: (13.0, 24.0, 18.0)})
    return tags


def displayed(rendition):
    picture = Image.open(io.BytesIO(rendition))
    assert picture.format == "JPEG"
    assert picture.mode == "RGB"
    picture.load()
    return picture


def assert_colour(picture, at, expected, tolerance=6):
    side = picture.width
    pixel = picture.getpixel((int(at[0] * side), int(at[1] * side)))
    assert all(abs(a - b) <= tolerance for a, b in zip(pixel, expected, strict=True)), (at, pixel, expected)


def assert_quarters(renditions, tolerance=6):
    assert {name: displayed(jpeg).size for name, jpeg in renditions.items()} == {
        name: (side, side) for name, side in RENDITIONS.items()
    }
    for jpeg in renditions.values():
        picture = displayed(jpeg)
        for at, colour in {(0.2, 0.2): RED, (0.8, 0.2): GREEN, (0.2, 0.8): BLUE, (0.8, 0.8): YELLOW}.items():
            assert_colour(picture, at, colour, tolerance)


def assert_plain(original, expected, tolerance=6):
    for jpeg in render(original).values():
        assert_colour(displayed(jpeg), (0.5, 0.5), expected, tolerance)


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width, height, rows, interlace=0):
    """An 8-bit RGB PNG whose header says what it is told to."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, interlace)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def resized_jpeg(jpeg, width, height):
    """The same file with another size in its header."""
    at = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:at] + struct.pack(">HH", height, width) + jpeg[at + 4 :]


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_is_upright_whatever_the_exif_orientation(kind, orientation):
    seen = quarters()
    stored = seen if STORED[orientation] is None else seen.transpose(STORED[orientation])

    assert_quarters(render(encode(stored, kind, exif=exif(orientation))), tolerance=12)


@pytest.mark.parametrize("orientation", STORED)
def test_heic_is_upright_and_its_exif_orientation_does_not_turn_it_again(orientation):
    seen = quarters()
    stored = seen if STORED[orientation] is None else seen.transpose(STORED[orientation])
    # The encoder writes an orientation as irot and imir, and leaves the EXIF tag in place as phones do.
    original = encode(stored, "HEIF", quality=90, exif=exif(orientation).tobytes())
    assert orientation == 1 or b"irot" in original or b"imir" in original

    assert_quarters(render(original), tolerance=12)


@pytest.mark.parametrize(
    "original",
    [
        encode(quarters(), "JPEG", progressive=True),
        encode(quarters(4100, 3000), "JPEG"),  # decoded to a half
        encode(quarters(), "PNG"),
        encode(quarters(), "WEBP"),
        encode(quarters(), "WEBP", lossless=True),
        encode(quarters(), "HEIF", tile_size=256),
        encode(quarters().quantize(8), "PNG"),
    ],
    ids=["progressive JPEG", "large JPEG", "PNG", "WebP", "lossless WebP", "tiled HEIC", "palette PNG"],
)
def test_takes_the_formats_of_phones_and_screens(original):
    assert_quarters(render(original), tolerance=16)


def test_crops_the_centre():
    picture = Image.new("RGB", (1400, 700), RED)
    picture.paste(BLUE, (350, 0, 1050, 700))
    for original in (
        encode(picture, "JPEG"),
        encode(picture, "JPEG", exif=exif(6)),
        encode(picture.rotate(90, expand=True), "JPEG"),
    ):
        for jpeg in render(original).values():
            for at in (0.03, 0.03), (0.97, 0.97), (0.03, 0.97), (0.97, 0.03):
                assert_colour(displayed(jpeg), at, BLUE)


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (611, 613), (612, 612), (200, 5000), (1, 65_000)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_every_shape_becomes_a_square_of_its_colour(kind, size):
    renditions = render(encode(Image.new("RGB", size, GREEN), kind))

    assert [displayed(jpeg).size for jpeg in renditions.values()] == [(150, 150), (306, 306), (612, 612)]
    for jpeg in renditions.values():
        assert_colour(displayed(jpeg), (0.5, 0.5), GREEN)
        assert_colour(displayed(jpeg), (0.01, 0.99), GREEN)


def test_a_small_picture_is_enlarged_as_it_is():
    assert_quarters(render(encode(quarters(90, 80), "PNG", exif=exif(1))), tolerance=12)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "HEIF"])
def test_no_metadata_is_left(kind):
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/">here-i-live</x:xmpmeta>'
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    options = {"exif": exif(6), "icc_profile": profile}
    if kind == "PNG":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", xmp.decode())
        options["pnginfo"].add_text("Comment", "here-i-live")
    else:
        options |= {"xmp": xmp, "comment": b"here-i-live"}
    original = encode(quarters(), kind, **options)
    assert b"Camera-of-the-test" in original
    assert b"here-i-live" in original

    for jpeg in render(original).values():
        picture = displayed(jpeg)
        assert not picture.getexif()
        assert set(picture.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}
        assert b"Camera-of-the-test" not in jpeg
        assert b"here-i-live" not in jpeg


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "HEIF"])
def test_display_p3_is_converted_to_srgb(kind):
    wide = plain("srgb", 200, 80, 60).icc_transform("p3", input_profile="srgb")
    stored = tuple(int(value) for value in wide(4, 4))
    assert max(abs(a - b) for a, b in zip(stored, (200, 80, 60), strict=True)) > 10
    picture = Image.new("RGB", (700, 700), stored)

    assert_plain(encode(picture, kind, icc_profile=wide.get("icc-profile-data")), (200, 80, 60), tolerance=4)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_broken_profile_is_passed_over(kind):
    assert_plain(encode(Image.new("RGB", (700, 700), RED), kind, icc_profile=b"no profile" * 20), RED)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "HEIF"])
def test_what_shows_through_is_white(kind):
    assert_plain(encode(Image.new("RGBA", (700, 700), (*RED, 0)), kind), WHITE)
    assert_plain(encode(Image.new("RGBA", (700, 700), (0, 0, 0, 128)), kind), (127, 127, 127))


def test_transparent_grey_and_palette():
    assert_plain(encode(Image.new("LA", (700, 700), (0, 128)), "PNG"), (127, 127, 127))
    palette = Image.new("P", (700, 700), 3)
    palette.putpalette([*BLUE] * 256)
    assert_plain(encode(palette, "PNG"), BLUE)
    assert_plain(encode(palette, "PNG", transparency=3), WHITE)


def test_grey():
    for kind in ("JPEG", "PNG", "HEIF"):
        assert_plain(encode(Image.new("L", (700, 700), 100), kind), (100, 100, 100))
    assert_plain(encode(Image.new("1", (700, 700), 1), "PNG"), WHITE)


def test_sixteen_bits():
    assert_plain(encode(Image.new("I;16", (700, 700), 40_000), "PNG"), (156, 156, 156))
    deep = plain("srgb", *RED, 255).colourspace("rgb16")
    assert deep.format == "ushort"
    assert_plain(deep.pngsave_buffer(), RED)
    assert_plain(deep.pngsave_buffer(interlace=True), RED)


def test_ten_bit_heic():
    samples = struct.pack("<HHH", *(channel * 257 for channel in BLUE)) * (700 * 700)
    out = io.BytesIO()
    pillow_heif.from_bytes("RGB;16", (700, 700), samples).save(out, quality=90)

    assert pillow_heif.open_heif(out.getvalue()).info["bit_depth"] == 10
    assert_plain(out.getvalue(), BLUE, tolerance=8)


def test_cmyk_with_and_without_a_profile():
    cyan = Image.new("CMYK", (2000, 1500), (255, 0, 0, 0))
    red = plain("srgb", 255, 0, 0).icc_transform("cmyk", input_profile="srgb")
    assert red.get_typeof("icc-profile-data")

    assert_plain(plain("cmyk", 20, 100, 50, 28).jpegsave_buffer(keep="none"), (204, 146, 155))
    for jpeg in render(encode(cyan, "JPEG")).values():
        r, g, b = displayed(jpeg).getpixel((75, 75))
        assert r < 60
        assert g > 120
        assert b > 180
    for jpeg in render(red.jpegsave_buffer()).values():
        r, g, b = displayed(jpeg).getpixel((75, 75))
        assert r > 180
        assert g < 80
        assert b < 80


@pytest.mark.parametrize("kind", ["WEBP", "PNG"])
def test_of_an_animation_the_first_frame(kind):
    later = [Image.new("RGB", (700, 700), colour) for colour in (GREEN, BLUE)]

    assert_plain(encode(Image.new("RGB", (700, 700), RED), kind, save_all=True, append_images=later), RED)


@pytest.mark.parametrize("part", [0.01, 0.5, 0.99])
@pytest.mark.parametrize("size", [(640, 960), (960, 640), (200, 600)], ids=["portrait", "landscape", "small"])
@pytest.mark.parametrize(
    ("kind", "options"),
    [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {}), ("HEIF", {"quality": 30})],
    ids=["JPEG", "progressive", "PNG", "WebP", "HEIC"],
)
def test_a_truncated_file_is_refused_wherever_it_ends(kind, options, size, part):
    original = encoded_noise(size, kind, **options)

    with pytest.raises(NotAPicture, match=r"This \w+ file of [\d,]+ bytes is cut short or damaged"):
        render(original[: int(len(original) * part)])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_garbage_after_a_good_header_is_refused(kind):
    original = encode(noise(), kind)
    garbage = random.Random(2).randbytes(len(original) - 1000)
    if kind == "WEBP":  # its data have no redundancy: most garbage is a picture of something
        garbage = b"\xff" * len(garbage)

    with pytest.raises(NotAPicture, match="damaged"):
        render(original[:800] + garbage + original[-200:])


def test_a_truncated_jpeg_that_was_given_an_end_is_refused():
    original = encode(noise(), "JPEG")

    with pytest.raises(NotAPicture, match="damaged"):
        render(original[: len(original) // 2] + b"\xff\xd9")


def test_what_browsers_overlook_is_overlooked():
    jpeg = encode(quarters(), "JPEG")
    scan = jpeg.index(b"\xff\xda")
    assert jpeg[scan + 11 : scan + 14] == b"\x00\x3f\x00"
    slips = {
        "more after the end": jpeg + b"a film follows the photo",
        "stray bytes between segments": jpeg[:scan] + b"\x00\x00\x00\x00" + jpeg[scan:],
        "scan parameters of some cameras": jpeg[: scan + 11] + b"\x00\x00\x00" + jpeg[scan + 14 :],
    }
    for original in slips.values():
        assert_quarters(render(original))


def test_a_jpeg_of_too_many_scans_is_refused():
    jpeg = encode(quarters(), "JPEG", progressive=True)
    last = jpeg[jpeg.rindex(b"\xff\xda") : -2]

    with pytest.raises(NotAPicture, match="scans; a photo may have 50"):
        render(jpeg[:-2] + last * 5000 + b"\xff\xd9")


@pytest.mark.parametrize(
    ("original", "message"),
    [
        (b"", "empty"),
        (b"hello, world", r"not a picture: it starts with b'hello, world'"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG files are not taken"),
        (b"<?xml version='1.0'?>\n<!DOCTYPE svg>\n<svg/>", "SVG files are not taken"),
        (encode(quarters(), "GIF"), "GIF files are not taken"),
        (encode(quarters(), "TIFF"), "TIFF files are not taken"),
        (encode(quarters(), "BMP"), "not a picture"),
        (encode(quarters(), "AVIF"), "AVIF files are not taken"),
        (b"%PDF-1.7", "PDF files are not taken"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0isommp42", "Video files are not taken"),
    ],
    ids=["empty", "text", "SVG", "SVG with prologue", "GIF", "TIFF", "BMP", "AVIF", "PDF", "video"],
)
def test_other_files_are_refused_by_name(original, message):
    with pytest.raises(NotAPicture, match=message):
        render(original)


def test_a_bomb_is_refused_by_its_header():
    with pytest.raises(NotAPicture, match=r"50,000 by 50,000 pixels; a photo may have 120,000,000"):
        render(png(50_000, 50_000, bytes(1000)))
    with pytest.raises(NotAPicture, match=r"1 by 100,000,000 pixels; .* 65,535 on a side"):
        render(png(1, 100_000_000, bytes(1000)))
    with pytest.raises(NotAPicture, match=r"50,000 by 50,000 pixels"):
        render(resized_jpeg(encode(quarters(), "JPEG"), 50_000, 50_000))
    heic = encode(Image.new("RGB", (64, 64), RED), "HEIF")
    with pytest.raises(NotAPicture, match=r"50,000 by 50,000 pixels"):
        render(heic.replace(struct.pack(">II", 64, 64), struct.pack(">II", 50_000, 50_000)))


def test_a_header_that_lies_is_refused():
    with pytest.raises(NotAPicture, match="damaged"):
        render(png(5000, 5000, bytes(1000)))
    with pytest.raises(NotAPicture, match="damaged"):
        render(resized_jpeg(encode(quarters(), "JPEG"), 5000, 5000))
    for real, said in ((64, 4000), (2000, 64)):
        heic = encode(Image.new("RGB", (real, real), RED), "HEIF")
        with pytest.raises(NotAPicture, match="damaged"):
            render(heic.replace(struct.pack(">II", real, real), struct.pack(">II", said, said)))


def test_too_many_bytes_are_refused():
    jpeg = encode(quarters(), "JPEG")

    assert_quarters(render(jpeg + bytes(MAX_BYTES - len(jpeg))))
    with pytest.raises(NotAPicture, match=r"20,971,521 bytes; a photo may have 20,971,520"):
        render(jpeg + bytes(MAX_BYTES - len(jpeg) + 1))


def render_apart(path, megabytes=4000):
    """What `render` raises for this file, if anything, in a process of its own with so much memory left."""
    script = """if True:
        import pathlib, resource, sys
        from photos.imaging import render
        used = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[2]) * 2**20, -1))
        try:
            print(*render(pathlib.Path(sys.argv[1]).read_bytes()))
        except Exception as error:
            print(type(error).__name__)
    """
    command = [sys.executable, "-c", script, str(path), str(megabytes)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def test_out_of_memory_is_no_fault_of_the_picture(tmp_path):
    (tmp_path / "large.png").write_bytes(png(10_000, 10_000, bytes(1000), interlace=1))

    assert render_apart(tmp_path / "large.png", megabytes=200) == "MemoryError"


def test_cmyk_without_a_profile_does_not_end_the_process(tmp_path):
    plain("cmyk", 20, 100, 50, 28).jpegsave(str(tmp_path / "cmyk.jpg"), keep="none")

    assert render_apart(tmp_path / "cmyk.jpg") == " ".join(RENDITIONS)
