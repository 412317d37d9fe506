"""Averages the weights in a TensorFlow 1 graph, with a session.

The published recipe: an op that averages, and three ops around an evaluation
that save the trained weights, swap the averages in, and restore. A perceptron
learns scikit-learn's handwritten digits.

    python -m examples.session_graph
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from absl import app, flags
from sklearn import datasets, model_selection

import swa_tf

v1 = tf.compat.v1

FLAGS = flags.FLAGS
flags.DEFINE_integer("steps", 600, "Training steps.", lower_bound=1)
flags.DEFINE_integer("swa_start", 300, "First step to average.", lower_bound=0)
flags.DEFINE_integer("seed", 0, "Seed of the weights and of the data.")

HIDDEN, BATCH_SIZE, LEARNING_RATE = 64, 64, 0.5


def dense(x: tf.Tensor, units: int, name: str) -> tf.Tensor:
    with v1.variable_scope(name):
        kernel = v1.get_variable(
            "kernel",
            [x.shape[-1], units],
            initializer=v1.glorot_uniform_initializer(),
        )
        bias = v1.get_variable(
            "bias", [units], initializer=v1.zeros_initializer()
        )
    return tf.matmul(x, kernel) + bias


def train(steps: int, swa_start: int, seed: int) -> dict[str, float]:
    """Trains, and returns the test accuracy before, in and after the swap."""
    images, labels = datasets.load_digits(return_X_y=True)
    train_x, test_x, train_y, test_y = model_selection.train_test_split(
        images / 16.0,
        labels,
        test_size=0.25,
        stratify=labels,
        random_state=seed,
    )
    with tf.Graph().as_default(), v1.Session() as session:
        tf.random.set_seed(seed)
        x = v1.placeholder(tf.float32, [None, 64])
        y = v1.placeholder(tf.int64, [None])
        logits = dense(tf.nn.relu(dense(x, HIDDEN, "hidden")), 10, "logits")
        loss = tf.reduce_mean(
            tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits)
        )
        correct = tf.equal(tf.argmax(logits, 1), y)
        accuracy = tf.reduce_mean(tf.cast(correct, tf.float32))
        train_op = v1.train.GradientDescentOptimizer(LEARNING_RATE).minimize(
            loss
        )

        swa = swa_tf.StochasticWeightAveraging()
        variables = v1.trainable_variables()
        with tf.control_dependencies([train_op]):
            train_and_average_op = swa.apply(variables)
        backup = swa_tf.BackupVariables(variables)
        save_op = backup.save()
        swap_op = swa_tf.assign_averages(swa, variables)
        restore_op = backup.restore()

        session.run(v1.global_variables_initializer())
        rng = np.random.default_rng(seed)
        for step in range(steps):
            batch = rng.choice(len(train_x), BATCH_SIZE)
            op = train_and_average_op if step >= swa_start else train_op
            session.run(op, {x: train_x[batch], y: train_y[batch]})

        def evaluate() -> float:
            return float(session.run(accuracy, {x: test_x, y: test_y}))

        results = {"trained": evaluate()}
        session.run(save_op)
        session.run(swap_op)
        results["averaged"] = evaluate()
        session.run(restore_op)
        results["restored"] = evaluate()
    return results


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}")
    if FLAGS.swa_start >= FLAGS.steps:
        raise app.UsageError(
            "`--swa_start` must be less than `--steps`. Received: "
            f"swa_start={FLAGS.swa_start}, steps={FLAGS.steps}"
        )
    results = train(FLAGS.steps, FLAGS.swa_start, FLAGS.seed)
    for name, value in results.items():
        print(f"{name:9s} test accuracy {100 * value:.2f} %")
    gain = 100 * (results["averaged"] - results["trained"])
    print(f"averaging changed it by {gain:+.2f} points")


if __name__ == "__main__":
    app.run(main)
