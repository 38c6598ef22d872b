"""Benchmarks against others, a folder a subject; `python -m benchmarks` lists them."""
