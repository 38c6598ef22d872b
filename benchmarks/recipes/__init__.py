"""Models trained from scratch: classifiers and the Long Range Arena."""
