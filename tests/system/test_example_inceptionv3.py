"""examples/inceptionv3_end_to_end: bytes in, labels out, over both protocols."""

import pytest

from tests.system.example import assert_readme_shows

NAME = "inceptionv3_end_to_end"

pytestmark = pytest.mark.tensorflow


def test_both_protocols_tell_the_same_signatures_and_label(printed_by):
    printed = printed_by(NAME).read_text("utf-8")
    assert_readme_shows(NAME, printed)
    assert "tf_serving_warmup_requests: 1 request" in printed
    assert "The signatures are equal." in printed
    assert printed.endswith("gRPC and REST agree.\n")
    grpc, rest = [line for line in printed.splitlines() if line.startswith("class_")]
    assert grpc == rest
