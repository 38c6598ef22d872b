"""What every recipe uses: runs and checkpoints, rows of files, tokenizers, curves, model sizes."""
