"""Helpers of the scripts in v1 graphs."""

from __future__ import annotations

import tensorflow as tf

v1 = tf.compat.v1


def names_of(variables):
    return [variable.name for variable in variables]


def initialize(session):
    session.run(v1.global_variables_initializer())  # as scripts do, no more
