"""Functions become signatures of a SavedModel."""

import tensorflow as tf


def spec(shape, dtype, name):
    return tf.TensorSpec(shape, dtype, name=name)


def save(folder, function, *specs, module=None, **more):
    """Save a function as `serving_default`; `more` are signatures by name, saved as they are."""
    module = module or tf.Module()
    module.serve = tf.function(function, input_signature=list(specs))
    for name, each in more.items():
        setattr(module, f"other_{name}", each)
    signatures = {"serving_default": module.serve, **more}
    tf.saved_model.save(module, str(folder), signatures=signatures)


def changed(folder, change):
    """Change the written SavedModel by a function of its protobuf."""
    from tensorflow.core.protobuf import saved_model_pb2

    file = folder / "saved_model.pb"
    proto = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    change(proto)
    file.write_bytes(proto.SerializeToString())
    return proto
