"""Converting an encoder: what `nystromize` does, and what a converted encoder runs."""
