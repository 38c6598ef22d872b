"""Writes a map of every bag (`nystromer mil heatmap`)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nystromer.mil.features.bags import Bag
from nystromer.mil.ids import OTHER_SLIDES, SLIDES, slide_id
from nystromer.mil.maps.files import Map, write_csv, write_geojson, write_h5
from nystromer.mil.maps.methods import DEFAULT
from nystromer.mil.maps.pictures import overlay_figure, sheet_figure
from nystromer.mil.maps.places import Places, check_fits, places_of
from nystromer.mil.slides import Slide, open_slide
from nystromer.recipes.files.outputs import new_folder
from nystromer.recipes.slides.explained import Track, find_checked, load_trained, silently


def heatmap(
    run: Path,
    features: Path,
    output: Path,
    *,
    slide: Path | None = None,
    method: str = DEFAULT,
    layer: int | None = None,
    head: int | None = None,
    class_name: str | None = None,
    mpp: float | None = None,
    track: Track = silently,
    say: Callable[[str], object] = print,
) -> int:
    """Writes ID.csv, ID.h5, ID.png, ID_patches.png and ID.geojson of every bag into a new folder.

    Args:
        run: As `load_trained`.
        features: As `find_bags`.
        output: A new folder; it is written whole or not at all.
        slide: The slide of the one bag, or a folder with slides called like the bags.
        method, layer, head: As `explain`.
        class_name: What is explained; what each bag is predicted to be if None.
        mpp: Micrometres a level-0 pixel, where the slide does not say it.
        track: Goes over bags, say with a progress bar.
        say: Says what is left out.

    Returns:
        How many bags there were.

    Raises:
        ValueError: If an input is bad; nothing is written then.
        FloatingPointError: If a map holds NaN.
    """
    with new_folder(output) as partial:
        trained = load_trained(run)
        if class_name is not None:
            trained.known(class_name)
        bags = find_checked(features, trained, track)
        slides = _slides_of(bags, slide, mpp)
        for bag in bags:  # what is wrong is said before anything is computed
            _places_on(bag, slides.get(bag.id), mpp)
        for bag in track(bags, "Explaining"):
            opened, x = slides.get(bag.id), bag.features()
            explained = class_name or trained.predicted(x)
            scores = trained.explain(x, explained, method=method, layer=layer, head=head)
            places = _places_on(bag, opened, mpp)
            _write(Map(bag.id, method, explained, scores.numpy(), places), opened, partial, say)
    return len(bags)


def _write(found: Map, slide: Slide | None, folder: Path, say: Callable[[str], object]) -> None:
    write_csv(found, folder / f"{found.id}.csv")
    write_h5(found, folder / f"{found.id}.h5")
    if found.places is None:
        say(f"{found.id}: no coordinates, so no picture and no GeoJSON.")
        return
    overlay_figure(found, slide).savefig(folder / f"{found.id}.png")
    if slide is not None:
        sheet_figure(found, slide).savefig(folder / f"{found.id}_patches.png")
    if found.places.in_pixels:
        write_geojson(found, folder / f"{found.id}.geojson")
    else:
        say(f"{found.id}: coordinates are not in pixels, so no GeoJSON; --mpp may help.")


def _places_on(bag: Bag, slide: Slide | None, mpp: float | None) -> Places | None:
    places = places_of(bag, mpp if slide is None else slide.mpp)
    if slide is not None and places is None:
        raise ValueError(f"{bag.path} does not say where its patches are; leave out --slide.")
    if slide is not None and places is not None:
        check_fits(places, bag, slide)
    return places


def _slides_of(bags: list[Bag], path: Path | None, mpp: float | None) -> dict[str, Slide]:
    """The opened slide of every bag, if slides are given.

    Raises:
        ValueError: If a bag has none, or it cannot be read.
    """
    if path is None:
        return {}
    if not path.is_dir():
        if len(bags) > 1:
            raise ValueError(
                f"`--slide` must be a folder of slides for {len(bags):,} bags, got {path}; or name "
                "the feature file of this slide."
            )
        return {bags[0].id: open_slide(path, mpp)}
    kinds = (*SLIDES, *OTHER_SLIDES)
    files = {slide_id(x): x for x in sorted(path.iterdir()) if x.suffix.lower() in kinds}
    missing = [bag.id for bag in bags if bag.id not in files]
    if missing:
        raise ValueError(f"{path} has no slide called {missing[0]}; name one that has it.")
    return {bag.id: open_slide(files[bag.id], mpp) for bag in bags}
