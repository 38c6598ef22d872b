"""Folders that other runtimes read, from a tiny encoder with a layer of each attention."""

import json
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel

from nystromer.export import agreement, encoder, graphs
from nystromer.export.agreement import Agreement
from nystromer.hf import LayerChoice, Plan, nystromize
from recipes.conftest import tiny_bert, word_tokenizer

MODULES = ("Transformer", "Pooling", "Normalize")
CLUSTERS = {"num_query_clusters": 4, "num_key_clusters": 2, "num_exact_keys": 4}
LAYERS = (
    {"num_landmarks": 4, "ridge": 0.01, "landmarks": "kmeans", "conv_kernel_size": 3},
    {"attention": "clustered", **CLUSTERS},
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A converted encoder, as a folder of sentence-transformers."""
    path = tmp_path_factory.mktemp("sentences")
    choices = [
        LayerChoice(f"encoder.layer.{i}.attention.self", num_heads=4, **layer)
        for i, layer in enumerate(LAYERS)
    ]
    nystromize(tiny_bert(), plan=Plan("bert", tuple(choices))).save_pretrained(path)
    word_tokenizer().save_pretrained(path)
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{x}" if i else "", "type": f"a.models.{x}"}
        for i, x in enumerate(MODULES)
    ]
    (path / "modules.json").write_text(json.dumps(modules))
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    return path


@pytest.fixture(scope="module")
def exported(folder, tmp_path_factory):
    """Its folder for ONNX Runtime, and what was found."""
    pytest.importorskip("onnxruntime")
    output = tmp_path_factory.mktemp("exported") / "out"
    return output, encoder.export_encoder(str(folder), output, quantize=None)


def test_the_readme_of_an_exported_folder_runs_without_torch(exported, folder):
    output, found = exported
    assert found.float32.difference < 1e-4
    assert b"nystromer/" not in (output / "model.onnx").read_bytes()  # no file of this machine
    code = re.search("```python\n(.*)```", (output / "README.md").read_text(), re.S)[1]
    assert len(code.splitlines()) == 5
    blocked = "import sys; sys.modules['torch'] = None; sys.modules['transformers'] = None\n"
    show = "\nprint(output.tolist())"
    ran = subprocess.run(
        [sys.executable, "-c", blocked + code.replace('"a text"', '"w1 w2"') + show],
        cwd=output, capture_output=True, text=True, check=True,
    )  # fmt: skip
    vectors = torch.tensor(json.loads(ran.stdout))
    batch = AutoTokenizer.from_pretrained(folder)(["w1 w2", "another one"], return_tensors="pt")
    states = AutoModel.from_pretrained(folder).eval()(**batch).last_hidden_state
    expected = torch.nn.functional.normalize(states.mean(1), dim=-1)
    torch.testing.assert_close(vectors, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("lengths", [(1,), (7, 3), (12, 64, 13), (16, 17), (63, 0)])
def test_the_graph_reads_any_length(exported, folder, lengths):
    output, _ = exported
    model = AutoModel.from_pretrained(folder)
    head = encoder.read_sentence_head(str(folder))
    embedder = encoder.Embedder(model, head, ("input_ids", "attention_mask"))
    inputs = agreement.ragged(embedder, lengths)
    with torch.no_grad():
        expected = embedder(*inputs.values())
    run = agreement.onnx_runtime(output / "model.onnx")
    found = torch.from_numpy(run({name: x.numpy() for name, x in inputs.items()}))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.fixture
def reused(exported, monkeypatch):
    """Has the graph that was exported once serve again."""

    def copied(_, file, **options):
        file.write_bytes((exported[0] / "model.onnx").read_bytes())

    monkeypatch.setattr(graphs, "export_onnx", copied)


def test_export_openvino_agrees_with_torch(folder, reused, tmp_path, run):
    pytest.importorskip("openvino")
    code, out, _ = run("export", folder, "--output", tmp_path / "out", "--to", "openvino")
    assert (code, "Largest difference to torch" in out) == (0, True)
    assert {"model.xml", "model.bin", "tokenizer.json"} <= {
        x.name for x in (tmp_path / "out").iterdir()
    }


def test_int8_is_smaller_and_says_what_it_costs(exported, folder, reused, tmp_path, run):
    output = tmp_path / "out"
    code, out, _ = run("export", folder, "--output", output, "--quantize", "int8")
    assert code == 0
    cosine = re.search(r"With int8 weights: \S+, smallest cosine to torch ([01]\.\d{4})", out)[1]
    assert 0.9 < float(cosine) <= 1
    sizes = [(x / "model.onnx").stat().st_size for x in (output, exported[0])]
    assert sizes[0] < sizes[1]


def test_a_graph_that_differs_from_torch_is_not_written(folder, monkeypatch, tmp_path, run):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(encoder.graphs, "export_onnx", lambda *_, **__: None)
    monkeypatch.setitem(encoder.RUNTIMES, "onnx", lambda _: None)
    monkeypatch.setattr(encoder.agreement, "agreement", lambda *_: Agreement(0.5, 0.1))
    code, _, error = run("export", folder, "--output", tmp_path / "out")
    assert (code, error[:40]) == (1, "The exported graph differs from torch by")
    assert not list(tmp_path.iterdir())


BAD = {
    "--to gguf": r"`--to` must be one of onnx, openvino, torch, got 'gguf'\.",
    "--quantize int4": r"`--quantize` must be one of int8, got 'int4'\.",
    "--quantize int8 --to openvino": r"`--quantize` is for --to onnx, got --to openvino; leave it",
    "--opset 17": r"`--opset` must be at least 18, the oldest that torch exports to, got 17;",
    "--max-length 65": r"`--max-length` must lie in 1 \.\.\. 64, for .* has as many positions, got",
}


@pytest.mark.parametrize("words", BAD)
def test_export_refuses_bad_options_in_a_sentence(words, folder, tmp_path, run):
    pytest.importorskip("onnxscript")
    code, _, error = run("export", folder, "--output", tmp_path / "out", *words.split())
    assert code == 2
    assert re.search(BAD[words], error)
    assert not list(tmp_path.iterdir())


def test_export_refuses_bad_folders_in_a_sentence(folder, tmp_path, run):
    pytest.importorskip("onnxscript")
    output, plain, full = (tmp_path / x for x in ("out", "plain", "full"))
    tiny_bert().save_pretrained(plain)
    word_tokenizer().save_pretrained(plain)
    full.mkdir()
    (full / "a").touch()
    for name, where, message in (
        (tmp_path / "none", output, "No model can be loaded from"),
        (
            plain,
            output,
            "was never converted, so its attention costs the square of the length; run",
        ),
        (folder, full, "`--output` must be a new folder, got"),
    ):
        code, _, error = run("export", name, "--output", where)
        assert (code, message in error) == (2, True)
        assert not output.exists()


@pytest.mark.parametrize(
    ("package", "oldest", "message"),
    [
        (
            "not_there",
            "1",
            r"`--to onnx` needs not_there, which is not installed: pip install nystr",
        ),
        (
            "torch",
            "99.0",
            r"`--to onnx` needs torch 99\.0 or newer, got 2\.\S+: pip install --upgr",
        ),
    ],
)
def test_a_missing_or_old_package_is_named(package, oldest, message):
    with pytest.raises(ImportError, match=message):
        encoder.check_package(package, oldest, "onnx")


def test_a_graph_needs_as_many_tokens_as_clusters():
    choice = LayerChoice("a", "clustered", num_query_clusters=64, min_length=40)
    config = BertConfig()
    config.nystrom = Plan("bert", (choice,)).to_dict()
    with pytest.raises(NotImplementedError, match=r"for 40 tokens and more in a, .* 64 clusters"):
        encoder.refuse_unconverted("m", config, exact=False)


@pytest.mark.skipif(graphs.compiler() is None, reason="needs a C++ compiler")
def test_export_torch_agrees_with_torch(tmp_path):
    """A package of one layer: to compile more takes a minute."""
    config = BertConfig(
        vocab_size=204, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=64,
    )  # fmt: skip
    nystromize(BertModel(config).eval(), 4).save_pretrained(tmp_path / "model")
    word_tokenizer().save_pretrained(tmp_path / "model")
    found = encoder.export_encoder(str(tmp_path / "model"), tmp_path / "out", to="torch")
    assert found.float32.difference < 1e-4
    assert (tmp_path / "out" / "model.pt2").exists()


def test_torch_needs_a_compiler(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(encoder.graphs, "compiler", lambda: None)
    with pytest.raises(ValueError, match=r"needs a C\+\+ compiler, got none; install g\+\+"):
        encoder.export_encoder(str(folder), tmp_path / "out", to="torch")


def test_every_pooling_is_the_one_of_sentence_transformers():
    sentences = pytest.importorskip("sentence_transformers")
    from nystromer.export.embedder import pooled
    from nystromer.recipes.inputs.sentences import POOLINGS

    states, mask = torch.randn(3, 9, 4), torch.ones(3, 9, dtype=torch.int64)
    mask[1, 4:], mask[2, :3] = 0, 0
    for pooling in POOLINGS:
        theirs = sentences.sentence_transformer.modules.Pooling(4, pooling)
        expected = theirs({"token_embeddings": states, "attention_mask": mask})
        found = pooled(states, mask.bool(), pooling)
        torch.testing.assert_close(found, expected["sentence_embedding"])


def test_the_server_of_the_guide_answers(exported, tmp_path):
    guide = Path(encoder.__file__).parents[3] / "docs" / "deploy.md"
    code = re.search("```python\n(.*?)```", guide.read_text(encoding="utf-8"), re.S)[1]
    (tmp_path / "server.py").write_text(code)
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "server.py", exported[0], str(port)]
    with subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.DEVNULL) as server:
        try:
            vectors = asked(f"http://localhost:{port}", ["w1 w2", "w3"])
        finally:
            server.kill()
    assert [len(x) for x in vectors] == [32, 32]


def asked(url, texts):
    """Asks until the server is there."""
    for _ in range(300):
        try:
            with urllib.request.urlopen(url, json.dumps(texts).encode()) as answer:
                return json.load(answer)
        except OSError:
            time.sleep(0.1)
    raise TimeoutError(url)
