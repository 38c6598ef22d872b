import pytest
import torch
import transformers
from huggingface_hub.errors import (
    StrictDataclassClassValidationError,
    StrictDataclassFieldValidationError,
)
from transformers import AutoConfig

import nystromer.hf as hf
from cases import assert_close, relative_error

SIZES = {
    "vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 128, "conv_kernel_size": 5,
    "num_landmarks": 8,
}  # fmt: skip
HEADS = [
    "NystromformerModel",
    "NystromformerForMaskedLM",
    "NystromformerForSequenceClassification",
    "NystromformerForTokenClassification",
    "NystromformerForQuestionAnswering",
    "NystromformerForMultipleChoice",
]


def ours(cls=hf.NystromformerModel, **fields):
    return cls(hf.NystromformerConfig(**{**SIZES, **fields})).eval()


def theirs_of(model, folder, **fields):
    """transformers' class of the same name on what ours saved."""
    model.save_pretrained(folder)
    return getattr(transformers, type(model).__name__).from_pretrained(folder, **fields).eval()


def sharpened(model):
    """With the weights of a new model attention is uniform, and every method agrees."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "query" in name or "key" in name:
                parameter.mul_(20)
    return model


def words(batch=1, n=64):
    return torch.randint(5, 99, (batch, n))


@pytest.mark.parametrize("name", HEADS)
def test_model_gives_the_numbers_of_transformers_nystrom_branch(name, tmp_path):
    """One unpadded sequence of the configured length. Weights go to transformers and back."""
    model = sharpened(ours(getattr(hf, name), segment_means_seq_len=64))
    ids = words()[:, None] if name.endswith("MultipleChoice") else words()
    expected = theirs_of(model, tmp_path / "ours")
    assert type(expected).__module__.startswith("transformers.")
    assert_close(model(ids)[0], expected(ids)[0], 1e-4)
    assert relative_error(exact_twin(model)(ids)[0], expected(ids)[0]) > 1e-3

    expected.save_pretrained(tmp_path / "theirs")
    again = getattr(hf, name).from_pretrained(tmp_path / "theirs").eval()
    assert_close(again(ids)[0], model(ids)[0], 1e-5)


def exact_twin(model):
    config = type(model.config).from_dict({**model.config.to_dict(), "exact_attention": True})
    twin = type(model)(config).eval()
    twin.load_state_dict(model.state_dict())
    return twin


def test_exact_attention_gives_the_numbers_of_transformers_dense_branch(tmp_path):
    """What the published configs, num_landmarks = segment_means_seq_len, have always run."""
    model = sharpened(ours(segment_means_seq_len=8, exact_attention=True))
    ids = words(2, 100)
    expected = theirs_of(model, tmp_path)(ids, output_attentions=True)
    got = model(ids, output_attentions=True)
    assert_close(got[0], expected[0], 1e-5)
    assert_close(got.attentions[1], expected.attentions[1], 1e-5)


def test_inverse_starts_from_each_heads_norms_where_the_config_says_so():
    """transformers' own class fails with this option."""
    shared = sharpened(ours())
    own = ours(inv_coeff_init_option=True)
    own.load_state_dict(shared.state_dict())
    assert own.config.inv_coeff_init_option is True
    ids = words()
    assert (own(ids)[0] - shared(ids)[0]).abs().max() > 1e-5


@pytest.mark.parametrize("n", [1, 7, 8, 9, 63, 101])
def test_padding_and_neighbours_change_no_valid_state(n):
    model, ids = sharpened(ours()), words(3, 120)
    alone = model(ids[1:2, :n])[0]
    mask = torch.ones(3, 120, dtype=torch.long)
    mask[1, n:] = 0
    assert_close(model(ids, attention_mask=mask)[0][1:2, :n], alone, 1e-5)


