"""How much of a bare training step's speed is left to the benchmark."""
