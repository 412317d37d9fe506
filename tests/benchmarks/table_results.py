"""Results of runs that nobody made, for tests of the tables."""

from benchmarks.cifar10 import config

WAYS = (
    "decayed_moving",
    "decayed_refit",
    "moving",
    "refit",
    "swa",
    "swa_refit",
)


def result(optimizer="momentumw", seed=0, accuracies=None, **settings):
    """What `results.json` has of a run: accuracies on the test images by way.

    Each loss is a hundredth of what is wrong; the validation images are a
    point above.
    """
    flags = {"optimizer": optimizer, "seed": seed, **settings}
    flags = config.as_flags(config.resolve({"preset": "digits", **flags}))
    accuracies = accuracies or dict.fromkeys(WAYS, 50.0)

    def figures(more):
        return {
            way: {"accuracy": value + more, "loss": 1.0 - (value + more) / 100}
            for way, value in accuracies.items()
        }

    return {
        "flags": flags,
        "seed": seed,
        "stack": {"python": "3.11.7", "swa_tf": "0.1.0"},
        "epochs": [{"n_models": 15}],
        "final": {"validation": figures(1.0), "test": figures(0.0)},
        "timings": {"cpus": 2, "total_seconds": 360.0},
    }
