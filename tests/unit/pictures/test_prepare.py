"""Pictures of every kind into inputs of every kind."""

import base64
import io
import random
import warnings
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from tfserve_kit.errors import InvalidRequest, UsageError
from tfserve_kit.pictures.files import read_file
from tfserve_kit.pictures.graph import PictureFacts
from tfserve_kit.pictures.inputs import image_input
from tfserve_kit.pictures.prepare import prepare
from tfserve_kit.pictures.preprocessing import Preprocessing
from tfserve_kit.savedmodel import Signature, TensorSpec
from tfserve_kit.tensors import dtypes

NO_NOTE = Preprocessing()


def tensor(dtype, shape):
    return TensorSpec("x:0", dtypes.by_name(dtype) if dtype else None, shape)


def signature(dtype="float", shape=(None, 2, 2, 3), **more):
    inputs = {"x": tensor(dtype, shape)} | more
    return Signature("serving_default", inputs, {}, "")


def encode(pixels, kind="PNG", mode=None, **how):
    picture = Image.fromarray(np.asarray(pixels, np.uint8))
    buffer = io.BytesIO()
    (picture.convert(mode) if mode else picture).save(buffer, kind, **how)
    return buffer.getvalue()


def prepared(data, dtype="float", shape=(None, 2, 2, 3), note=NO_NOTE):
    return prepare(data, image_input(signature(dtype, shape), note), name="cat.png")


# Two by two pixels: red, green / blue, white.
FOUR = [[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]]


# What a signature wants


@pytest.mark.parametrize(
    ("dtype", "shape", "size", "value_range"),
    [
        ("float", (None, 28, 30, 1), (28, 30, 1), (0, 1)),
        ("double", (1, 8, 8, 3), (8, 8, 3), (0, 1)),
        ("half", (None, 8, 8, 3), (8, 8, 3), (0, 1)),
        ("uint8", (None, 8, 9, 3), (8, 9, 3), (0, 255)),
        ("int32", (None, 8, 8, 3), (8, 8, 3), (0, 255)),
        ("float", (None, 784), (28, 28, 1), (0, 1)),
        ("float", (None, 3072), (32, 32, 3), (0, 1)),
        ("float", (None, 3), (1, 1, 3), (0, 1)),
        ("float", (None, 1), (1, 1, 1), (0, 1)),
        ("float", (None, 28, 30), (28, 30, 1), (0, 1)),
        ("float", (28, 30, 3), (28, 30, 3), (0, 1)),
        ("float", (None, 3, 28, 30), (28, 30, 3), (0, 1)),
        ("uint8", (1, 28, 30), (28, 30, 1), (0, 255)),
    ],
)
def test_size_and_range_are_taken_from_the_signature(dtype, shape, size, value_range):
    wanted = image_input(signature(dtype, shape), NO_NOTE)
    how = wanted.how
    assert (wanted.alias, wanted.encoded) == ("x", False)
    assert ((how.height, how.width, how.channels), how.value_range) == (size, value_range)


@pytest.mark.parametrize(
    ("dtype", "found", "expected"),
    [
        ("uint8", None, ("0 to 255", "signature")),
        ("int32", None, ("0 to 255", "assumed")),
        ("uint16", None, ("0 to 255", "assumed")),
        ("uint16", (0.0, 65535.0), ("0 to 65535", "graph")),
        ("int32", (0.0, 255.0), ("0 to 255", "graph")),
        ("int32", (0.0, 1.0), ("0 to 255", "assumed")),
    ],
)
def test_range_of_integers_is_known_only_of_bytes(dtype, found, expected):
    graph = SimpleNamespace(input=lambda alias: PictureFacts(found, because="mul"))
    choices = image_input(signature(dtype, (None, 8, 8, 3)), NO_NOTE, graph=graph).choices
    assert [each[1:3] for each in choices if each.what == "range"] == [expected]


def test_string_input_takes_the_picture_as_it_is():
    wanted = image_input(signature("string", (None,)), NO_NOTE)
    assert wanted.encoded
    data = encode(FOUR) + b"\0"
    row = prepare(data, wanted, name="cat.png")
    assert (row.dtype, row.shape, row[()]) == (np.dtype(object), (), data)


def test_note_wins_over_what_the_signature_suggests():
    note = Preprocessing(height=3, width=5, channels=1, value_range=(-1, 1), labels=("a",))
    how = image_input(signature("float", (None, None, None, None)), note).how
    assert how == note


