"""Samples of models from a Gaussian over the weights of training (SWAG)."""

from swa_tf.swag.gaussian import SWAGaussian
from swa_tf.swag.prediction import predict_samples
from swa_tf.swag.sampling import assign_sample, sampled_weights

__all__ = ["SWAGaussian", "assign_sample", "predict_samples", "sampled_weights"]
