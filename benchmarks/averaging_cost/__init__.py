"""The time and the memory that averaging takes, beside other averagers."""
