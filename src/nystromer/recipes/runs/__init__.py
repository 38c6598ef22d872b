"""A run: one training in one folder, with its checkpoints, its order of rows and its curves."""
