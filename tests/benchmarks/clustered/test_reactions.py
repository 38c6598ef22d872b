import random

from benchmarks.clustered.reactions import SIDE_CHAINS, TOKEN, peptide, reaction


def test_reaction_joins_two_peptides():
    text = "".join(reaction(random.Random(0)))
    precursors, product = text.split(">>")
    first, second = precursors.split(".")
    assert product == first[:-1] + second  # an O less: water
    assert text.count("[C@@H](") - text.count("[C@@H](C)CC") == 36


def test_peptides_are_cut_into_tokens_without_loss():
    text = peptide(SIDE_CHAINS)
    tokens = TOKEN.findall(text)
    assert "".join(tokens) == text
    assert {"[C@@H]", "[nH]", "c", "S"} <= set(tokens)