def test_note_fills_what_the_shape_leaves_open():
    note = Preprocessing(height=4, width=6)
    how = image_input(signature("float", (None, None, None, 3)), note).how
    assert (how.height, how.width, how.channels, how.value_range) == (4, 6, 3, (0, 1))


def test_note_may_split_a_flat_input_in_its_own_way():
    note = Preprocessing(height=2, width=392, channels=1)
    how = image_input(signature("float", (None, 784)), note).how
    assert (how.height, how.width) == (2, 392)


@pytest.mark.parametrize(
    ("given", "note", "text"),
    [
        (signature(y=tensor("float", (None, 8, 8, 3))), NO_NOTE, "has 2 inputs (x float [?, 2, 2"),
        (Signature("s", {}, {}, ""), NO_NOTE, "has 0 inputs (none)"),
        (signature("bool", (None, 8, 8, 3)), NO_NOTE, ", not a picture"),
        (signature(None, (None, 8, 8, 3)), NO_NOTE, ", not a picture"),
        (signature("float", (None, 4, 8, 8, 3)), NO_NOTE, ", not a picture"),
        (signature("float", None), NO_NOTE, "is not known"),
        (signature("string", (None, 2)), NO_NOTE, "more than one element for each picture"),
        (signature("float", (None, None, 8, 3)), NO_NOTE, "is not known"),
        (signature("float", (None, 8, 8, None)), NO_NOTE, "is not known"),
        (signature("float", (None, 785)), NO_NOTE, "is not known"),
        (signature("float", (None, None)), NO_NOTE, "is not known"),
        (signature(), Preprocessing(height=3), "3x2 with 3 channels does not fit"),
        (signature(), Preprocessing(width=3), "2x3 with 3 channels does not fit"),
        (signature(), Preprocessing(channels=1), "2x2 with 1 channels does not fit"),
        (signature("float", (None, 784)), Preprocessing(height=29), "29x28 with 1 channels"),
        (signature("float", (None, 8, 8, 4)), NO_NOTE, "takes 4 channels, but a"),
        (signature("float", (None, 8, 8, 2)), NO_NOTE, "takes 2 channels, but a"),
        (signature("float", (None, None, 8, 3)), Preprocessing(height=0), "0x8 with 3 channels"),
        (signature("float", (None, 8, None, 3)), Preprocessing(width=-1), "8x-1 with 3 channels"),
        (signature(), Preprocessing(value_range=(1,)), "--range has 1 values"),
        (signature(), Preprocessing(mean=(1, 2)), "--mean has 2 values for 3 channels"),
        (signature(), Preprocessing(std=(1, 2)), "--std has 2 values for 3 channels"),
        (signature(), Preprocessing(std=(1, 0, 1)), "--std holds a zero"),
        (signature(), Preprocessing(crop_fraction=0), "--crop-fraction 0 is not above 0"),
        (signature(), Preprocessing(crop_fraction=1.5), "--crop-fraction 1.5 is not above 0"),
        (signature("int8"), NO_NOTE, "from 0 to 255 do not fit"),
        (signature("uint8"), Preprocessing(value_range=(-1, 1)), "from -1 to 1 do not fit"),
        (signature("uint8"), Preprocessing(value_range=(256, 0)), "from 256 to 0 do not fit"),
    ],
)
def test_signature_or_note_that_takes_no_picture_is_refused(given, note, text):
    with pytest.raises(UsageError) as caught:
        image_input(given, note)
    assert text in caught.value.message


@pytest.mark.parametrize(
    ("shape", "asked", "text", "options"),
    [
        ((None, None, None, 3), {}, "the picture size for", "give --size HEIGHTxWIDTH; else"),
        ((None, 8, 8, None), {}, "the picture size for", "give --channels 1 or 3; else"),
        (None, {}, "the shape of", "give --size HEIGHTxWIDTH and --channels 1 or 3; else"),
        ((None, 8, 8, None), {"channels": 4}, "input 'x' (float", "give its --size and --channels"),
    ],
)
def test_only_options_for_what_the_shape_leaves_open_are_offered(shape, asked, text, options):
    with pytest.raises(UsageError) as caught:
        image_input(signature("float", shape), NO_NOTE, options=Preprocessing(**asked))
    assert caught.value.message.startswith(text)
    assert f"for a picture, {options}" in caught.value.remedy


