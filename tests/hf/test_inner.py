"""A module that holds a transformers model: a SentenceTransformer."""

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

import nystromer
from families import TEXT
from nystromer.hf import nystromize, plan_of, resize_positions
from nystromer.hf.inner import transformers_model
from nystromer.hf.positions import num_positions


def bert():
    return BertModel(BertConfig(**TEXT, max_position_embeddings=40)).eval()


class Holder(nn.Sequential):
    max_seq_length = 40


@pytest.mark.parametrize("function", [nystromize, nystromer.nystromize])
def test_nystromize_converts_the_model_that_a_module_holds(function):
    holder = Holder(nn.ModuleDict({"model": bert()}), nn.Linear(32, 2))
    assert function(holder, 8) is holder
    assert [x.num_landmarks for x in plan_of(holder).layers] == [8, 8]


def test_resize_positions_takes_the_most_tokens_along():
    holder = Holder(bert())
    assert resize_positions(holder, 90) is holder
    assert (holder.max_seq_length, num_positions(holder[0])) == (90, 90)
    holder[0](torch.randint(5, 99, (1, 90)))


def test_two_models_are_refused_by_their_number():
    with pytest.raises(TypeError, match=r"got Holder, which holds 2\."):
        transformers_model(Holder(bert(), bert()))
    with pytest.raises(TypeError, match=r"hold one as a SentenceTransformer does, got list\."):
        transformers_model([bert()])


def test_a_sentence_transformer_comes_back_converted(tmp_path):
    sentences = pytest.importorskip("sentence_transformers")
    from transformers import BertTokenizerFast

    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"]))
    bert().save_pretrained(tmp_path / "bert")
    BertTokenizerFast(str(vocabulary), model_max_length=40).save_pretrained(tmp_path / "bert")
    model = sentences.SentenceTransformer(str(tmp_path / "bert"), device="cpu")
    resize_positions(nystromer.nystromize(model, 4), 90)
    model.save_pretrained(str(tmp_path / "out"))
    loaded = sentences.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    assert loaded.max_seq_length == 90
    assert plan_of(loaded) == plan_of(model)
    texts = ["a b c d e f g h " * 9, "a"]
    assert (loaded.encode(texts) == model.encode(texts)).all()
