"""The Nyströmformer models, and the checkpoints of the original repository."""
