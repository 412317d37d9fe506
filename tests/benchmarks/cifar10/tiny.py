"""The flags of a run that takes seconds."""

TINY = {
    "preset": "digits",
    "max_samples": 300,
    "width": 4,
    "epochs": 3,
    "epochs_before_swa": 1,
    "batch_size": 32,
    "refit_samples": 100,
    "evaluate_every": 1,
    "seed": 1,
    "keep_weights": True,
}
