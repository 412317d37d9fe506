"""A grid of runs of `benchmarks.cifar10`, and the tables of all of them."""
