"""Predicts the bags in a folder by all models of a run (`nystromer mil predict`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from nystromer.mil.columns import BAG, PATIENT, column, read_table
from nystromer.mil.ensemble import load_ensemble
from nystromer.mil.features.bags import Bag, join
from nystromer.mil.features.folders import duplicates, find_bags
from nystromer.mil.ids import listed, slide_id
from nystromer.recipes.files.outputs import new_file
from nystromer.recipes.files.tables import write_csv
from nystromer.recipes.slides.data import Track, silently
from nystromer.recipes.slides.tables import Row, prediction_rows


def predict_slides(
    run: Path,
    features: Path,
    output: Path,
    *,
    patients: Path | None = None,
    skip_missing: bool = False,
    track: Track = silently,
) -> int:
    """Writes a row a bag: what is predicted and the probability of every class, or the risk.

    Args:
        run: As `load_ensemble`.
        features: As `find_bags`.
        output: A new .csv file.
        patients: A table of slides and their patients, where a bag was all slides of a patient.
        skip_missing: Go on without slides that have no patches, or no patient.
        track: Goes over bags, say with a progress bar.

    Returns:
        How many bags there were.

    Raises:
        ValueError: If an input is bad; nothing is written then.
        FloatingPointError: If the models answer a bag with NaN.
    """
    with new_file(output, ".csv") as partial:
        ensemble = load_ensemble(run).to("cuda" if torch.cuda.is_available() else "cpu")
        device = next(ensemble.models[0].parameters()).device
        bags = find_bags(features, track=lambda files: track(files, "Looking at files"))
        check_bags(bags, skip_missing)
        bags = [bag for bag in bags if bag.num_patches]
        if (ensemble.spec.bag == "patient") != (patients is not None):
            said = "not given" if patients is None else f"got {patients}"
            raise ValueError(
                f"The models were trained on bags of a {ensemble.spec.bag}: `--patients`, a table "
                f"of slides and patients, is for bags of patients alone, {said}."
            )
        if patients is not None:
            bags = of_patients(bags, patients, skip_missing)
        for bag in bags:
            for slide in bag.slides or (bag,):
                ensemble.check(slide)
        rows: list[Row] = []
        for bag in track(bags, "Predicting"):
            answer = ensemble(bag.features().to(device))
            if not answer.isfinite().all():
                raise FloatingPointError(f"{run} answers {bag.id} with NaN; nothing was written.")
            rows.append(prediction_rows(ensemble.spec, bag.id, answer.tolist()))
        write_csv(rows, partial)
    return len(rows)


def check_bags(bags: Sequence[Bag], skip_missing: bool) -> None:
    """Checks that there is one bag of every name, with patches.

    Raises:
        ValueError: If not.
    """
    if twice := duplicates(bags):
        raise ValueError(
            f"Slides stand in more than one file ({listed(twice)}); name a folder with one of them."
        )
    empty = [bag.id for bag in bags if not bag.num_patches]
    if (empty and not skip_missing) or len(empty) == len(bags):
        raise ValueError(
            f"Slides have no patches ({listed(empty)}); encode them, or go on without by "
            "--skip-missing."
        )


def of_patients(bags: Sequence[Bag], path: Path, skip_missing: bool) -> list[Bag]:
    """Returns a bag a patient.

    Raises:
        ValueError: If a slide has no patient.
    """
    table = read_table(path)
    slide, patient = (
        column(table, names, path, what)
        for names, what in ((BAG, "the name of a slide"), (PATIENT, "the patient"))
    )
    whose = {
        slide_id(row[slide]): row[patient].strip()
        for row in table[[slide, patient]].dropna().to_dict("records")
    }
    without = [bag.id for bag in bags if bag.id not in whose]
    if (without and not skip_missing) or len(without) == len(bags):
        raise ValueError(
            f"{path} has no patient of slides ({listed(without)}); add them, or go on without by "
            "--skip-missing."
        )
    slides: dict[str, list[Bag]] = {}
    for bag in bags:
        if bag.id in whose:
            slides.setdefault(whose[bag.id], []).append(bag)
    return [join(name, parts) for name, parts in sorted(slides.items())]
