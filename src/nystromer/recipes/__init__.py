"""Whole jobs on transformers' Trainer, from data to result."""