def test_every_form_of_mask_gives_the_same_states():
    model, ids = ours(), words(2, 60)
    mask = torch.ones(2, 60, dtype=torch.bool)
    mask[1, 40:] = False
    wide = mask[:, None, None].expand(2, 1, 60, 60)
    additive = torch.zeros(2, 1, 60, 60).masked_fill(~wide, torch.finfo(torch.float32).min)
    expected = model(ids, attention_mask=mask)[0]
    for form in (mask.long(), mask.float(), wide, additive):
        assert torch.equal(model(ids, attention_mask=form)[0], expected)
    assert model(ids, attention_mask=torch.zeros(2, 60))[0].isfinite().all()
    with pytest.raises(ValueError, match="the mask differs between queries"):
        model(ids, attention_mask=torch.ones(60, 60).tril().bool()[None, None])


def test_classifier_judges_by_the_mean_of_real_tokens_where_the_config_says_so():
    cls = ours(hf.NystromformerForSequenceClassification, num_labels=3)
    model = ours(hf.NystromformerForSequenceClassification, num_labels=3, classifier_pooling="mean")
    model.load_state_dict(cls.state_dict())
    ids, mask = words(2, 60), torch.ones(2, 60)
    mask[1, 40:] = 0
    states = model.nystromformer(ids, attention_mask=mask)[0]
    means = torch.stack([states[0].mean(0), states[1, :40].mean(0)])
    expected = model.classifier(means[:, None])
    wide = mask.bool()[:, None, None].expand(2, 1, 60, 60)
    for form in (mask, mask.long(), mask.bool(), wide):
        assert_close(model(ids, attention_mask=form).logits, expected, 1e-6)
    assert_close(model(ids[1:, :40]).logits, expected[1:], 1e-5)
    assert_close(cls(ids, attention_mask=mask).logits, cls.classifier(states), 1e-6)
    assert model(ids, attention_mask=torch.zeros(2, 60)).logits.isfinite().all()
    labels = torch.tensor([2, 0])
    loss, logits = model(ids, attention_mask=mask, labels=labels, return_dict=False)
    assert_close(loss, torch.nn.functional.cross_entropy(expected, labels), 1e-6)
    assert_close(logits, expected, 1e-6)
    with pytest.raises(StrictDataclassFieldValidationError, match="expected one of"):
        hf.NystromformerConfig(classifier_pooling="max")