def test_options_are_not_offered_where_the_shape_is_fixed():
    with pytest.raises(UsageError) as caught:
        image_input(signature("float", (None, 8, 8, 4)), NO_NOTE)
    assert "--channels" not in caught.value.remedy


@pytest.mark.parametrize("value_range", [(-128, 127), (127, -128), (0, 0)])
def test_range_that_the_integer_type_holds_is_accepted(value_range):
    note = Preprocessing(value_range=value_range)
    assert image_input(signature("int8"), note).how.value_range == value_range


# Pixels


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("float", [1, 0, 0]), ("double", [1, 0, 0]), ("uint8", [255, 0, 0]), ("int64", [255, 0, 0])],
)
def test_pixels_have_the_type_and_range_of_the_signature(dtype, expected):
    row = prepared(encode(FOUR), dtype)
    assert (row.dtype, row.shape) == (dtypes.by_name(dtype).numpy, (2, 2, 3))
    assert row[0, 0].tolist() == expected
    assert row[1, 0].tolist() == expected[::-1]


def test_flat_input_gets_the_rows_one_after_the_other():
    row = prepared(encode([[0, 255], [51, 102]]), shape=(None, 4))
    assert row.shape == (4,)
    np.testing.assert_allclose(row, [0, 1, 0.2, 0.4], atol=1e-6)


@pytest.mark.parametrize(
    ("note", "expected"),
    [
        (Preprocessing(value_range=(-1, 1)), [-1, 1, -0.6]),
        (Preprocessing(value_range=(0, 255)), [0, 255, 51]),
        (Preprocessing(value_range=(1, 0)), [1, 0, 0.8]),
        (Preprocessing(mean=(0.2,)), [-0.2, 0.8, 0]),
        (Preprocessing(std=(0.5,)), [0, 2, 0.4]),
        (Preprocessing(mean=(0.2,), std=(0.1,)), [-2, 8, 0]),
        (Preprocessing(value_range=(0, 255), mean=(51,), std=(51,)), [-1, 4, 0]),
    ],
)
def test_pixels_are_scaled_then_shifted_then_divided(note, expected):
    row = prepared(encode([[0, 255, 51]]), shape=(None, 1, 3, 1), note=note)
    assert row.dtype == np.float32
    np.testing.assert_allclose(row.ravel(), expected, atol=1e-6)


def test_mean_and_std_count_for_each_channel_by_itself():
    note = Preprocessing(mean=(0, 0.5, 1), std=(1, 0.5, 2))
    row = prepared(encode([[[255, 255, 255]]]), shape=(None, 1, 1, 3), note=note)
    np.testing.assert_allclose(row.ravel(), [1, 1, 0])


def test_integer_pixels_are_rounded_not_cut():
    note = Preprocessing(value_range=(0, 10))
    row = prepared(encode([[0, 140, 255]]), "uint8", (None, 1, 3, 1), note)
    assert row.ravel().tolist() == [0, 5, 10]  # 140 / 25.5 = 5.49
    row = prepared(encode([[141]]), "uint8", (None, 1, 1, 1), note)
    assert row.ravel().tolist() == [6]  # 5.53


# What note makes of black and white columns, 0 0 0 0 255 255 255 255, in four or six columns.
@pytest.mark.parametrize(
    ("note", "expected"),
    [
        (Preprocessing(), [0, 0, 1, 1]),
        (Preprocessing(resize="bilinear", antialias=False), [0, 0, 1, 1]),
        (Preprocessing(antialias=True), [0, 0.125, 0.875, 1]),
        (Preprocessing(resize="area"), [0, 0, 1, 1]),
        (Preprocessing(resize="nearest"), [0, 0, 1, 1]),
        (Preprocessing(resize="bicubic"), [0, -0.0625, 1.0625, 1]),
        (Preprocessing(framing="stretch", crop_fraction=0.5), [0, 0, 1, 1]),
        (Preprocessing(crop_fraction=0.25), [0, 0.25, 0.75, 1]),
        (Preprocessing(framing="centre_crop"), [0, 0, 1, 1]),
    ],
)
def test_picture_of_another_size_is_resized_height_first(note, expected):
    wide = np.zeros((4, 8, 3), np.uint8)
    wide[:, 4:] = 255
    row = prepared(encode(wide), shape=(None, 2, 4, 3), note=note)
    assert row.shape == (2, 4, 3)
    np.testing.assert_allclose(row[:, :, 0], [expected] * 2, atol=1e-6)


