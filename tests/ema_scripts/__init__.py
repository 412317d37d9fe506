"""Scripts that give the same with TensorFlow's average and with ours."""