def ngram_rows(ids, size, buckets, pad):
    """For each token the rows of the n-grams that end with it, in plain Python."""
    prime, found = 2**31 - 1, []
    for i in range(len(ids)):
        hashed, rows = ids[i], []
        for n in range(2, size + 1):
            first = ids[i - n + 1] if i - n + 1 >= 0 else pad
            hashed = (hashed + first * (1_000_003 ** (n - 1) % prime)) % prime
            rows.append((n - 2) * buckets + (hashed * 40_503 + hashed // 2**15) % buckets)
        found.append(rows)
    return found


def test_embeddings_of_ngrams_are_added_to_those_of_tokens():
    fields = {"ngram_size": 4, "ngram_buckets": 50, "initializer_range": 0.3}
    model, plain = ours(**fields), ours()
    own = {name: x for name, x in model.state_dict().items() if "ngram" not in name}
    plain.load_state_dict(own)
    table = model.embeddings.ngram_embeddings.weight
    assert table.shape == (150, 32)
    assert table.std().item() == pytest.approx(0.3 / 3**0.5, rel=0.1)
    ids = words(2, 40)
    rows = torch.tensor([ngram_rows(row, 4, 50, pad=1) for row in ids.tolist()])
    assert len(rows.unique()) > 80
    embeddings = plain.embeddings.word_embeddings(ids) + table[rows].sum(2)
    expected = plain(inputs_embeds=embeddings)[0]
    assert_close(model(ids)[0], expected, 1e-5)
    assert_close(model(inputs_embeds=embeddings)[0], expected, 1e-5)
    assert (plain(ids)[0] - expected).abs().max() > 0.1


def test_ngrams_are_saved_and_do_not_see_padding(tmp_path):
    model = ours(hf.NystromformerForSequenceClassification, ngram_size=5, ngram_buckets=50)
    model.save_pretrained(tmp_path)
    again = hf.NystromformerForSequenceClassification.from_pretrained(tmp_path).eval()
    ids, mask = words(2, 60), torch.ones(2, 60)
    ids[1, 40:], mask[1, 40:] = 1, 0
    assert torch.equal(again(ids, attention_mask=mask)[0], model(ids, attention_mask=mask)[0])
    assert_close(model(ids, attention_mask=mask)[0][1:], model(ids[1:, :40])[0], 1e-5)
    table = model.nystromformer.embeddings.ngram_embeddings
    padded = torch.nn.functional.pad(ids, (3, 0), value=1)
    assert torch.equal(table(padded)[:, 3:], table(ids))
    pretraining = ours(hf.NystromformerForPreTraining, ngram_size=5, ngram_buckets=50)
    std = pretraining.nystromformer.embeddings.ngram_embeddings.weight.std().item()
    assert std == pytest.approx(0.02 / 2, rel=0.1)


def test_masks_never_grow_with_the_square_of_the_length():
    model, seen = ours(), []
    model.encoder.layer[0].register_forward_hook(lambda module, args, output: seen.append(args[1]))
    mask = torch.ones(2, 60)
    mask[1, 40:] = 0
    model(words(2, 60), attention_mask=mask)
    assert seen[0].shape == (2, 60)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_model_runs_in_half_precision(dtype):
    model, ids = ours(), words(2)
    mask = (torch.arange(64) < torch.tensor([[64], [30]])).long()
    expected = model(ids, attention_mask=mask)[0]
    got = model.to(dtype)(ids, attention_mask=mask)[0]
    assert got.dtype == dtype
    assert_close(got, expected, 3e-2)


def test_output_attentions_are_the_map_that_values_are_multiplied_by():
    model, ids = sharpened(ours(conv_kernel_size=None)), words(2, 50)
    layer, seen = model.encoder.layer[0].attention.self, []
    layer.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output[0])))
    weights = model(ids, output_attentions=True).attentions[0]
    states, output = seen[0]
    value = layer.value(states).unflatten(2, (4, 8)).transpose(1, 2)
    assert_close((weights @ value).transpose(1, 2).flatten(2), output, 1e-5)


def test_pretraining_learns_words_and_sentence_order(tmp_path):
    model = ours(hf.NystromformerForPreTraining)
    assert not model.sentence_order.bias.any()  # initialised as the rest of the model is
    ids, order = words(2, 40), torch.tensor([0, 1])
    labels = ids.masked_fill(torch.rand(ids.shape) < 0.8, -100)
    both = model(ids, labels=labels, sentence_order_label=order)
    parts = [model(ids, labels=labels).loss, model(ids, sentence_order_label=order).loss]
    assert_close(both.loss, parts[0] + parts[1], 1e-6)
    assert both.prediction_logits.shape == (2, 40, 99)
    assert both.sop_logits.shape == (2, 2)
    assert model(ids).loss is None
    both.loss.backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None]
    assert missing == []
    model.save_pretrained(tmp_path)
    words_only = transformers.NystromformerForMaskedLM.from_pretrained(tmp_path)
    assert torch.equal(words_only.cls.predictions.bias, model.cls.predictions.bias)


def test_only_asked_words_are_predicted():
    model = ours(hf.NystromformerForPreTraining).eval()
    ids, order = words(3, 40), torch.tensor([0, 1, 1])
    labels = ids.masked_fill(torch.rand(ids.shape) < 0.8, -100)
    every = model(ids, labels=labels, sentence_order_label=order)
    asked = model(ids, labels=labels, sentence_order_label=order, only_asked=True)
    assert_close(asked.loss, every.loss, 1e-6)
    assert_close(asked.prediction_logits, every.prediction_logits[labels != -100], 1e-5)
    nothing = torch.full_like(ids, -100)
    loss = model(ids, labels=nothing, sentence_order_label=order, only_asked=True).loss
    assert_close(loss, model(ids, sentence_order_label=order).loss, 1e-6)


