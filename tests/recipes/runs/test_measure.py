from torch import nn, ones

from nystromer.recipes.runs.measure import step_peak_bytes


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 64)

    def forward(self, x):
        return {"loss": self.layer(x).tanh().sum()}


def test_step_peak_bytes_grows_with_the_batch_and_leaves_the_model_alone():
    model = Model()
    small, large = (step_peak_bytes(model, {"x": ones(rows, 64)}) for rows in (2000, 8000))
    assert 3 < large / small < 5
    assert 2 * 2000 * 64 * 4 <= small < 6 * 2000 * 64 * 4
    assert model.layer.weight.grad is None
