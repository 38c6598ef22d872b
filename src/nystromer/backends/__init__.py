"""One module per way to compute Nyström attention; each has `forward` and `unsupported`.

`forward` takes what `nystrom_attention` takes, already checked. `unsupported` says in one sentence
why this backend cannot run a case, or None. Backends know nothing of one another.
"""
