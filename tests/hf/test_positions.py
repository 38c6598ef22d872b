import pytest
import torch
import transformers

import nystromer.hf as hf
from cases import assert_close
from families import TEXT, build
from nystromer.hf import nystromize, resize_positions
from nystromer.hf.positions import num_positions

CONFIGS = {
    "bert": transformers.BertConfig(**TEXT, max_position_embeddings=40),
    "roberta": transformers.RobertaConfig(**TEXT, max_position_embeddings=42),
    "nystromformer": hf.NystromformerConfig(**TEXT, max_position_embeddings=40),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_resize_positions_copies_what_was_learnt(name, tmp_path):
    model = transformers.AutoModel.from_config(CONFIGS[name]).eval()
    ids = torch.randint(5, 99, (1, 90))
    before, learnt = model(ids[:, :40])[0], model.embeddings.position_embeddings.weight
    resize_positions(model, 90)
    assert_close(model(ids[:, :40])[0], before, 1e-6)
    table = model.embeddings.position_embeddings.weight
    first = len(learnt) - 40
    assert torch.equal(table[:first], learnt[:first])
    assert torch.equal(table[first:], learnt[first:].repeat(3, 1)[:90])
    after = model(ids)[0]
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModel.from_pretrained(tmp_path).eval()
    assert_close(loaded(ids)[0], after, 1e-5)
    resize_positions(model, 40)
    assert_close(model(ids[:, :40])[0], before, 1e-6)


def test_a_converted_model_refuses_tokens_beyond_its_positions(tmp_path):
    model = transformers.RobertaForMaskedLM(CONFIGS["roberta"]).eval()
    model = nystromize(model, 8)
    ids = torch.randint(5, 99, (1, 41))
    model.save_pretrained(tmp_path)
    for x in (model, transformers.AutoModel.from_pretrained(tmp_path)):
        x(ids[:, :40])
        with pytest.raises(ValueError, match=r"The model has 40 positions, got 41 tokens; trunc"):
            x(ids)
        resize_positions(x, 41)(ids)


def test_a_converted_model_reads_what_the_model_read():
    """Padding that takes no position, and positions that are given."""
    model = transformers.RobertaModel(CONFIGS["roberta"]).eval()
    ids = torch.randint(5, 99, (1, 60))
    ids[:, 35:] = model.config.pad_token_id
    mask = ids != model.config.pad_token_id
    before = model(ids, attention_mask=mask.long())[0]
    nystromize(model, 8, min_length=1000)
    assert_close(model(ids, attention_mask=mask.long())[0][mask], before[mask], 1e-5)
    places = torch.arange(60)[None] % 30 + 2
    assert model(torch.full((1, 60), 7), position_ids=places)[0].isfinite().all()


def test_resize_positions_goes_with_nystromize():
    model = nystromize(resize_positions(build("bert")[0], 1000), 8)
    assert model(torch.randint(5, 99, (1, 1000)))[0].isfinite().all()


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert"])
def test_num_positions_is_what_a_model_can_read(name):
    model = build(name)[0].eval()
    count = num_positions(model)
    with torch.no_grad():
        model(torch.full((1, count), 5))
    with pytest.raises((IndexError, RuntimeError)):
        model(torch.full((1, count + 1), 5))


@pytest.mark.parametrize(("rows", "count"), [(514, 512), (130, 128)])
def test_num_positions_leaves_out_the_rows_that_no_token_takes(rows, count):
    """RoBERTa's and BERTweet's."""
    config = transformers.RobertaConfig(**TEXT, max_position_embeddings=rows, pad_token_id=1)
    assert num_positions(transformers.RobertaForMaskedLM(config)) == count


@pytest.mark.parametrize("name", CONFIGS)
def test_num_positions_reads_no_number(name):
    """They may be offloaded."""
    with torch.device("meta"):
        model = transformers.AutoModel.from_config(CONFIGS[name])
    assert num_positions(model) == 40


def test_resize_positions_refuses_models_without_a_table():
    with pytest.raises(ValueError, match="one table of learnt positions, got 0 in EuroBertModel"):
        resize_positions(build("eurobert")[0], 90)


def test_resize_positions_refuses_less_than_one():
    with pytest.raises(ValueError, match="`num_positions` must be at least 1, got 0"):
        resize_positions(build("bert")[0], 0)