def test_padding_is_black_before_the_pixels_are_scaled():
    note = Preprocessing(framing="pad", value_range=(-1, 1), mean=(1,))
    row = prepared(encode(np.full((2, 4, 3), 255)), shape=(None, 4, 4, 3), note=note)
    assert row[:, 0, 0].tolist() == [-2, 0, 0, -2]


def test_centre_crop_takes_the_middle_in_the_proportions_of_the_input():
    wide = np.repeat(np.uint8([[0, 10, 20, 30, 40, 50]]), 2, axis=0)
    note = Preprocessing(framing="centre_crop")
    row = prepared(encode(wide), "uint8", (None, 2, 2, 1), note)
    assert row[:, :, 0].tolist() == [[20, 30]] * 2


def test_blue_comes_first_in_bgr_and_mean_counts_in_that_order():
    note = Preprocessing(channel_order="bgr", value_range=(0, 255), mean=(1, 2, 3))
    row = prepared(encode([[[10, 20, 30]]]), shape=(None, 1, 1, 3), note=note)
    assert row.ravel().tolist() == [29, 18, 7]


@pytest.mark.parametrize(
    ("note", "expected"),
    [
        (Preprocessing(mode="tf"), [1, -1, -0.6]),
        (Preprocessing(mode="torch"), [2.2489, -2.0357, -0.9156]),
        (Preprocessing(mode="caffe"), [51 - 103.939, -116.779, 255 - 123.68]),
        (Preprocessing(mode="tf", value_range=(0, 1)), [1, 0, 0.2]),
        (Preprocessing(mode="caffe", channel_order="rgb", mean=(0,)), [255, 0, 51]),
    ],
)
def test_mode_stands_for_what_is_not_said_beside_it(note, expected):
    row = prepared(encode([[[255, 0, 51]]]), shape=(None, 1, 1, 3), note=note)
    np.testing.assert_allclose(row.ravel(), expected, atol=1e-3)


def test_integer_pixels_stay_within_their_type():
    wide = np.zeros((1, 8), np.uint8)
    wide[:, 4:] = 255
    note = Preprocessing(resize="bicubic")  # which overshoots
    row = prepared(encode(wide), "uint8", (None, 1, 4, 1), note)
    assert row.ravel().tolist() == [0, 0, 255, 255]


@pytest.mark.parametrize(
    ("alias", "note", "text"),
    [
        ("x", NO_NOTE, False),
        ("image_bytes", NO_NOTE, False),
        ("image_b64", NO_NOTE, True),
        ("B64", NO_NOTE, True),
        ("b64_image", NO_NOTE, True),
        ("base64_jpeg", NO_NOTE, True),
        ("image_b64", Preprocessing(encoding="raw"), False),
        ("x", Preprocessing(encoding="websafe"), True),
    ],
)
def test_string_input_gets_text_if_its_name_or_the_note_says_so(alias, note, text):
    data = encode(FOUR)
    wanted = image_input(Signature("s", {alias: tensor("string", (None,))}, {}, ""), note)
    sent = prepare(data, wanted, name="cat.png")[()]
    assert sent == (base64.urlsafe_b64encode(data) if text else data)


def test_plain_base64_is_that_of_rfc_4648():
    data = encode(FOUR, "BMP") + b"\xff" * 30
    note = Preprocessing(encoding="base64")
    sent = prepared(data, "string", (None,), note)[()]
    assert b"/" in sent
    assert base64.b64decode(sent, validate=True) == data


# Kinds of pictures


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_picture_of_any_mode_becomes_colour_or_grey(mode):
    kind = "TIFF" if mode in {"CMYK", "YCbCr"} else "PNG"
    data = encode([[0, 255], [255, 0]], kind, mode)
    colour = prepared(data)
    np.testing.assert_allclose(colour[:, :, 0], [[0, 1], [1, 0]], atol=0.02)
    grey = prepared(data, shape=(None, 2, 2, 1))
    np.testing.assert_allclose(grey[:, :, 0], [[0, 1], [1, 0]], atol=0.02)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_picture_of_every_usual_format_is_read(kind):
    red = np.tile(np.uint8([200, 30, 30]), (16, 16, 1))
    row = prepared(encode(red, kind), "uint8", (None, 16, 16, 3))
    assert abs(row.astype(int) - [200, 30, 30]).max() <= 8


