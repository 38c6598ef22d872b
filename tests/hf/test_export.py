"""torch.export and torch.compile take the models whole: nothing is decided on a tensor's values."""

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

from cases import assert_close
from nystromer.hf import LayerChoice, NystromformerConfig, NystromformerModel, Plan, nystromize
from nystromer.registration import of_torch_alone

SIZES = {
    "vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 48,
}  # fmt: skip
CLUSTERS = {"num_query_clusters": 4, "num_key_clusters": 4, "num_exact_keys": 8}
CLUSTERED = {"attention": "clustered", **CLUSTERS}
NYSTROM = {"num_landmarks": 8, "conv_kernel_size": 3}


def ours(**fields):
    fields = {"num_landmarks": 16, "conv_kernel_size": 5, **fields}
    return NystromformerModel(NystromformerConfig(**SIZES, **fields))


def bert(*choices):
    layers = [
        LayerChoice(f"encoder.layer.{i}.attention.self", num_heads=4, **choice)
        for i, choice in enumerate(choices)
    ]
    return nystromize(BertModel(BertConfig(**SIZES)), plan=Plan("bert", tuple(layers)))


MODELS = {
    "Nyströmformer": ours,
    "Nyströmformer, exact": lambda: ours(exact_attention=True),
    "Nyströmformer, n-grams": lambda: ours(ngram_size=3, conv_kernel_size=None),
    "Nyström": lambda: bert(NYSTROM, {"num_landmarks": 8, "ridge": 0.01}),
    "Nyström of any length": lambda: bert(*2 * [{"num_landmarks": 8, "min_length": 1}]),
    "clustered": lambda: bert(CLUSTERED, CLUSTERED),
    "some heads": lambda: bert({**NYSTROM, "exact_heads": (2, 0)}, {"attention": "exact"}),
    "some heads, clustered": lambda: bert({**CLUSTERED, "exact_heads": (1,)}, NYSTROM),
    "k-means": lambda: bert(*2 * [{"num_landmarks": 8, "landmarks": "kmeans"}]),
}
LENGTHS = ((2, 96), (3, 97), (4, 31), (1, 200), (2, 7))  # rows, tokens


def build(name):
    """With sharp attention and trained taps, so that every method gives other numbers."""
    model = MODELS[name]().eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "query" in name or "key" in name:
            parameter.mul_(20)
        if "nystrom_conv" in name:
            nn.init.normal_(parameter)
    return model


def inputs(rows, tokens, masked):
    ids = torch.randint(5, 99, (rows, tokens))
    lengths = torch.randint(1, tokens + 1, (rows, 1))
    lengths[0] = tokens
    mask = torch.arange(tokens) < lengths
    return {"input_ids": ids, **({"attention_mask": mask.long()} if masked else {})}


def check(traced, model, batches):
    for batch in batches:
        expected = model(**batch).last_hidden_state
        assert_close(traced(**batch).last_hidden_state, expected, 1e-5)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_exports_for_one_shape(name, masked):
    model, batch = build(name), inputs(2, 96, masked)
    program = torch.export.export(model, (), kwargs=batch, strict=False)
    check(program.module(), model, [batch])


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_exports_for_any_shape(name, masked):
    """One graph for long, short and mixed batches, masked or not."""
    model = build(name)
    batches = [inputs(*shape, masked) for shape in LENGTHS]
    sizes = {0: torch.export.Dim("rows", max=64), 1: torch.export.Dim("tokens", max=500)}
    program = torch.export.export(
        model, (), kwargs=batches[0], strict=False, dynamic_shapes=dict.fromkeys(batches[0], sizes)
    )
    check(program.module(), model, batches)


@pytest.mark.parametrize("name", ["Nyströmformer", "some heads, clustered", "Nyström", "k-means"])
def test_a_graph_of_torch_alone_has_no_operation_of_ours(name):
    """Other runtimes know none. The lengths that made the graph are no part of it."""
    model = build(name)
    batches = [inputs(*shape, masked=name != "Nyströmformer") for shape in LENGTHS]
    sizes = {0: torch.export.Dim("rows", max=64), 1: torch.export.Dim("tokens", max=500)}
    with of_torch_alone():
        program = torch.export.export(
            model, (), batches[0], dynamic_shapes=dict.fromkeys(batches[0], sizes), strict=False
        )
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not [target for target in targets if "nystromer" in target]
    check(program.module(), model, batches)


def test_an_exported_model_reads_more_than_a_block_of_kmeans(monkeypatch):
    monkeypatch.setattr("nystromer.landmarks.KMEANS_BLOCK", 100)
    test_a_model_exports_for_any_shape("k-means", True)


@pytest.mark.parametrize("name", ["Nyströmformer", "some heads, clustered", "k-means"])
def test_a_model_compiles_without_a_break(name):
    torch.compiler.reset()
    model = build(name)
    traced = torch.compile(model, fullgraph=True, backend="eager")
    check(traced, model, [inputs(*shape, masked=True) for shape in ((2, 96), (3, 97), (2, 7))])


def test_a_traced_model_refuses_a_causal_mask_when_it_runs():
    """The check of a mask's values goes into the graph."""
    model = bert(NYSTROM, NYSTROM).eval()
    ids, wide = torch.randint(5, 99, (2, 60)), torch.ones(2, 1, 60, 60, dtype=torch.bool)
    batch = {"input_ids": ids, "attention_mask": wide}
    with torch.no_grad():
        program = torch.export.export(model, (), kwargs=batch, strict=False).module()
        check(program, model, [batch])
        with pytest.raises(RuntimeError, match="the mask differs between queries"):
            program(input_ids=ids, attention_mask=wide.tril())
