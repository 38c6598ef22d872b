"""Converts encoders: here is what `nystromize` does, and what a converted encoder runs."""
