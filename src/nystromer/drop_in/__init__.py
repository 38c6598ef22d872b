"""Nyström attention in modules that exist: torch's own layers and timm's vision transformers."""

from nystromer.drop_in.convert import nystromize as nystromize
