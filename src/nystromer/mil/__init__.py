"""Bags of patches, as whole slides are learnt from: reading feature files, and models."""
