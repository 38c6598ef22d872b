"""Measures how good Nyström attention is on your tokens, and why.

Everything takes one sequence at a time, [1, H, N, D], and computes in float64. Shapes: H heads, N
real tokens (a mask removes the others), M landmarks, D and Dv features of keys and values.
"""

from nystromer.diagnostics.attention_maps import Maps as Maps
from nystromer.diagnostics.attention_maps import Spectrum as Spectrum
from nystromer.diagnostics.attention_maps import maps as maps
from nystromer.diagnostics.attention_maps import spectrum as spectrum
from nystromer.diagnostics.comparison import Diagnosis as Diagnosis
from nystromer.diagnostics.comparison import diagnose as diagnose
from nystromer.diagnostics.costs import Cost as Cost
from nystromer.diagnostics.costs import cost as cost
from nystromer.diagnostics.inverse import Inverse as Inverse
