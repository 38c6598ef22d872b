"""Training a classifier of texts (`nystromer train`) and using it (`nystromer predict`)."""
