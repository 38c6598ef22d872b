"""Features and labels together."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from nystromer.mil import find_bags, gather
from nystromer.mil.tables.labels import Case, Labels

A, B = Case("p1", "A"), Case("p2", "B")


@pytest.fixture
def bags(write):
    return find_bags(write("stamp").root)


def labels(**cases):
    return Labels(cases, label_column="label")


def test_bags_with_labels_are_kept_and_the_others_named(bags):
    cohort = gather(bags, labels(s1=A, s3=B, s8=B, s2=Case("p1")))
    assert [bag.id for bag in cohort.bags] == ["s1", "s3"]
    assert cohort.cases == {"s1": A, "s3": B}
    assert [bag.patient for bag in cohort.bags] == ["p1", "p2"]
    assert (cohort.unlabelled, cohort.featureless) == (["s2"], ["s8"])
    cohort.check(skip_missing=True)
    with pytest.raises(ValueError, match=r"1 slide \(s2\) has no label; add .*--skip-"):
        cohort.check()
    with pytest.raises(
        ValueError, match=r"2 slides \(s8, s9\) have no features; encode what is missing"
    ):
        gather(bags, labels(s1=A, s2=A, s3=B, s8=B, s9=B)).check()
    with pytest.raises(ValueError, match="No slide has both features and a label; do their names"):
        gather(bags, labels(x=A)).check(skip_missing=True)


def test_without_labels_nothing_is_missing(bags):
    cohort = gather(bags)
    assert len(cohort.bags) == 3
    cohort.check()


def test_a_bag_without_patches_has_no_features(write):
    none = np.zeros((0, 6), np.float32), np.zeros((0, 2), np.int64)
    folder = write("clam", bags={"s1": none, "s2": (np.ones((4, 6), np.float32), np.ones((4, 2)))})
    cohort = gather(find_bags(folder.root), labels(s1=A, s2=B))
    assert cohort.featureless == ["s1"]
    assert [bag.id for bag in cohort.bags] == ["s2"]
    assert gather(find_bags(folder.root)).featureless == ["s1"]


def test_features_must_be_alike(bags):
    everything = labels(s1=A, s2=A, s3=B)
    with pytest.raises(ValueError, match=r"one width, got .*9 in s2.*; name a folder with one"):
        gather([bags[0], replace(bags[1], width=9), bags[2]], everything).check()
    with pytest.raises(ValueError, match=r"one encoder, got .*uni in s3"):
        gather([*bags[:2], replace(bags[2], encoder="uni")], everything).check()
    alike = gather([bags[0], replace(bags[1], width=9), bags[2]], everything, by="patient")
    with pytest.raises(ValueError, match=r"one width, got"):  # in one patient's bag
        alike.check()
    with pytest.raises(ValueError, match=r"1 slide \(s1\) is in more than one file"):
        gather([*bags, bags[0]], everything).check()


def test_a_patient_is_one_bag(bags):
    cohort = gather(bags, labels(s1=A, s2=A, s3=B), by="patient")
    assert [(bag.id, bag.num_patches) for bag in cohort.bags] == [("p1", 47), ("p2", 1)]
    assert cohort.cases == {"p1": A, "p2": B}
    expected = torch.cat([bags[0].features(), bags[1].features()])
    assert torch.equal(cohort.bags[0].features(), expected)
    assert [bag.patient for bag in (cohort.bags[0], *cohort.bags[0].slides)] == ["p1"] * 3
    with pytest.raises(ValueError, match="The slides of p1 have different labels"):
        gather(bags, labels(s1=A, s2=replace(A, label="B"), s3=B), by="patient")
    with pytest.raises(ValueError, match="needs the patient of every slide, got none of s3"):
        gather(bags, labels(s1=A, s2=A, s3=Case(label="B")), by="patient")
    with pytest.raises(ValueError, match="`--bag` must be slide or patient, got 'case'"):
        gather(bags, by="case")
