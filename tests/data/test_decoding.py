import io
import struct
import sys
import warnings

import numpy as np
import pytest
import torch
from PIL import Image, UnidentifiedImageError, features
from PIL.PngImagePlugin import PngInfo

from falseneg.data.decoding import decode, eight_bits, from_any
from falseneg.errors import UserError

GREY = np.array([[0, 100], [200, 255]], dtype=np.uint8)


def pixels(decoded):
    assert decoded.image.dtype == torch.uint8 and decoded.image.shape[0] == 3
    return decoded.image.permute(1, 2, 0).numpy()


def test_rgb_is_kept_pixel_for_pixel_and_counts_as_no_conversion(encode, picture):
    array = picture(1)
    decoded = decode(encode(array), "x.png")
    assert (pixels(decoded) == array).all()
    assert decoded.conversions == ()


def test_greyscale(encode):
    decoded = decode(encode(GREY), "x.png")
    assert (pixels(decoded) == GREY[:, :, None]).all()
    assert decoded.conversions == ("greyscale",)


def test_black_and_white(encode):
    decoded = decode(encode(Image.fromarray(GREY).convert("1", dither=Image.Dither.NONE)), "x.png")
    assert pixels(decoded)[:, :, 0].tolist() == [[0, 0], [255, 255]]
    assert decoded.conversions == ("greyscale",)


def test_sixteen_bit_png_is_scaled_not_clipped(encode):
    deep = np.array([[0, 257], [32896, 65535]], dtype=np.uint16)
    decoded = decode(encode(deep), "x.png")
    assert pixels(decoded)[:, :, 1].tolist() == [[0, 1], [128, 255]]
    assert set(decoded.conversions) == {"16-bit", "greyscale"}


def test_sixteen_bit_colour_is_counted_although_pillow_reads_it_into_eight(png):
    line = b"\0" + np.array([65535, 0, 32896], dtype=">u2").tobytes()
    decoded = decode(png(1, 1, 16, 2, line), "x.png")
    assert pixels(decoded).tolist() == [[[255, 0, 128]]]
    assert decoded.conversions == ("16-bit",)


@pytest.mark.parametrize("values", [[[0, 65535]], [[-5, 70000]]])
def test_thirty_two_bit_tiff(encode, values):
    decoded = decode(encode(Image.fromarray(np.array(values, dtype=np.int32)), "TIFF"), "x.tif")
    assert pixels(decoded)[0, :, 0].tolist() == [0, 255]
    assert set(decoded.conversions) == {"16-bit", "greyscale"}


def test_float_tiff(encode):
    decoded = decode(encode(Image.fromarray(np.array([[0, 0.5, 1]], dtype=np.float32)), "TIFF"), "x.tif")
    assert pixels(decoded)[0, :, 0].tolist() == [0, 128, 255]


def test_five_six_five_bitmap_is_not_called_deep():
    header = b"BM" + (14 + 40 + 12 + 4).to_bytes(4, "little") + bytes(4) + (66).to_bytes(4, "little")
    info = b"".join(n.to_bytes(4, "little") for n in (40, 1, 1)) + b"\1\0\x10\0" + (3).to_bytes(4, "little")
    info += (4).to_bytes(4, "little") + bytes(16) + b"".join(n.to_bytes(4, "little") for n in (0xF800, 0x7E0, 0x1F))
    decoded = decode(header + info + b"\x00\xf8\0\0", "x.bmp")
    assert pixels(decoded).tolist() == [[[255, 0, 0]]]
    assert decoded.conversions == ()


def test_palette(encode, picture):
    flat = np.repeat(np.array([[[250, 10, 20], [5, 240, 30]]], dtype=np.uint8), 4, axis=0)
    decoded = decode(encode(Image.fromarray(flat).quantize(2)), "x.png")
    assert np.abs(pixels(decoded).astype(int) - flat).max() <= 4
    assert decoded.conversions == ("palette",)


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [("RGBA", (200, 0, 0, 0), [255, 255, 255]), ("RGBA", (200, 0, 0, 51), [244, 204, 204]), ("LA", (0, 0), [255] * 3)],
)
def test_transparent_pixels_become_white_not_black(encode, mode, colour, expected):
    decoded = decode(encode(Image.new(mode, (2, 2), colour)), "x.png")
    assert np.abs(pixels(decoded)[0, 0].astype(int) - expected).max() <= 1
    assert "transparent" in decoded.conversions
    assert ("greyscale" in decoded.conversions) == (mode == "LA")


def test_transparent_palette_entry(encode):
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    decoded = decode(encode(image, transparency=0), "x.png")
    assert pixels(decoded).tolist() == [[[255, 255, 255], [0, 0, 255]]]
    assert set(decoded.conversions) == {"palette", "transparent"}


