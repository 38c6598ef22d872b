"""Holds the Nyströmformer models, and reads the checkpoints of the original repository."""
