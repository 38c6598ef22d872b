"""Tiny random models of every family that can be converted, and of some that cannot."""

import torch
import transformers as t

WIDTH = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = {**WIDTH, "vocab_size": 99, "intermediate_size": 48}
VISION = {**WIDTH, "intermediate_size": 48, "image_size": 32, "patch_size": 4}
BART = {
    "vocab_size": 99, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "max_position_embeddings": 128,
}  # fmt: skip
WHISPER = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "vocab_size": 99,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "num_mel_bins": 8, "max_source_positions": 60,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
    "max_target_positions": 20,
}  # fmt: skip
SPEECH = {
    **WIDTH, "intermediate_size": 48, "conv_dim": (16, 16), "conv_kernel": (10, 4),
    "conv_stride": (8, 4), "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
    "num_feat_extract_layers": 2, "mask_time_prob": 0.0, "layerdrop": 0.0,
}  # fmt: skip
MODERN = {**TEXT, "num_hidden_layers": 3, "pad_token_id": 0, "local_attention": 8}
T5 = {"vocab_size": 99, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
CLIP_TEXT = {**TEXT, "eos_token_id": 2, "max_position_embeddings": 80}


def text(model, batch=2, n=64, padded=20):
    mask = torch.ones(batch, n, dtype=torch.long)
    if padded:
        mask[1:, n - padded :] = 0
    return {"input_ids": torch.randint(5, 99, (batch, n)), "attention_mask": mask}


def image(model, batch=2):
    config = model.config
    return {"pixel_values": torch.randn(batch, config.num_channels, 32, 32)}


def video(model):
    return {"pixel_values": torch.randn(2, model.config.num_frames, 3, 32, 32)}


def speech(model):
    mask = torch.ones(2, 2000, dtype=torch.long)
    mask[1:, 1200:] = 0
    return {"input_values": torch.randn(2, 2000), "attention_mask": mask}


def spectrum(model):
    config = model.config
    return {"input_values": torch.randn(2, config.max_length, config.num_mel_bins)}


def mel(model):
    return {"input_features": torch.randn(2, model.config.num_mel_bins, 120)}


def encoder_of(cls):
    return lambda config: cls(config).get_encoder()


# name: (constructor, config, inputs)
FAMILIES = {
    "bert": (t.BertModel, t.BertConfig(**TEXT), text),
    "roberta": (t.RobertaModel, t.RobertaConfig(**TEXT), text),
    "xlm-roberta": (t.XLMRobertaModel, t.XLMRobertaConfig(**TEXT), text),
    "electra": (t.ElectraModel, t.ElectraConfig(**TEXT, embedding_size=16), text),
    "albert": (t.AlbertModel, t.AlbertConfig(**TEXT, embedding_size=16), text),
    "distilbert": (
        t.DistilBertModel,
        t.DistilBertConfig(vocab_size=99, dim=32, n_layers=2, n_heads=4, hidden_dim=48),
        text,
    ),
    "esm": (
        t.EsmModel,
        t.EsmConfig(**TEXT, position_embedding_type="rotary", mask_token_id=4, pad_token_id=1),
        text,
    ),
    "eurobert": (
        t.EuroBertModel,
        t.EuroBertConfig(**TEXT, num_key_value_heads=2, pad_token_id=0),
        text,
    ),
    "siglip-text": (t.SiglipTextModel, t.SiglipTextConfig(**TEXT), text),
    "wav2vec2": (t.Wav2Vec2Model, t.Wav2Vec2Config(**SPEECH), speech),
    "wav2vec2-layer-norm": (
        t.Wav2Vec2Model,
        t.Wav2Vec2Config(**SPEECH, feat_extract_norm="layer", do_stable_layer_norm=True),
        speech,
    ),
    "hubert": (t.HubertModel, t.HubertConfig(**SPEECH), speech),
    "bart-encoder": (encoder_of(t.BartModel), t.BartConfig(**BART), text),
    "whisper-encoder": (encoder_of(t.WhisperModel), t.WhisperConfig(**WHISPER), mel),
    "vit": (t.ViTModel, t.ViTConfig(**VISION), image),
    "dinov2": (t.Dinov2Model, t.Dinov2Config(**VISION), image),
    "ast": (
        t.ASTModel,
        t.ASTConfig(
            **WIDTH, intermediate_size=48, patch_size=4, frequency_stride=4, time_stride=4,
            max_length=32, num_mel_bins=16,
        ),
        spectrum,
    ),
    "clip-vision": (t.CLIPVisionModel, t.CLIPVisionConfig(**VISION), image),
    "siglip-vision": (t.SiglipVisionModel, t.SiglipVisionConfig(**VISION), image),
    "videomae": (t.VideoMAEModel, t.VideoMAEConfig(**VISION, num_frames=4), video),
}  # fmt: skip


# name: (constructor, config, layers that cannot be converted, the reason)
REFUSED = {
    "gpt2": (
        t.GPT2Model,
        t.GPT2Config(vocab_size=99, n_embd=32, n_layer=2, n_head=4),
        "h.0.attn",
        "it is causal, and a landmark",
    ),
    "llama": (
        t.LlamaModel,
        t.LlamaConfig(**TEXT, pad_token_id=0),
        "layers.0.self_attn",
        "it is causal, and a landmark",
    ),
    "bert-decoder": (
        t.BertModel,
        t.BertConfig(**TEXT, is_decoder=True),
        "encoder.layer.0.attention.self",
        "it is causal, and a landmark",
    ),
    "clip-text": (
        t.CLIPTextModel,
        t.CLIPTextConfig(**CLIP_TEXT),
        "encoder.layers.0.self_attn",
        "it is causal, and a landmark",
    ),
    "bart": (
        t.BartModel,
        t.BartConfig(**BART),
        "decoder.layers.0.encoder_attn",
        "it is cross-attention or a decoder's",
    ),
    "whisper": (
        t.WhisperModel,
        t.WhisperConfig(**WHISPER),
        "decoder.layers.0.encoder_attn",
        "it is cross-attention or a decoder's",
    ),
    "t5-encoder": (
        t.T5EncoderModel,
        t.T5Config(**T5),
        "encoder.block.0.layer.0.SelfAttention",
        "it adds a position bias",
    ),
    "beit": (
        t.BeitModel,
        t.BeitConfig(**VISION, use_relative_position_bias=True),
        "layers.0.attention",
        "the mask carries a bias",
    ),
    "modernbert": (
        t.ModernBertModel,
        t.ModernBertConfig(**MODERN),
        "layers.1.attn",
        "it has a sliding window",
    ),
}
IGNORING = {
    "mpnet": (t.MPNetModel, t.MPNetConfig(**TEXT)),
    "deberta-v2": (t.DebertaV2Model, t.DebertaV2Config(**TEXT)),
    "longformer": (t.LongformerModel, t.LongformerConfig(**TEXT, attention_window=8)),
}


def build(name):
    """(model in eval mode, its inputs)"""
    make, config, inputs = FAMILIES[name]
    torch.manual_seed(0)
    model = make(type(config).from_dict(config.to_dict())).eval()
    return model, inputs(model)
