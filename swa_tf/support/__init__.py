"""What every room may use: of TensorFlow, of Keras, of files."""
