"""Explanations of a bag: one number a patch, in O(N).

methods.py       `explain`, which takes one of them by its name
evidence.py      what is explained: log-odds of a class
single.py        the bag of this patch alone
attention.py     the class token's row of a layer; rollout through all layers
gradients.py     gradient x input; integrated gradients
"""

from nystromer.mil.maps.evidence import Evidence, for_class
from nystromer.mil.maps.methods import METHODS, SIGNED, explain

__all__ = ["METHODS", "SIGNED", "Evidence", "explain", "for_class"]
