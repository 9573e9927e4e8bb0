"""Pictures are prepared as TensorFlow itself would do it."""

import io

import numpy as np
import pytest
from PIL import Image

from tfserve_kit.pictures.inputs import image_input
from tfserve_kit.pictures.prepare import central_crop, decode, frame, prepare, resize
from tfserve_kit.pictures.preprocessing import Preprocessing
from tfserve_kit.savedmodel import Signature, TensorSpec
from tfserve_kit.tensors import dtypes

tf = pytest.importorskip("tensorflow")
pytestmark = pytest.mark.tensorflow

TOLERANCE = 0.01  # of 255
SIZES = [  # from height and width to height and width
    ((61, 83), (28, 28)),
    ((61, 83), (7, 64)),
    ((30, 20), (61, 83)),
    ((61, 83), (61, 20)),
    ((5, 400), (9, 9)),
    ((224, 225), (224, 224)),
    ((17, 1), (8, 8)),
    ((1, 1), (3, 2)),
    ((97, 64), (1, 1)),
    ((500, 333), (299, 299)),
]


def is_thin(was, wanted):
    """Say whether less than a pixel is left within the padding, which tensorflow refuses."""
    ratio = max(was[0] / wanted[0], was[1] / wanted[1])
    return min(was) < ratio


def noise(height, width, channels=3):
    return np.random.default_rng(height * width).integers(0, 256, (height, width, channels), "u1")


def photo(height=61, width=83):
    """A picture with smooth parts and grain, as a photograph has."""
    rows, columns = np.mgrid[:height, :width]
    slopes = np.stack([columns * 3, rows * 4, (columns + rows) * 1.7], axis=-1)
    grain = np.random.default_rng(0).normal(0, 6, slopes.shape)
    return np.clip(slopes + grain, 0, 255).astype(np.uint8)


def encode(picture, kind, **how):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **how)
    return buffer.getvalue()


def distance(ours, theirs):
    theirs = np.asarray(theirs)
    assert ours.shape == theirs.shape
    return np.abs(ours.astype(np.float64) - theirs.astype(np.float64)).max()


# Sizes


@pytest.mark.parametrize(("was", "wanted"), SIZES)
@pytest.mark.parametrize(
    ("method", "antialias"),
    [
        ("bilinear", False),
        ("bilinear", True),
        ("nearest", False),
        ("bicubic", False),
        ("bicubic", True),
        ("area", False),
        ("area", True),
    ],
)
def test_resized_picture_equals_tensorflows(was, wanted, method, antialias):
    pixels = noise(*was)
    theirs = tf.image.resize(pixels, wanted, method, antialias=antialias)
    ours = resize(pixels, wanted, method, antialias=antialias)
    assert distance(ours, theirs) <= (0 if method == "nearest" else TOLERANCE)


def test_many_sizes_fall_on_the_same_pixels():
    rng = np.random.default_rng(3)
    for _ in range(60):
        was, wanted = rng.integers(1, 300, 2), rng.integers(1, 300, 2)
        pixels = noise(*was, channels=1)
        for method in ("nearest", "bilinear", "bicubic", "area"):
            ours = resize(pixels, tuple(wanted), method, antialias=False)
            assert distance(ours, tf.image.resize(pixels, wanted, method)) <= TOLERANCE


@pytest.mark.parametrize(("was", "wanted"), [each for each in SIZES if not is_thin(*each)])
@pytest.mark.parametrize("antialias", [False, True])
def test_padded_picture_equals_tensorflows(was, wanted, antialias):
    pixels = noise(*was)
    theirs = tf.image.resize_with_pad(pixels, *wanted, antialias=antialias)
    ours = frame(pixels, wanted, "pad", method="bilinear", antialias=antialias)
    assert distance(ours, theirs) <= TOLERANCE


@pytest.mark.parametrize(("was", "wanted"), SIZES)
def test_cut_picture_equals_that_of_keras(was, wanted):
    from keras.preprocessing.image import smart_resize

    pixels = noise(*was)
    theirs = smart_resize(pixels, wanted, interpolation="bilinear")
    ours = frame(pixels, wanted, "centre_crop", method="bilinear", antialias=False)
    assert distance(ours, theirs) <= TOLERANCE