def test_opaque_alpha_changes_nothing(encode):
    decoded = decode(encode(Image.new("RGBA", (2, 2), (1, 2, 3, 255))), "x.png")
    assert pixels(decoded)[0, 0].tolist() == [1, 2, 3]
    assert decoded.conversions == ()


def test_cmyk_jpeg_has_the_colours_of_its_rgb(encode):
    red = Image.new("RGB", (16, 16), (220, 30, 40))
    decoded = decode(encode(red.convert("CMYK"), "JPEG", quality=95), "x.jpg")
    assert np.abs(pixels(decoded)[8, 8].astype(int) - [220, 30, 40]).max() <= 6
    assert decoded.conversions == ("CMYK",)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotated_images_are_turned_upright_and_counted(encode, form, orientation):
    upright = np.zeros((16, 24, 3), dtype=np.uint8)
    upright[:8, :8] = (255, 0, 0)
    upright[8:, :8] = (0, 255, 0)
    upright[:, 8:] = (0, 0, 255)
    move = Image.Transpose
    undo = [None, None, move.FLIP_LEFT_RIGHT, move.ROTATE_180, move.FLIP_TOP_BOTTOM]
    undo += [move.TRANSPOSE, move.ROTATE_90, move.TRANSVERSE, move.ROTATE_270]
    stored = Image.fromarray(upright)
    stored = stored if undo[orientation] is None else stored.transpose(undo[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode(encode(stored, form, exif=exif, **({"quality": 95} if form == "JPEG" else {})), "x")
    assert np.abs(pixels(decoded).astype(int) - upright).mean() < 20
    assert decoded.conversions == (("EXIF-rotated",) if orientation > 1 else ())


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize(("form", "by"), [("JPEG", 1), ("JPEG", 2), ("JPEG", 4), ("JPEG", 8), ("TIFF", 2)])
def test_jpeg_is_decoded_smaller_if_allowed(encode, mode, form, by):
    ramp = np.add.outer(np.arange(97), np.arange(130)).astype(np.uint8)
    data = encode(Image.merge("RGB", [Image.fromarray(ramp + shade) for shade in (0, 10, 20)]).convert(mode), form)
    asked = []
    small = decode(data, "x", lambda height, width: asked.append((height, width)) or by)
    full = decode(data, "x")
    if form == "TIFF":
        assert torch.equal(small.image, full.image) and not asked
        return
    assert asked == [(97, 130)] and full.image.shape == (3, 97, 130) and small.conversions == full.conversions
    assert small.image.shape == (3, -(-97 // by), -(-130 // by))
    averages = torch.nn.functional.avg_pool2d(full.image.float(), by)
    height, width = averages.shape[1:]
    assert (small.image[:, :height, :width] - averages).abs().mean() < 3


def test_photos_of_telephones_are_decoded_smaller_too(encode, picture):
    first = Image.fromarray(picture(0, 64, 96))
    data = encode(first, "MPO", save_all=True, append_images=[first])
    assert Image.open(io.BytesIO(data)).format == "MPO"
    assert decode(data, "x.jpg", lambda height, width: 4).image.shape == (3, 16, 24)


def test_smaller_jpeg_is_turned_upright(encode):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(Image.new("RGB", (64, 32), (200, 10, 10)), "JPEG", exif=exif)
    decoded = decode(data, "x.jpg", lambda height, width: 2)
    assert decoded.image.shape == (3, 32, 16) and decoded.conversions == ("EXIF-rotated",)


def test_damaged_exif_does_not_make_an_image_unreadable(encode, picture):
    notes = PngInfo()
    notes.add_text("Raw profile type exif", "\nexif\n 4\nthis is not hexadecimal")
    data = encode(picture(1, 16, 16), pnginfo=notes)
    with pytest.raises(ValueError, match="hex"):
        Image.open(io.BytesIO(data)).getexif()
    assert decode(data, "x.png").image.shape == (3, 16, 16)
    data = encode(picture(1, 16, 16), "JPEG", exif=b"Exif\0\0garbage that is no directory")
    assert decode(data, "x.jpg").image.shape == (3, 16, 16)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF"])
def test_truncated_image_is_one_sentence_that_names_it(encode, picture, form):
    data = encode(picture(2, 64, 64), form)
    with pytest.raises(UserError, match=r"^photos/a\.x cannot be read as an image \(.*skip-unreadable") as caught:
        decode(data[: len(data) * 2 // 3], "photos/a.x")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("data", "reason"), [(b"", "it is empty"), (b"this is text", "no known image format")])
def test_what_is_no_image(data, reason):
    with pytest.raises(UserError, match=f"notes.jpg cannot be read as an image \\({reason}\\)"):
        decode(data, "notes.jpg")


def test_decompression_bomb_is_named_and_not_decoded(png):
    with pytest.raises(UserError, match=r"^bomb\.png claims too many pixels"):
        decode(png(60_000, 60_000, 8, 2), "bomb.png")


def test_out_of_memory_is_not_called_an_unreadable_image(encode, picture, monkeypatch):
    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(MemoryError):
        decode(encode(picture()), "x.png")


def test_numbers_of_other_types():
    assert eight_bits(np.array([0, 65535], dtype=">u2"), "x").tolist() == [0, 255]
    assert eight_bits(np.array([0.0, 128.0]), "x").tolist() == [0, 128]
    assert eight_bits(np.array([-1.0, 0.0, 1.0]), "x").tolist() == [0, 128, 255]
    with pytest.raises(UserError, match="not finite"):
        eight_bits(np.array([0.0, np.nan]), "x")


@pytest.mark.parametrize(
    "value",
    [
        torch.full((3, 5, 6), 51, dtype=torch.uint8),
        torch.full((3, 5, 6), 0.2),
        torch.full((1, 5, 6), 0.2, dtype=torch.float64),
        torch.full((5, 6), 51, dtype=torch.int64),
        torch.full((3, 2, 3), 51, dtype=torch.uint8),
        np.full((5, 6, 3), 51, dtype=np.uint8),
        np.full((5, 6, 1), 0.2, dtype=np.float32),
        np.full((5, 6), 51 * 257, dtype=np.uint16),
        Image.new("RGB", (6, 5), (51, 51, 51)),
    ],
)
def test_arrays_of_users(value):
    image = from_any(value, "image 1").image
    assert image.dtype == torch.uint8 and image.shape in ((3, 5, 6), (3, 2, 3))
    assert (image == 51).all()


def test_transparent_array_of_a_user():
    decoded = from_any(np.zeros((4, 5, 4), dtype=np.uint8), "image 1")
    assert (decoded.image == 255).all() and decoded.conversions == ("transparent",)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.tensor([[-2.1, 2.6]]).expand(3, 4, 2), "without normalisation"),
        (np.full((4, 4), 300), r"from 300 to 300: integers must lie in 0\.\.255"),
        (np.zeros((5, 4, 7), dtype=np.uint8), "has shape"),
        (np.zeros((3, 0, 4), dtype=np.uint8), "has shape"),
        ("a.jpg", "is a str"),
    ],
)
def test_what_a_user_may_not_yield(value, message):
    with pytest.raises(UserError, match=message):
        from_any(value, "image 1")


def test_what_pillow_warns_of_is_no_second_line(encode, picture):
    data = bytearray(encode(picture(), "TIFF"))
    place = data.index(struct.pack("<HH", 258, 3)) + 4  # how many bits a channel has
    data[place : place + 4] = struct.pack("<I", 10**6)
    with warnings.catch_warnings(record=True) as said, pytest.raises(UserError, match="cannot be read as an image"):
        decode(bytes(data), "a.tif")
    assert not said


@pytest.fixture
def heic(picture):
    """A photo as phones store it."""
    pillow_heif = pytest.importorskip("pillow_heif")
    stream = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(picture(1, 48, 64))).save(
        stream, quality=-1, chroma=444, matrix_coefficients=0
    )
    return stream.getvalue()


def test_heic_is_read_where_pillow_heif_is_installed(forget_format, heic, picture):
    forget_format("HEIF")
    with pytest.raises(UnidentifiedImageError):
        Image.open(io.BytesIO(heic))
    decoded = decode(heic, "x.heic")
    assert np.abs(pixels(decoded).astype(int) - picture(1, 48, 64)).mean() < 1 and decoded.conversions == ()
    with pytest.raises(UserError, match="x.heic cannot be read as an image"):
        decode(heic[:300], "x.heic")


@pytest.mark.parametrize(
    ("kind", "needed"), [("HEIC", "the package pillow-heif"), ("AVIF", "Pillow 11.3 or later")], ids=["HEIC", "AVIF"]
)
def test_what_is_missing_to_read_photos_of_phones_is_named(monkeypatch, forget_format, kind, needed):
    forget_format("HEIF")
    forget_format("AVIF")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    header = b"\0\0\0\x1cftyp" + kind.lower().encode() + bytes(40)
    with pytest.raises(UserError, match=rf"x cannot be read as an image \({kind}, which needs {needed}\)"):
        decode(header, "x")


def test_avif_is_read(encode, picture):
    if not features.check("avif"):
        pytest.skip("this Pillow was built without AVIF")
    decoded = decode(encode(picture(1, 48, 64), "AVIF", quality=100, subsampling="4:4:4"), "x.avif")
    assert np.abs(pixels(decoded).astype(int) - picture(1, 48, 64)).mean() < 2
