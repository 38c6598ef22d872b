"""TransMIL from the weights that others trained: whose keys they are is read from the keys.

TransMIL, STAMP, slideflow: cls_token, pos_layer.{proj,proj1,proj2}, _fc1.0, norm, _fc2, and
    layer{1,2}.norm, layer{1,2}.attn.{to_qkv.weight,to_out.0,res_conv.weight}.
Lightning checkpoints of these: the same behind `model.`, in "state_dict".
torchmil: cls_token, pos_layer.{proj,proj1,proj2}, fc1, norm, classifier, and
    layers.{0,1}.norm1, layers.{0,1}.att_module.qkv_nn.weight.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nystromer.mil.features.arrays import readable
from nystromer.mil.models.transmil import TransMIL

WRAPPERS = ("state_dict", "model_state_dict", "model")
TORCHMIL_HEADS = 4
TORCHMIL_NAMES = (
    (r"fc1\.", "_fc1.0."),
    (r"classifier\.", "_fc2."),
    (r"layers\.(\d+)\.norm1\.", r"layer\1.norm."),
    (r"layers\.(\d+)\.att_module\.qkv_nn\.", r"layer\1.attn.to_qkv."),
)


def load_transmil(
    weights: str | Path | Mapping[str, Any],
    *,
    mode: str = "legacy",
    num_heads: int | None = None,
    num_landmarks: int | None = None,
) -> TransMIL:
    """Returns a TransMIL with trained weights, ready for prediction.

    Args:
        weights: A .pt, .pth, .ckpt or .safetensors file, or its state dict. No pickled objects are
            opened.
        mode: As `TransMIL`; "legacy" gives the numbers that the weights were trained with.
        num_heads: H, where the keys do not say it; 8, for torchmil 4 if None.
        num_landmarks: M; half of the embedding if None, as all of the packages have it.

    Raises:
        ValueError: If the file cannot be read, or its keys are not those of a TransMIL.
    """
    state = _bare(_read(weights) if isinstance(weights, (str, Path)) else weights)
    torchmil = any(key.startswith("layers.") for key in state)
    if torchmil:
        state = _from_torchmil(state)
    convolution = state.get("layer1.attn.res_conv.weight")
    if convolution is not None:
        num_heads = len(convolution)
    try:
        embed_dim, width = state["_fc1.0.weight"].shape
        model = TransMIL(
            width,
            len(state["_fc2.weight"]),
            mode=mode,
            embed_dim=embed_dim,
            num_heads=num_heads or (TORCHMIL_HEADS if torchmil else 8),
            num_landmarks=num_landmarks,
            conv_kernel_size=None if convolution is None else convolution.shape[2],
            num_layers=sum(key.endswith("attn.to_qkv.weight") for key in state),
            relu=not torchmil,
        )
        model.load_state_dict(state)
    except (KeyError, RuntimeError, AttributeError) as error:
        raise ValueError(
            f"These are not the weights of a TransMIL: {_first_line(error)}."
        ) from error
    return model.eval()


def _read(path: str | Path) -> Mapping[str, Any]:
    path = Path(path)
    with readable(path):
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(loaded, Mapping):
            raise ValueError(f"it holds a {type(loaded).__name__} instead of named tensors")
        return loaded


def _bare(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors beside the class token, without what stands before their names."""
    for name in WRAPPERS:
        if isinstance(state.get(name), Mapping):
            state = state[name]
    prefixes = [key.removesuffix("cls_token") for key in state if key.endswith("cls_token")]
    if len(prefixes) != 1:
        raise ValueError(
            "The weights of a TransMIL have one `cls_token`, got "
            f"{len(prefixes)} among {', '.join(list(state)[:4]) or 'no keys'}."
        )
    start = prefixes[0]
    return {key.removeprefix(start): x for key, x in state.items() if key.startswith(start)}


def _from_torchmil(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """torchmil's names as ours. It leaves a projection out where it would not change the width:
    there stands an identity."""
    other = [key for key in state if "mlp_module" in key or key.startswith("feat_ext.")]
    if other:
        raise ValueError(
            f"A TransMIL has no {other[0]}, which torchmil adds by use_mlp or feat_ext; train it "
            "without."
        )
    identity = torch.eye(state["cls_token"].shape[2])
    named = {"_fc1.0.weight": identity, "_fc1.0.bias": identity.new_zeros(len(identity))}
    for key, x in state.items():
        if re.match(r"layers\.\d+\.norm2\.", key):  # of the MLP that is not there
            continue
        for theirs, ours in TORCHMIL_NAMES:
            key = re.sub(f"^{theirs}", ours, key)
        key = re.sub(r"^layer(\d+)", lambda found: f"layer{int(found[1]) + 1}", key)
        named[key] = x
        if key.endswith("attn.to_qkv.weight"):
            to_out = key.replace("to_qkv.weight", "to_out.0.")
            named |= {to_out + "weight": identity, to_out + "bias": named["_fc1.0.bias"] * 0}
    return named


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]).rstrip(". ")
