"""The image folder example: run as a newcomer runs it; and what its training accepts and writes."""

import importlib.util
import re
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tfserve_kit.pictures.preprocessing import Preprocessing

EXAMPLE = Path(__file__).parents[2] / "examples" / "image_folder_classifier"
A_DAY_S = 86_400

pytestmark = pytest.mark.tensorflow


def test_second_version_takes_over_under_traffic_and_the_first_stays_in_service(printed_by):
    printed = printed_by(EXAMPLE.name).read_text("utf-8")
    rates = re.findall(r"^Inference error rate: (.+)%$", printed, re.MULTILINE)
    first, second = map(float, rates)
    assert second <= 5 and second < first
    lines = re.findall(r"^(?:text|figure) [01](?:\.\d+)? withheld/(?:text|figure)/\d+\.png$",
                       printed, re.MULTILINE)  # fmt: skip
    assert len(lines) == 16
    assert " 0 lost, 0 wrong answers" in printed
    assert len(re.findall(r"^pages +\d+ +AVAILABLE", printed, re.MULTILINE)) == 2
    assert re.search(
        r"^Version \d+ took over from \d+, and no request was lost.$", printed, re.MULTILINE
    )
    assert printed.endswith("Stopped default\n")
    for exported in re.findall(r"^SavedModel: exported/(.+)$", printed, re.MULTILINE):
        assert abs(time.time() - int(exported)) < A_DAY_S


@pytest.fixture(scope="module")
def train():
    pytest.importorskip("tensorflow")
    spec = importlib.util.spec_from_file_location("image_folder_train", EXAMPLE / "train.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def pictures(tmp_path):
    """Five dark and five bright pictures."""
    for name, shade in (("bright", 230), ("dark", 20)):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(5):
            path = tmp_path / "pictures" / name / f"{number}.png"
            Image.new("RGB", (40, 30), (shade, shade, shade + number)).save(path)
    return tmp_path / "pictures"


def empty_class(folder):
    (folder / "empty").mkdir()


def one_class(folder):
    (folder / "dark").rename(folder / ".dark")


def no_class(folder):
    one_class(folder)
    (folder / "bright").rename(folder / ".bright")


def no_picture(folder):
    (folder / "dark" / "3.png").write_bytes(b"no picture")


def half_a_picture(folder):
    path = folder / "dark" / "3.png"
    path.write_bytes(path.read_bytes()[:60])


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (no_class, "holds 0 class folders (none); it takes two or more"),
        (one_class, "holds 1 class folders (bright); it takes two or more"),
        (empty_class, "empty holds no pictures; add some or remove the folder"),
        (no_picture, "3.png cannot be read"),
        (half_a_picture, "3.png cannot be read"),
    ],
)
def test_unusable_folder_is_refused_with_a_remedy(
    train, pictures, fault, message, capsys, monkeypatch
):
    fault(pictures)
    monkeypatch.setattr(sys, "argv", ["train.py", str(pictures), "--model-dir", "exported"])
    with pytest.raises(SystemExit) as ended:
        train.main()
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "0"], "--steps: '0' is not a whole number of at least 1"),
        (["--batch-size", "many"], "--batch-size: 'many' is not a whole number of at least 1"),
        (["--learning-rate", "-1"], "--learning-rate: '-1' is not a number above 0"),
        (["--learning-rate", "nan"], "--learning-rate: 'nan' is not a number above 0"),
        (["--validation-share", "1"], "--validation-share: '1' is not a share from 0 to below 1"),
        (["--image-size", "8"], "--image-size: '8' is not a whole number of at least 32"),
        (["--base", "MobileNetV9"], "--base MobileNetV9 is not known; give small-cnn"),
        (["--base", ""], "is not known; give small-cnn"),
    ],
)
def test_unusable_option_is_refused_with_a_remedy(
    train, pictures, options, message, capsys, monkeypatch
):
    argv = ["train.py", str(pictures), "--model-dir", "exported", *options]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit) as ended:
        train.main()
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_saved_model_of_a_folder_serves_as_base_and_the_export_says_what_it_takes(
    train, pictures, tmp_path, capsys, monkeypatch
):
    tf = train.tf

    class Means(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], name="images")])
        def __call__(self, images):
            return tf.reduce_mean(images, [1, 2])

    tf.saved_model.save(Means(), str(tmp_path / "means"))
    options = ["--base", "means", "--image-size", "32", "--steps", "40", "--learning-rate", "0.3"]
    argv = ["pictures", "--model-dir", "exported", *options, "--logdir", "logs", "--no-augment"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py", *argv])
    train.main()

    printed = capsys.readouterr().out
    assert "validation accuracy: 100.0% of 2 pictures" in printed
    (exported,) = (tmp_path / "exported").iterdir()
    assert printed.endswith(f"SavedModel: exported/{exported.name}\n")
    assert Preprocessing.read(exported) == Preprocessing(
        32, 32, 3, (0.0, 255.0), labels=("bright", "dark"), antialias=True
    )
    serve = tf.saved_model.load(str(exported)).signatures["serving_default"]
    images = np.stack([np.full((32, 32, 3), shade, np.float32) for shade in (10, 240)])
    answer = serve(images=tf.constant(images))
    assert answer["classes"].numpy().tolist() == [b"dark", b"bright"]
    assert answer["scores"].shape == (2, 2)
    (events,) = (tmp_path / "logs").iterdir()
    assert events.read_bytes().count(b"accuracy") == 40


def test_share_kept_aside_is_taken_from_every_class_and_leaves_one_picture(train):
    labels = np.array([0] * 10 + [1] * 5 + [2])
    aside = train._kept_aside(labels, 0.4, seed=3)
    assert np.bincount(labels[aside], minlength=3).tolist() == [4, 2, 0]
    assert train._kept_aside(np.array([0, 1]), 0.9, seed=3).sum() == 0
