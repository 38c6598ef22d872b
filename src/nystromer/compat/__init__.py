"""Stands in for packages that people use today: same calls, same weights, our computation."""
