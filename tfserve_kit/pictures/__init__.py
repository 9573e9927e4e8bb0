"""Pictures as TensorFlow prepares them, without tensorflow."""