def test_sixteen_bit_colour_keeps_its_upper_byte():
    row = prepared(png_of_sixteen_bits([0x1234, 0x80FF, 0xFFFF]), "uint8", (None, 1, 1, 3))
    assert row.ravel().tolist() == [0x12, 0x80, 0xFF]


def png_of_sixteen_bits(pixel):
    """A PNG of one pixel, red, green and blue with 16 bits each, which Pillow cannot write."""

    def chunk(kind, content):
        check = zlib.crc32(kind + content).to_bytes(4, "big")
        return len(content).to_bytes(4, "big") + kind + content + check

    header = chunk(b"IHDR", bytes([0, 0, 0, 1, 0, 0, 0, 1, 16, 2, 0, 0, 0]))
    rows = zlib.compress(b"\0" + b"".join(each.to_bytes(2, "big") for each in pixel))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize("transparency", [0, bytes([0, 128, 255])])
def test_transparent_colour_of_a_palette_is_that_colour(transparency):
    buffer = io.BytesIO()
    picture = Image.fromarray(np.uint8([[0, 1, 2]]), "L").convert("P")
    picture.putpalette([9, 8, 7, 1, 2, 3, 255, 0, 51])
    picture.save(buffer, "PNG", transparency=transparency)
    row = prepared(buffer.getvalue(), "uint8", (None, 1, 3, 3))
    assert row.tolist() == [[[9, 8, 7], [1, 2, 3], [255, 0, 51]]]


def test_first_frame_of_an_animation_is_the_picture():
    buffer = io.BytesIO()
    first, *more = [Image.new("L", (2, 2), grey) for grey in (10, 200, 90)]
    first.save(buffer, "GIF", save_all=True, append_images=more)
    row = prepared(buffer.getvalue(), "uint8", (None, 2, 2, 1))
    assert (row == 10).all()


def test_damaged_exif_tag_leaves_the_picture_as_it_is():
    exif = b"Exif\0\0" + b"MM\0*\0\0\0\x08\0\x7f" + bytes(range(100))
    data = encode(np.full((8, 8), 90), "JPEG", exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks about the damage
        row = prepared(data, "uint8", (None, 8, 8, 1))
    assert (row == 90).all()


def test_much_exif_is_no_obstacle():
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "x" * 60_000
    data = encode(np.full((8, 16), 90), "JPEG", exif=exif)
    assert prepared(data, "uint8", (None, 8, 8, 1)).shape == (8, 8, 1)


def test_transparency_is_dropped():
    row = prepared(encode([[[10, 20, 30, 0]]]), "uint8", (None, 1, 1, 3))
    assert row.ravel().tolist() == [10, 20, 30]


def test_sixteen_bit_picture_keeps_its_upper_byte():
    buffer = io.BytesIO()
    Image.fromarray(np.array([[0, 0x1234], [0x80FF, 0xFFFF]], np.uint16)).save(buffer, "PNG")
    row = prepared(buffer.getvalue(), "uint8", (None, 2, 2, 1))
    assert row.ravel().tolist() == [0, 0x12, 0x80, 0xFF]


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [
        (1, [[1, 2], [3, 4]]),
        (2, [[2, 1], [4, 3]]),
        (3, [[4, 3], [2, 1]]),
        (4, [[3, 4], [1, 2]]),
        (5, [[1, 3], [2, 4]]),
        (6, [[3, 1], [4, 2]]),
        (7, [[4, 2], [3, 1]]),
        (8, [[2, 4], [1, 3]]),
    ],
)
def test_picture_is_turned_upright_as_its_exif_tag_says(orientation, expected):
    exif = Image.Exif()
    exif[0x0112] = orientation
    quarters = np.kron(np.uint8([[1, 2], [3, 4]]) * 60, np.ones((8, 8), np.uint8))
    data = encode(quarters, "JPEG", quality=100, exif=exif)
    row = prepared(data, "uint8", (None, 2, 2, 1))
    assert np.rint(row[:, :, 0] / 60).astype(int).tolist() == expected


# What is no picture


def jpeg():
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3))
    return encode(pixels, "JPEG")


