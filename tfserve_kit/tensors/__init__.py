"""Tensors on the wire: numpy arrays to and from TensorProto and REST JSON, without tensorflow."""

from tfserve_kit.tensors.dtypes import DType
from tfserve_kit.tensors.proto import (
    TensorError,
    from_proto,
    predict_request,
    predict_response,
    to_proto,
)

__all__ = ["DType", "TensorError", "from_proto", "predict_request", "predict_response", "to_proto"]
