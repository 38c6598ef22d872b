"""Training on bags of patches and predicting with it: `nystromer mil train`, `mil predict`."""
