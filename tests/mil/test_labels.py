"""Tables as CLAM, TransMIL, STAMP, torchmil and others write them."""

import numpy as np
import pytest

from nystromer.mil import read_labels, read_splits
from nystromer.mil.tables.labels import Case


@pytest.fixture
def table(tmp_path):
    def write(text, name="labels.csv"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def test_clam(table):
    labels = read_labels(
        table("case_id,slide_id,label\np1,s1.svs,tumor\np1,s2,tumor\np2,x/s3.h5,\n")
    )
    assert labels.cases == {
        "s1": Case("p1", "tumor"), "s2": Case("p1", "tumor"), "s3": Case("p2", None),
    }  # fmt: skip
    assert labels.label_column == "label"
    assert labels.classes() == ["tumor"]
    assert labels.patients() == {"s1": "p1", "s2": "p1", "s3": "p2"}
    assert [case.known() for case in labels.cases.values()] == [True, True, False]


def test_transmil(table):
    text = ",train,train_label,val,val_label,test,test_label\n0,s1,1,s3,0.0,s4,1.0\n1,s2,0,,,,\n"
    path = table(text, "fold0.csv")
    cases = read_labels(path).cases
    assert {name: case.label for name, case in cases.items()} == {
        "s1": "1", "s2": "0", "s3": "0", "s4": "1",
    }  # fmt: skip
    split = read_splits(path)[0]
    assert split.name == "fold0"
    assert split.parts == {"train": ("s1", "s2"), "val": ("s3",), "test": ("s4",)}


def test_stamp(table):
    clinical = table("PATIENT,AGE,isMSIH\np1,60,MSIH\np2,70,nonMSIH\np3,50,\n", "clini.csv")
    slides = table("PATIENT,FILENAME\np1,s1.h5\np1,s2.h5\np2,s3.h5\np3,s4.h5\np9,s5.h5\n", "s.csv")
    labels = read_labels(clinical, slides=slides, label_column="isMSIH")
    assert labels.cases == {
        "s1": Case("p1", "MSIH"), "s2": Case("p1", "MSIH"), "s3": Case("p2", "nonMSIH"),
        "s4": Case("p3"), "s5": Case("p9"),
    }  # fmt: skip
    assert read_labels(clinical, label_column="isMSIH").cases["p1"] == Case("p1", "MSIH")
    alone = read_labels(table("PATIENT,isMSIH\np1,MSIH\n"))
    assert (alone.label_column, alone.cases["p1"].label) == ("isMSIH", "MSIH")


def test_torchmil(tmp_path, table):
    folder = tmp_path / "labels"
    folder.mkdir()
    np.save(folder / "s1.npy", np.array(1))
    np.save(folder / "s2.npy", np.array([0.0]))
    assert read_labels(folder).cases == {"s1": Case(label="1"), "s2": Case(label="0")}
    split = read_splits(table("bag_name,split\ns1,train\ns2,test\ns3,validation\n", "splits.csv"))[
        0
    ]
    assert split.parts == {"train": ("s1",), "val": ("s3",), "test": ("s2",)}
    np.save(folder / "s3.npy", np.ones(2))
    with pytest.raises(ValueError, match=r"s3.npy must hold one label, got 2"):
        read_labels(folder)
    with pytest.raises(ValueError, match=r"has no labels: a .npy a slide"):
        read_labels(tmp_path / "labels" / "..")


def test_the_table_with_the_features(write):
    bags = write("table")
    assert read_labels(bags.root / "bags.csv").cases["s2"] == Case(label="0")
    assert read_labels(write("parquet", "more").root / "bags.parquet").cases["s3"] == Case(
        label="1"
    )


def test_classes_are_sorted_as_numbers_if_they_are(table):
    assert read_labels(table("id,label\na,10\nb,9\nc,\n")).classes() == ["9", "10"]
    assert read_labels(table("id,label\na,b10\nb,b9\n")).classes() == ["b10", "b9"]


@pytest.mark.parametrize(
    ("columns", "cells", "event", "words"),
    [
        ("survival_months,censorship", "3.5,1", False, "`censorship` is read as 1 = censored"),
        ("survival_months,censorship", "3.5,0", True, "time in `survival_months`"),
        ("os_survival_days,os_censorship", "3.5,0.0", True, "`os_censorship` is read as 1 = cens"),
        ("time,event", "3.5,1", True, "`event` is read as 1 = event, 0 = censored, which its name"),
        ("time,event", "3.5,False", False, "1 = event"),
        ("days,Dead", "3.5,1", True, "`Dead` is read as 1 = event"),
        ("pfi_months,pfi_event,os_event", "3.5,1,0", True, "`pfi_event`"),
    ],
)
def test_what_1_means_is_read_from_the_name(table, columns, cells, event, words):
    labels = read_labels(table(f"slide_id,{columns}\ns1.svs,{cells}\n"))
    assert labels.cases == {"s1": Case(time=3.5, event=event)}
    assert words in str(labels.survival)
    assert labels.label_column is None


def test_survival_and_classes_may_stand_in_one_table(table):
    text = "case_id,slide_id,label,survival_months,censorship\np,s1,A,4,0\np,s2,A,,1\n"
    assert read_labels(table(text)).cases == {
        "s1": Case("p", "A", 4.0, True), "s2": Case("p", "A"),
    }  # fmt: skip


def test_survival_that_is_unclear_stops_only_who_needs_it(table):
    path = table("slide_id,label,os_months,os_status\ns1,A,4,1:DECEASED\n")
    labels = read_labels(path)
    assert labels.cases == {"s1": Case(label="A")}
    assert "'os_status' in" in labels.unread
    with pytest.raises(ValueError, match=r"'os_status' in .* does not say"):
        read_labels(path, time_column="os_months")


def test_one_time_of_several_is_chosen(table):
    path = table("slide_id,os_days,os_event,dss_days,dss_censorship\ns1,1,1,2,1\n")
    with pytest.raises(
        ValueError, match=r"several .*os_days with os_event, dss_days with dss_cens"
    ):
        read_labels(path)
    assert read_labels(path, time_column="dss_days").cases["s1"] == Case(time=2.0, event=False)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("time,status,id\n1,1,a\n", {}, "'status' in .* does not say whether 1 means that the pat"),
        ("id,time,event\na,-1,1\n", {}, "`time` must be a time of at least 0, got '-1' of a"),
        ("id,time,event\na,x,1\n", {}, "`time` must be a time of at least 0, got 'x' of a"),
        ("id,time,event\na,1,2\n", {}, "`event` must be 0 or 1, got '2' of a"),
        ("id,a,b\nx,1,2\n", {}, "no column called label or .*--label-column, one of a, b"),
        ("id,a,b\nx,1,2\n", {"label_column": "c"}, "has no column 'c'; it has id, a, b"),
        ("id,a,b\nx,1,2\n", {"time_column": "c"}, "has no column 'c'; it has id, a, b"),
        ("id,a,b\nx,1,2\n", {"time_column": "a"}, "no column that says how 'a' ended; name one ev"),
        ("a,b\n1,2\n", {}, "has no column for the name of a slide; it has a, b, and slide_id, "),
        ("id,label\na,1\na.svs,2\n", {}, "says two things of a: label 1 and label 2; delete one"),
        ("id,label\n", {}, "has no rows; a table needs one line of names"),
        ("", {}, "labels.csv cannot be read as a table: No columns to parse"),
    ],
)
def test_other_tables_are_one_sentence(table, text, options, message):
    with pytest.raises(ValueError, match=message) as stop:
        read_labels(table(text), **options)
    assert len(str(stop.value).splitlines()) == 1