class Rows(torch.utils.data.Dataset):
    def __init__(self, **columns):
        self.columns = columns

    def __len__(self):
        return 4

    def __getitem__(self, i):
        return {name: column[i] for name, column in self.columns.items()}


@pytest.mark.parametrize("cls", ["NystromformerForMaskedLM", "NystromformerForPreTraining"])
def test_accumulated_batches_count_as_one(tmp_path, cls):
    """transformers' own class adds gradients up: four accumulated batches count fourfold."""
    ids, norms = words(4, 40), []
    labels = ids.masked_fill(torch.arange(40) % 7 > 0, -100)
    rows = Rows(input_ids=ids, labels=labels)
    if cls.endswith("PreTraining"):
        rows.columns["sentence_order_label"] = torch.tensor([0, 1, 1, 0])
    for batch in (4, 1):
        args = transformers.TrainingArguments(
            tmp_path,
            max_steps=1,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=4 // batch,
            logging_steps=1,
            report_to=[],
            use_cpu=True,
            dataloader_pin_memory=False,
            disable_tqdm=True,
        )
        torch.manual_seed(1)
        model = ours(getattr(hf, cls), hidden_dropout_prob=0.0)
        trainer = transformers.Trainer(model, args, train_dataset=rows)
        trainer.train()
        norms.append(trainer.state.log_history[0]["grad_norm"])
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)


AUTO = {
    "AutoModel": "NystromformerModel",
    "AutoModelForMaskedLM": "NystromformerForMaskedLM",
    "AutoModelForPreTraining": "NystromformerForPreTraining",
    "AutoModelForSequenceClassification": "NystromformerForSequenceClassification",
    "AutoModelForTokenClassification": "NystromformerForTokenClassification",
    "AutoModelForQuestionAnswering": "NystromformerForQuestionAnswering",
    "AutoModelForMultipleChoice": "NystromformerForMultipleChoice",
}


@pytest.mark.parametrize("auto", AUTO)
def test_auto_classes_find_ours(auto, tmp_path):
    cls = getattr(hf, AUTO[auto])
    ours(cls, exact_attention=True).save_pretrained(tmp_path)
    auto_class = getattr(transformers, auto)
    model = auto_class.from_pretrained(tmp_path)
    assert type(model) is cls
    assert model.config.exact_attention is True
    assert type(auto_class.from_config(AutoConfig.from_pretrained(tmp_path))) is cls


def test_transformers_config_is_taken_too():
    model = hf.NystromformerModel(transformers.NystromformerConfig(**SIZES))
    assert isinstance(model.config, hf.NystromformerConfig)


def test_tokens_beyond_the_positions_are_refused():
    model = ours(hf.NystromformerForMaskedLM)
    message = r"The model has 128 positions, got 129 tokens; truncate .*resize_positions"
    with pytest.raises(ValueError, match=message):
        model(words(n=129))
    with pytest.raises(ValueError, match=message):
        model(inputs_embeds=torch.randn(1, 129, 32))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"conv_kernel_size": 4}, "`conv_kernel_size` must be odd, got 4"),
        ({"conv_kernel_size": 0}, "`conv_kernel_size` must be at least 1, got 0"),
        ({"num_landmarks": 0}, "`num_landmarks` must be at least 1, got 0"),
    ],
)
def test_config_refuses(fields, message):
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        hf.NystromformerConfig(**fields)


def test_presets_have_the_sizes_of_the_paper():
    small, base = (
        hf.NystromformerConfig.bert_small(vocab_size=9),
        hf.NystromformerConfig.bert_base(),
    )
    assert (small.num_hidden_layers, small.hidden_size, small.vocab_size) == (4, 512, 9)
    assert (base.num_hidden_layers, base.hidden_size, base.num_attention_heads) == (12, 768, 12)
