import pytest

from nystromer.hf import LayerChoice, Plan

PLAN = Plan(
    "bert",
    (
        LayerChoice("a", num_heads=2, ridge=0.1),
        LayerChoice("b", "exact", note="x"),
        LayerChoice("c", "clustered", num_exact_keys=8),
    ),
)


def test_plan_survives_json():
    assert Plan.from_json(PLAN.to_json()) == PLAN


def test_plan_leaves_defaults_out_of_its_json():
    assert PLAN.to_dict()["layers"] == [
        {"name": "a", "attention": "nystrom", "num_landmarks": 64, "ridge": 0.1, "num_heads": 2},
        {"name": "b", "attention": "exact", "note": "x"},
        {
            "name": "c",
            "attention": "clustered",
            "num_query_clusters": 64,
            "num_key_clusters": 16,
            "num_exact_keys": 8,
        },
    ]


def test_plan_reads_what_was_written_before_there_was_clustered_attention():
    old = """{"model_type": "bert", "layers": [
      {"name": "a", "attention": "nystrom", "num_landmarks": 8, "landmarks": "kmeans", "ridge": 0.1,
       "exact_heads": [1], "conv_kernel_size": 3, "conv_taps": [[0, 1, 2], [3, 4, 5]],
       "num_heads": 2},
      {"name": "b", "attention": "exact", "num_landmarks": 8, "num_heads": 2}]}"""
    nystrom, exact = Plan.from_json(old).layers
    assert (nystrom.attention, nystrom.keys, nystrom.exact_heads) == ("nystrom", 16, (1,))
    assert exact.attention == "exact"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "`plan` must be JSON, got text that is not"),
        ("{}", "must hold model_type and layers .* got something else: 'model_type'"),
        ('{"model_type": "bert", "layers": [{"name": "a", "m": 1}]}', "unexpected .*'m'"),
        ('["bert"]', "must hold model_type and layers"),
    ],
)
def test_plan_from_json_refuses_what_is_not_a_plan(text, message):
    with pytest.raises(ValueError, match=message):
        Plan.from_json(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"attention": "linear"},
            "`attention` must be one of 'nystrom', 'clustered', 'exact', got 'linear'",
        ),
        ({"landmarks": "random"}, "`landmarks` must be one of 'segment_means', 'kmeans'"),
        ({"num_key_clusters": 0, "attention": "clustered"}, "`num_key_clusters` must be at least"),
        (
            {"num_exact_keys": 8},
            "`num_exact_keys` belongs to clustered attention, got 8 with 'nystrom'; that has num_l",
        ),
        (
            {"attention": "clustered", "num_landmarks": 8},
            "`num_landmarks` belongs to Nyström attention, got 8 with 'clustered'; that has num_q",
        ),
        ({"attention": "clustered", "conv_kernel_size": 3}, "`conv_kernel_size` belongs to Nyst"),
        ({"num_landmarks": 0}, "`num_landmarks` must be at least 1, got 0"),
        ({"min_length": 0}, "`min_length` must be at least 1, got 0"),
        ({"ridge": 0.0}, "`ridge` must be above 0, got 0.0; None means six steps"),
        ({"conv_kernel_size": 4}, "`conv_kernel_size` must be odd, got 4"),
        ({"conv_taps": [[1, 2]]}, "`conv_taps` must hold conv_kernel_size=None numbers .*got .2"),
        (
            {"conv_taps": [[1.0]], "conv_kernel_size": 1, "num_heads": 2},
            "`conv_taps` must hold a row for each of the 2 heads, got 1 rows",
        ),
        ({"exact_heads": [2], "num_heads": 2}, r"`exact_heads` must lie in 0 ... 1, got \[2\]"),
        ({"exact_heads": [-1], "num_heads": 2}, r"`exact_heads` must lie in 0 ... 1, got \[-1\]"),
    ],
)
def test_layer_choice_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        LayerChoice("a", **options)


def test_layer_choice_is_exact_below_twice_the_keys_it_scores():
    assert LayerChoice("a", num_landmarks=16).exact_below == 64
    assert LayerChoice("a", "clustered", num_exact_keys=8).exact_below == 2 * (64 + 16 + 8)
    assert LayerChoice("a", "clustered", min_length=5).exact_below == 5
