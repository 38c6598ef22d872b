"""Reads the checkpoints of the original repository, mlpen/Nystromformer (`.model` and `.cp`)."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from nystromer.checks import check_positive
from nystromer.hf.models.configuration import NystromformerConfig
from nystromer.hf.models.nystromformer import NystromformerForMaskedLM

# its names -> transformers', applied in this order
RENAMED = (
    (r"^module\.", ""),  # DataParallel
    (r"^model\.(transformer_|backbone\.backbone\.encoders\.)", "model.encoder.layer."),
    (r"^model\.", "nystromformer."),
    (r"\.embeddings\.norm\.", ".embeddings.LayerNorm."),
    (r"\.mha\.W_q\.", ".attention.self.query."),
    (r"\.mha\.W_k\.", ".attention.self.key."),
    (r"\.mha\.W_v\.", ".attention.self.value."),
    (r"\.mha\.attn\.conv\.", ".attention.self.conv."),
    (r"\.mha\.ff\.", ".attention.output.dense."),
    (r"\.norm1\.", ".attention.output.LayerNorm."),
    (r"\.(ff1|ff\.0)\.", ".intermediate.dense."),
    (r"\.(ff2|ff\.2)\.", ".output.dense."),
    (r"\.norm2\.", ".output.LayerNorm."),
    (r"^mlm\.dense\.", "cls.predictions.transform.dense."),
    (r"^mlm\.norm\.", "cls.predictions.transform.LayerNorm."),
    (r"^mlm\.mlm_class\.", "cls.predictions.decoder."),
)


EMBEDDINGS, LAYER = "nystromformer.embeddings.", "nystromformer.encoder.layer."
SIZES = (  # the tensors that tell them
    f"{EMBEDDINGS}word_embeddings.weight",
    f"{EMBEDDINGS}position_embeddings.weight",
    f"{EMBEDDINGS}token_type_embeddings.weight",
    f"{LAYER}0.intermediate.dense.weight",
)


def load_original(
    path: str | Path, *, num_landmarks: int = 64, num_heads: int | None = None
) -> NystromformerForMaskedLM:
    """Returns the masked language model in a checkpoint of the original repository.

    Sizes are read off the tensors. Nothing but tensors is unpickled.

    Args:
        path: A `.model` or `.cp` file that its pre-training wrote.
        num_landmarks: M, which no tensor tells.
        num_heads: H; None takes it from the convolution, or heads of 64 features without one.

    Raises:
        ValueError: If the file is none of these; with the first missing and unexpected name.
    """
    check_positive("num_landmarks", num_landmarks)
    original = _read(Path(path))
    names = {_rename(name): name for name in original}
    state = {new: original[name] for new, name in names.items()}
    absent = [name for name in SIZES if name not in state]
    if absent:
        raise ValueError(_not_one(path, absent, list(original)))
    (vocab, _), (positions, _), (types, _), (width, hidden) = (state[x].shape for x in SIZES)
    taps = state.get(f"{LAYER}0.attention.self.conv.weight")  # [H, 1, K, 1]
    if num_heads is None:
        num_heads = max(1, hidden // 64) if taps is None else taps.shape[0]
    check_positive("num_heads", num_heads)
    if hidden % num_heads:
        raise ValueError(f"`num_heads` must divide the width {hidden}, got {num_heads}.")
    later = f"{LAYER}0.intermediate.dense.weight"  # the reorganised code has another GELU
    config = NystromformerConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        num_hidden_layers=len({x.split(".")[3] for x in state if x.startswith(LAYER)}),
        num_attention_heads=num_heads,
        intermediate_size=width,
        hidden_act="gelu" if names[later].endswith("ff.0.weight") else "gelu_new",
        max_position_embeddings=positions - 2,
        type_vocab_size=types,
        num_landmarks=num_landmarks,
        conv_kernel_size=None if taps is None else taps.shape[2],
    )
    model = NystromformerForMaskedLM(config)
    if "cls.predictions.decoder.bias" in state:
        state["cls.predictions.bias"] = state["cls.predictions.decoder.bias"]
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise ValueError(f"{path} does not fit together: {reason}") from error
    if missing or unexpected:
        raise ValueError(_not_one(path, missing, [names[x] for x in unexpected]))
    return model


def _rename(name: str) -> str:
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def _read(path: Path) -> dict[str, Tensor]:
    """Returns the state dict in a file of tensors and plain containers; all else is refused."""
    if not path.is_file():
        raise ValueError(f"`path` must be a checkpoint, got {path}, which is not a file.")
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever foreign bytes make torch.load raise
        raise ValueError(
            f"{path} cannot be read as a checkpoint of tensors, and nothing else is unpickled "
            "(a .cp holds its optimizer too: take the .model beside it)."
        ) from error
    state = data.get("model_state_dict", data) if isinstance(data, dict) else {}
    return {str(name): x for name, x in state.items() if isinstance(x, Tensor)}


def _not_one(path: str | Path, missing: list[str], unexpected: list[str]) -> str:
    found = [
        f"{len(names)} {what}, first {names[0]}"
        for what, names in (("names are missing", missing), ("are unexpected", unexpected))
        if names
    ]
    return (
        f"{path} is no masked language model of the original repository: {'; '.join(found)}; "
        "folders with a config.json are read by from_pretrained."
    )
