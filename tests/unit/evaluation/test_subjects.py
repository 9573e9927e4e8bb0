"""What becomes the input, which output holds the scores, and small pictures."""

import io

import numpy as np
import pytest
from PIL import Image

from tests.unit.evaluation.made import tensor
from tfserve_kit.clients import Target
from tfserve_kit.errors import InvalidRequest, UsageError
from tfserve_kit.evaluation.classes import Classes
from tfserve_kit.evaluation.examples import as_png, row_of, thumbnail
from tfserve_kit.evaluation.run import Subject
from tfserve_kit.pictures.model import PictureModel, PictureOptions
from tfserve_kit.pictures.prepare import prepare
from tfserve_kit.pictures.preprocessing import Preprocessing
from tfserve_kit.savedmodel import Signature


def signature(inputs=None, **outputs):
    return Signature("serving_default", inputs or {"x": tensor("float", (None, 4))}, outputs, "")


def subject(spec, note=Preprocessing(), *, ready=False):  # noqa: B008
    outputs = {"scores": tensor("float", (None, 3))}
    model = PictureModel(signature({"x": spec}, **outputs), PictureOptions(note), ready=ready)
    return Subject("version 1", Target("m"), 1, model, Classes(None, ()))


PIXELS = np.array([[0, 51], [102, 255]], np.uint8)


class TestRow:
    @pytest.mark.parametrize("content", [PIXELS, PIXELS[..., None], PIXELS.ravel()])
    def test_pixels_are_prepared_as_pictures_are(self, content):
        row = row_of(content, subject(tensor("float", (None, 2, 2, 1))).model.input, "x")
        np.testing.assert_allclose(row[..., 0], [[0, 0.2], [0.4, 1]], rtol=1e-6)

    def test_encoded_pictures_are_prepared(self):
        about = subject(tensor("float", (None, 4)))
        encoded = as_png(PIXELS)
        np.testing.assert_array_equal(
            row_of(encoded, about.model.input, "x"), prepare(encoded, about.model.input, name="x")
        )

    def test_the_note_counts(self):
        note = Preprocessing(value_range=(-1.0, 1.0))
        row = row_of(PIXELS, subject(tensor("float", (None, 4)), note).model.input, "x")
        np.testing.assert_allclose(row, [-1, -0.6, -0.2, 1], rtol=1e-6)

    def test_a_row_of_pixels_has_the_model_s_size_if_it_fits(self):
        spec = tensor("uint8", (None, 1, 4, 1))
        assert row_of(PIXELS.ravel(), subject(spec).model.input, "x").shape == (1, 4, 1)

    def test_a_row_of_pixels_that_is_no_picture_is_refused(self):
        with pytest.raises(InvalidRequest, match="5 pixels make neither a square"):
            row_of(np.zeros(5, np.uint8), subject(tensor("float", (None, 4))).model.input, "x")

    def test_models_that_decode_get_a_picture(self):
        row = row_of(PIXELS, subject(tensor("string", (None,))).model.input, "x")
        assert Image.open(io.BytesIO(row[()])).size == (2, 2)

    @pytest.mark.parametrize(
        "shape", [(None, 2, 2), (None, 4), (None, None), (None, None, None), None]
    )
    def test_other_numbers_are_sent_as_they_are(self, shape):
        values = np.array([[-3.5, 0], [7, 1e6]])
        row = row_of(values, subject(tensor("float", shape), ready=True).model.input, "x")
        assert row.dtype == np.float32
        assert row.ravel().tolist() == [-3.5, 0, 7, 1e6]

    @pytest.mark.parametrize(
        ("dtype", "values", "fault"),
        [
            ("float", np.int64([1, 2, 3, 4]), "is int64, and the input is float"),
            ("int32", np.float32([1, 2, 3, 4]), "is float32, and the input is int32"),
            ("int8", np.int64([1, 2, 3, 300]), "input is int8 .*, which cannot hold 300"),
            ("float", np.float64([1, 2, 3, 1e300]), "which cannot hold 1e"),
            ("float", np.float32([1, 2]), r"has the shape \[2\]"),
            (None, np.float32([1, 2, 3, 4]), "the input is opaque"),
        ],
    )
    def test_numbers_of_another_kind_or_shape_are_refused(self, dtype, values, fault):
        with pytest.raises(InvalidRequest, match=fault):
            row_of(values, subject(tensor(dtype, (None, 4)), ready=True).model.input, "x")

    def test_pictures_need_an_input_for_pictures(self):
        with pytest.raises(UsageError, match="picture size"):
            subject(tensor("float", (None, 5)))
        assert subject(tensor("float", (None, 5)), ready=True).model.input.alias == "x"


class TestPictures:
    @pytest.mark.parametrize(
        ("shape", "mode", "size"),
        [((2, 3), "L", (3, 2)), ((2, 3, 1), "L", (3, 2)), ((2, 3, 3), "RGB", (3, 2)),
         ((16,), "L", (4, 4)), ((27,), "RGB", (3, 3))],
    )  # fmt: skip
    def test_pixels_come_back_from_png(self, shape, mode, size):
        pixels = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
        with Image.open(io.BytesIO(as_png(pixels))) as image:
            assert (image.mode, image.size) == (mode, size)
            np.testing.assert_array_equal(np.asarray(image).ravel(), pixels.ravel())

    def test_thumbnail_is_small_and_upright(self):
        stream, exif = io.BytesIO(), Image.Exif()
        exif[0x0112] = 6  # turned by a quarter
        Image.new("CMYK", (300, 100)).save(stream, "JPEG", exif=exif)
        with Image.open(io.BytesIO(thumbnail(stream.getvalue(), Preprocessing(), 60))) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "RGB", (20, 60))

    def test_thumbnail_of_a_row_has_the_model_s_size(self):
        how = Preprocessing(height=2, width=8, channels=1)
        with Image.open(io.BytesIO(thumbnail(np.zeros(16, np.uint8), how, 60))) as image:
            assert image.size == (8, 2)

    def test_numbers_have_no_thumbnail(self):
        assert thumbnail(np.zeros((2, 2), np.float32), Preprocessing(), 60) is None


def test_fixed_batch_is_the_first_size():
    spec = tensor("float", (8, 4))
    assert subject(spec).model.input.rows == 8


def test_a_detector_is_refused_before_anything_is_sent():
    outputs = {
        "boxes": tensor("float", (None, 9, 4)),
        "scores": tensor("float", (None, 9)),
        "classes": tensor("float", (None, 9)),
    }
    model = PictureModel(signature(**outputs), PictureOptions(), ready=True)
    with pytest.raises(UsageError, match="answers with objects") as caught:
        Subject("version 1", Target("m"), 1, model, Classes(None, ()))
    assert "--output" in caught.value.remedy


def test_a_threshold_needs_scores():
    model = PictureModel(signature(classes=tensor("int64", (None,))), PictureOptions(), ready=True)
    with pytest.raises(UsageError, match="a threshold is for scores"):
        Subject("version 1", Target("m"), 1, model, Classes(None, ()), 0.5)
