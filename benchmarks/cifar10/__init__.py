"""SWA and batch-norm refitting, measured in training runs."""