@pytest.mark.parametrize("fraction", [0.875, 0.5, 0.1, 0.33, 1.0])
@pytest.mark.parametrize("size", [(61, 83), (224, 224), (299, 300), (10, 3)])
def test_central_crop_equals_tensorflows(size, fraction):
    pixels = noise(*size)
    theirs = tf.image.central_crop(pixels, fraction)
    np.testing.assert_array_equal(central_crop(pixels, fraction), theirs)


# Decoders

JPEGS = [{"quality": quality, "subsampling": how} for quality in (60, 90, 100) for how in (0, 1, 2)]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("how", [*JPEGS, {"progressive": True}], ids=str)
def test_jpeg_is_decoded_as_tensorflow_does_with_its_accurate_method(how, channels):
    data = encode(Image.fromarray(photo()), "JPEG", **how)
    theirs = tf.io.decode_jpeg(data, channels, dct_method="INTEGER_ACCURATE")
    np.testing.assert_array_equal(decode(data, "a.jpg", channels), theirs)


@pytest.mark.parametrize("how", JPEGS, ids=str)
def test_tensorflows_fast_method_is_not_far(how):
    data = encode(Image.fromarray(photo()), "JPEG", **how)
    ours = decode(data, "a.jpg", 3)
    theirs = tf.io.decode_image(data, 3, expand_animations=False)
    assert distance(ours, theirs) <= 10
    assert np.abs(ours.astype(int) - theirs.numpy().astype(int)).mean() <= 2


def test_grey_jpeg_becomes_colour_and_cmyk_becomes_rgb():
    for mode in ("L", "CMYK"):
        data = encode(Image.fromarray(photo()).convert(mode), "JPEG", quality=95)
        theirs = tf.io.decode_jpeg(data, 3, dct_method="INTEGER_ACCURATE")
        assert distance(decode(data, "a.jpg", 3), theirs) <= 1


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("channels", [1, 3])
def test_png_is_decoded_as_by_tensorflow(mode, channels):
    picture = Image.fromarray(photo())
    if mode == "I;16":
        picture = Image.fromarray(np.arange(61 * 83, dtype=np.uint16).reshape(61, 83) * 12)
    elif mode == "RGBA":
        picture.putalpha(Image.fromarray(noise(61, 83)[:, :, 0]))
    else:
        picture = picture.convert(mode)
    data = encode(picture, "PNG")
    ours, theirs = decode(data, "a.png", channels), tf.io.decode_png(data, channels)
    # Grey of colours is rounded here and cut there.
    assert distance(ours, theirs) <= (1 if channels == 1 and mode in {"P", "RGB", "RGBA"} else 0)


@pytest.mark.parametrize("kind", ["GIF", "BMP"])
def test_gif_and_bmp_are_decoded_as_by_tensorflow(kind):
    data = encode(Image.fromarray(photo()), kind)
    theirs = tf.io.decode_image(data, 3, expand_animations=False)
    np.testing.assert_array_equal(decode(data, "a", 3), theirs)


# Whole pictures


@pytest.mark.parametrize("mode", ["caffe", "tf", "torch"])
def test_mode_equals_that_of_keras(mode):
    from keras.applications.imagenet_utils import preprocess_input

    pixels = photo()
    given = TensorSpec("x:0", dtypes.by_name("float"), (None, 61, 83, 3))
    wanted = image_input(Signature("s", {"x": given}, {}, ""), Preprocessing(mode=mode))
    ours = prepare(encode(Image.fromarray(pixels), "PNG"), wanted, name="a.png")
    theirs = preprocess_input(pixels.astype(np.float32), data_format="channels_last", mode=mode)
    assert distance(ours, theirs) <= 1e-4


def test_inception_evaluation_is_central_crop_and_resize():
    pixels = photo()
    note = Preprocessing(crop_fraction=0.875, value_range=(0, 255))
    given = TensorSpec("x:0", dtypes.by_name("float"), (None, 29, 29, 3))
    ours = prepare(
        encode(Image.fromarray(pixels), "PNG"),
        image_input(Signature("s", {"x": given}, {}, ""), note),
        name="a.png",
    )
    assert distance(ours, tf.image.resize(tf.image.central_crop(pixels, 0.875), (29, 29))) <= 0.01


def test_web_safe_text_is_what_tensorflow_decodes():
    data = encode(Image.fromarray(photo()), "PNG")
    given = TensorSpec("x:0", dtypes.by_name("string"), (None,))
    wanted = image_input(Signature("s", {"image_b64": given}, {}, ""), Preprocessing())
    text = prepare(data, wanted, name="a.png")[()]
    assert tf.io.decode_base64(text).numpy() == data