@pytest.mark.parametrize("encoded", [False, True])
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"just some text\n",
        jpeg()[:-200],
        jpeg()[:40],
        encode(FOUR)[:-26],
        b"%PDF-1.7 ...",
        b"GIF89a",
    ],
    ids=["empty", "text", "cut-jpeg", "cut-jpeg-head", "cut-png", "pdf", "cut-gif"],
)
def test_data_that_is_no_whole_picture_is_refused_by_name(data, encoded):
    wanted = image_input(signature("string", (None,)) if encoded else signature(), NO_NOTE)
    with pytest.raises(InvalidRequest) as caught:
        prepare(data, wanted, name="cat.jpg")
    assert caught.value.message.startswith("cat.jpg is not a picture that can be read")


@pytest.mark.parametrize(
    ("pixels", "text"),
    [
        (np.float32([[0.1, 0.9]]), "floating-point"),
        (np.int32([[0, 200]]), "of 32 bits"),
        (np.int32([[0, 70_000]]), "of 32 bits"),
    ],
)
def test_picture_whose_black_and_white_nothing_tells_is_refused(pixels, text):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "TIFF")
    with pytest.raises(InvalidRequest, match=text) as caught:
        prepared(buffer.getvalue())
    assert "8 or 16 bits" in caught.value.remedy


def test_sixteen_bit_pgm_keeps_its_upper_byte():
    row = prepared(b"P5 2 1 65535 \x12\x34\xff\xff", "uint8", (None, 1, 2, 1))
    assert row.ravel().tolist() == [0x12, 0xFF]


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "TIFF"])
def test_remedy_for_a_cut_picture_is_not_the_format_that_it_has(form):
    whole = encode(np.random.default_rng(1).integers(0, 256, (64, 64, 3)).tolist(), form)
    with pytest.raises(InvalidRequest) as caught:
        prepared(whole[: len(whole) // 2])
    assert caught.value.remedy.startswith("it is cut off or damaged: copy or download it again")


def bmp(width, height):
    """A BMP that claims to be large; it has no checksum that would notice."""
    small = encode(FOUR, "BMP")
    return small[:18] + width.to_bytes(4, "little") + height.to_bytes(4, "little") + small[26:]


@pytest.mark.parametrize("size", [(9460, 9460), (20_000, 20_000)], ids=["over", "far-over"])
@pytest.mark.parametrize("channels", [1, 3])
def test_decompression_bomb_is_refused_before_it_unpacks(size, channels):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with pytest.raises(InvalidRequest) as caught:
            prepared(bmp(*size), shape=(None, 2, 2, channels))
    assert caught.value.message.startswith("cat.png has more than 89,478,485 pixels: ")
    assert "--max-pixels" in caught.value.remedy


@pytest.mark.parametrize("limit", [99, 100, None])
def test_limit_of_pixels_is_that_of_pillow(monkeypatch, limit):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    data = encode(np.zeros((10, 10)))
    if limit != 99:
        assert prepared(data).shape == (2, 2, 3)
        return
    with (
        pytest.warns(Image.DecompressionBombWarning),
        pytest.raises(InvalidRequest, match="more than 99 pixels: 10 x 10"),
    ):
        prepared(data)


def test_damaged_data_is_refused_or_read_but_breaks_nothing():
    rng = random.Random(7)
    whole = [jpeg(), encode(FOUR), encode(FOUR, "GIF"), encode(FOUR, "BMP"), encode(FOUR, "WEBP")]
    refused = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks about the damage
        for _ in range(400):
            data = bytearray(rng.choice(whole))
            for _ in range(rng.randrange(1, 6)):
                data[rng.randrange(min(len(data), 200))] = rng.randrange(256)
            try:
                row = prepared(bytes(data))
            except InvalidRequest:
                refused += 1
            else:
                assert (row.shape, row.dtype) == ((2, 2, 3), np.float32)
    assert 50 < refused < 400


# Files


def test_file_is_read_whole(tmp_path):
    (tmp_path / "a").write_bytes(b"\0\xff")
    assert read_file(tmp_path / "a") == b"\0\xff"


@pytest.mark.parametrize("name", ["missing.png", "."])
def test_file_that_cannot_be_read_is_refused_by_name(tmp_path, name):
    with pytest.raises(InvalidRequest) as caught:
        read_file(tmp_path / name)
    assert caught.value.message.startswith(f"cannot read {tmp_path / name}: ")
