"""Signatures made up of a dtype and a shape for each input and output."""

from tfserve_kit.savedmodel import Signature, TensorSpec, signatures
from tfserve_kit.tensors import dtypes


def made(inputs, outputs=None, *, known=None):
    """Return a signature.

    Args:
        inputs: (dtype's name, shape) by alias; None in a shape is an open axis.
        outputs: likewise; one float [?] if left out.
        known: which kinds of composites the model takes; None if only the signature is known.
    """
    ins = _specs(inputs)
    outs = _specs(outputs or {"y": ("float", (None,))})
    return Signature("s", ins, outs, "", composites=signatures.find_composites(ins, known))


def _specs(given):
    return {
        alias: TensorSpec(f"{alias}:0", dtypes.by_name(dtype), shape)
        for alias, (dtype, shape) in given.items()
    }


RAGGED = {"r": ("float", (None,)), "r_1": ("int64", (None,))}
NESTED = {"r": ("int32", (None, 3)), "r_1": ("int64", (None,)), "r_2": ("int64", (None,))}
SPARSE = {"s": ("int64", (None, 2)), "s_1": ("float", (None,)), "s_2": ("int64", (2,))}
