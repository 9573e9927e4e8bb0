"""Warm-up requests: stored with a model, checked, and refused for a version in service."""

import json
import shutil

import numpy as np
import pytest

from tfserve_kit import savedmodel, tfrecord
from tfserve_kit.errors import PushRefused, UsageError
from tfserve_kit.serving import warmup


@pytest.fixture
def model(tmp_path, models):
    return shutil.copytree(models / "half_plus_two" / "1", tmp_path / "model")


def test_random_requests_of_each_size_are_stored(model):
    file, signatures, batch_sizes, records = warmup.store(model, (1, 4))
    assert file == model / savedmodel.WARMUP_FILE
    assert batch_sizes == [1, 4] and signatures == ["serving_default"]
    assert records == len(list(tfrecord.read(file))) == 2
    assert warmup.check(model) == (file, 2)


def test_all_signatures_are_called_where_none_is_named(model):
    _, signatures, _, _ = warmup.store(model, (1,), names=None)
    assert set(signatures) == set(savedmodel.read_signatures(model))


def test_content_of_files_is_stored(model, tmp_path):
    (tmp_path / "x.json").write_text(json.dumps({"instances": [1.0, 2.0]}))
    file, *_ = warmup.store(model, (2,), files=[tmp_path / "x.json"])
    record = next(iter(tfrecord.read(file)))
    assert np.float32([1, 2]).tobytes() in record


def test_what_is_there_is_replaced_only_if_asked(model):
    warmup.store(model, (1,))
    with pytest.raises(UsageError):
        warmup.store(model, (1, 2))
    assert warmup.store(model, (1, 2), replace=True)[-1] == 2


def test_signature_that_is_not_there_is_refused_with_the_nearest(model):
    with pytest.raises(UsageError, match="no signature 'serving_defualt'") as caught:
        warmup.store(model, (1,), names=["serving_defualt"])
    assert caught.value.remedy == "did you mean serving_default? (--signature)"
    assert not (model / savedmodel.WARMUP_FILE).exists()


def test_model_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(UsageError, match="cannot read the SavedModel"):
        warmup.store(tmp_path / "none", (1,))


def test_model_without_requests_has_none(model):
    assert warmup.check(model)[1] == 0


def test_requests_that_no_server_could_replay_are_refused(model):
    file, *_ = warmup.store(model, (1,))
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(PushRefused):
        warmup.check(model)


def test_version_in_a_base_path_is_refused_also_behind_a_link(tmp_path, model):
    base = shutil.copytree(model, tmp_path / "base" / "7").parent
    (tmp_path / "link").symlink_to(base / "7")
    for place in (base / "7", tmp_path / "link"):
        with pytest.raises(UsageError, match="looks like version 7 of the base path") as caught:
            warmup.refuse_version(place)
        assert "--in-place" in caught.value.remedy
    warmup.refuse_version(model)
