"""The time and the memory that an average of checkpoints takes."""
