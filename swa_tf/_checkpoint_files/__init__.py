"""Checkpoints in files: found, read and written, of TensorFlow and of Keras."""
