"""Converting an encoder from files (`nystromer convert`, `inspect`, `calibrate`), with training."""
