import torch

from benchmarks.clustered.training import SIZES, ClusteredAttention
from nystromer.recipes.demo.model import Classifier, ExactAttention


def test_clustered_twin_of_few_tokens_is_exact():
    torch.manual_seed(0)
    exact = Classifier(ExactAttention, 3, SIZES).eval()
    for name, taps in exact.named_parameters():
        if name.endswith("conv_weight"):
            torch.nn.init.normal_(taps)
    clustered = Classifier(ClusteredAttention, 3, SIZES).eval()
    clustered.load_state_dict(exact.state_dict())
    few, many = torch.randint(256, (2, 50)), torch.randint(256, (2, 300))
    torch.testing.assert_close(clustered(few)["logits"], exact(few)["logits"])
    difference = clustered(many)["logits"] - exact(many)["logits"]
    assert 1e-6 < difference.abs().max() < 1
