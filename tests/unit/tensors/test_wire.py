"""Requests and responses as bytes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.tensors.drawn import TEXT, arrays, string_arrays
from tfserve_kit import protos
from tfserve_kit.tensors import from_proto, predict_request, predict_response, to_proto


class TestPredictRequest:
    @staticmethod
    def through_messages(inputs, spec, output_filter):
        message = protos.PredictRequest(model_spec=spec, output_filter=output_filter)
        for alias, array in inputs.items():
            message.inputs[alias].CopyFrom(to_proto(array))
        return message

    @settings(deadline=None)
    @given(
        st.dictionaries(TEXT, arrays() | string_arrays(), max_size=3),
        st.lists(TEXT, max_size=2),
    )
    def test_bytes_parse_to_the_message_that_the_classes_build(self, inputs, output_filter):
        spec = protos.ModelSpec(name="mödel", signature_name="s")
        spec.version.value = 7
        content = predict_request(inputs, spec.SerializeToString(), output_filter)
        wanted = self.through_messages(inputs, spec, output_filter)
        assert protos.PredictRequest.FromString(content) == wanted
        assert len(content) == wanted.ByteSize()

    @pytest.mark.parametrize("size", [0, 1, 100, 127, 128, 129, 16_383, 16_384, 2_097_152])
    def test_lengths_of_every_varint_width_are_right(self, size):
        array = np.arange(size, dtype=np.uint8)
        spec = protos.ModelSpec(name="m" * 200).SerializeToString()
        found = protos.PredictRequest.FromString(
            predict_request({"x" * 130: array}, spec, ["y" * 150])
        )
        assert found.model_spec.name == "m" * 200
        assert list(found.output_filter) == ["y" * 150]
        np.testing.assert_array_equal(from_proto(found.inputs["x" * 130]), array)

    def test_dtype_that_tensorflow_lacks_is_refused(self):
        with pytest.raises(TypeError, match="datetime64"):
            predict_request({"x": np.zeros(1, "M8[s]")}, b"")


class TestPredictResponse:
    @settings(deadline=None)
    @given(st.dictionaries(TEXT, arrays() | string_arrays(), max_size=3), st.booleans())
    def test_bytes_parse_to_the_message_that_the_classes_build(self, outputs, as_content):
        spec = protos.ModelSpec(name="mödel", signature_name="s", version={"value": 7})
        wanted = protos.PredictResponse(model_spec=spec)
        for alias, array in outputs.items():
            wanted.outputs[alias].CopyFrom(to_proto(array, as_content=as_content))
        content = predict_response(outputs, spec.SerializeToString(), as_content=as_content)
        found = protos.PredictResponse.FromString(content)
        # As bytes: a NaN is unlike itself.
        assert found.SerializeToString(deterministic=True) == wanted.SerializeToString(
            deterministic=True
        )
        assert len(content) == wanted.ByteSize()

    @pytest.mark.parametrize(
        ("dtype", "field"), [("f4", "float_val"), ("f8", "double_val"), ("?", "bool_val")]
    )
    def test_numbers_go_to_the_typed_field_unless_content_is_wanted(self, dtype, field):
        array = np.array([1, 0, 1], dtype)
        for as_content in (False, True):
            content = predict_response({"y": array}, b"", as_content=as_content)
            tensor = protos.PredictResponse.FromString(content).outputs["y"]
            assert list(getattr(tensor, field)) == ([] if as_content else [1, 0, 1])
            assert bool(tensor.tensor_content) == as_content
