"""Clustered attention: quality, speed, training."""
