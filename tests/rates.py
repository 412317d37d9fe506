"""Learning rates that callbacks see and set."""

import tensorflow as tf

keras_callbacks = tf.keras.callbacks


class Rates(keras_callbacks.Callback):
    """Records the rate that each epoch trains with."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_end(self, batch, logs=None):
        if batch == 0:
            rate = self.model.optimizer.learning_rate
            self.seen.append(round(float(tf.convert_to_tensor(rate)), 6))


def halves(epoch):
    return 0.1 * 0.5**epoch