def test_a_missing_table_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"no.csv cannot be read as a table: No such file"):
        read_labels(tmp_path / "no.csv")
    with pytest.raises(ValueError, match=r"must be .csv, .tsv, .parquet, got .*a.xlsx; save it as"):
        read_labels(tmp_path / "a.xlsx")
    with pytest.raises(ValueError, match=r"There is no .*none; name a file or folder of splits"):
        read_splits(tmp_path / "none")
    with pytest.raises(ValueError, match=r"has no splits; splits_0.csv, fold0.csv or splits.csv"):
        read_splits(tmp_path)


def test_clams_splits_in_both_forms(tmp_path, table):
    names = ",train,val,test\n0,s1,s3,s4.svs\n1,s2,,\n"
    bools = ",train,val,test\ns1,True,False,False\ns2,True,False,False\ns3,False,True,False\n"
    for i in range(2):
        table(names, f"splits_{i}.csv")
        table(bools + "s4,False,False,True\n", f"splits_{i}_bool.csv")
        table(",train,val,test\nA,1,0,1\nB,1,1,0\n", f"splits_{i}_descriptor.csv")
    table(names, "splits_10.csv")
    splits = read_splits(tmp_path)
    assert [split.name for split in splits] == ["splits_0", "splits_1", "splits_10"]
    one_bool = read_splits(tmp_path / "splits_1_bool.csv")[0]
    for split in (*splits, one_bool):
        assert split.parts == {"train": ("s1", "s2"), "val": ("s3",), "test": ("s4",)}


def test_patients_in_two_parts_are_named(table):
    split = read_splits(table(",train,val,test\n0,s1,s2,s4\n1,s5,,s5\n", "splits_0.csv"))[0]
    patients = {"s1": "p1", "s2": "p1", "s4": "p2", "s5": None}
    assert split.leaks(patients) == {"p1": ["train", "val"], "s5": ["train", "test"]}
    with pytest.raises(
        ValueError, match="p1 stands in train and val of the split splits_0, and 1 m"
    ):
        split.check(patients)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "is no split: it needs the columns train, val and test, .* and has a, b"),
        ("bag_name,split\ns1,all\n", "must say train, val or test of a slide, got 'all'"),
        ("f,split\ns1,train\n", "has no column for the name of a slide"),
    ],
)
def test_other_splits_are_one_sentence(table, text, message):
    with pytest.raises(ValueError, match=message):
        read_splits(table(text, "splits.csv"))
