"""PostNet's tables: the same rows from every layout, and one sentence about every fault of a file."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial import KDTree
from torch import Tensor

from tests.conftest import real_data
from tests.data import layouts
from uncertainty_est.data.source import SPLIT_NAMES
from uncertainty_est.data.sources.postnet import (
    SEGMENT_CLASSES,
    PostNetCsv,
    Segment,
    SensorlessDrive,
    first_of_each_class,
)
from uncertainty_est.data.sources.synthetic import Gaussian2D
from uncertainty_est.errors import DataError

ID, SKY = [0, 1, 2, 3, 4, 5], [6]
WRITERS = {"csv": layouts.write_segment_csv, "uci": layouts.write_segment_uci, "arff": layouts.write_segment_arff}


def segment(root: Path, **arguments: Any) -> tuple[Tensor, Tensor]:
    return Segment(str(root), shape=[18], **arguments).load("all")


def scaled(x: Tensor, y: Tensor) -> Tensor:
    """By minimum and maximum of all rows but the sky's, as PostNet's files are."""
    low, high = x[y != 6].double().amin(0), x[y != 6].double().amax(0)
    return (x.double() - low) / (high - low)


def sorted_rows(x: Tensor, y: Tensor) -> np.ndarray:
    """Label and features, in an order that does not depend on the last digits of the features."""
    rows = np.column_stack([y.numpy(), x.numpy()])
    return rows[np.lexsort(np.round(rows, 5).T[::-1])]


# -------------------------------------------------------------------------------------------------------- segment


@pytest.mark.parametrize("layout", WRITERS)
def test_every_layout_holds_the_same_rows_features_and_labels(layout: str, tmp_path: Path) -> None:
    WRITERS[layout](tmp_path)
    x, y = segment(tmp_path)
    raw, names = layouts.segment_rows()
    written_x = torch.from_numpy(raw)
    written_y = torch.tensor([layouts.SEGMENT_LABELS[name] for name in names])
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    assert y.bincount().tolist() == [layouts.PER_CLASS] * 7
    if layout == "csv":
        written_x = scaled(written_x, written_y)
    np.testing.assert_allclose(sorted_rows(x, y), sorted_rows(written_x, written_y), rtol=1e-5, atol=1e-6)


def test_the_first_layout_that_is_complete_is_read_and_can_be_insisted_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for write in WRITERS.values():
        write(tmp_path)
    read = {layout: segment(tmp_path, layout=layout)[0] for layout in WRITERS}
    with caplog.at_level(logging.INFO):
        assert torch.equal(segment(tmp_path)[0], read["csv"])
    assert f"segment: the 'csv' layout is read from {tmp_path / 'segment'}" in caplog.text
    (tmp_path / "segment" / "segment_scale_sky_only.csv").unlink()
    # The other CSV file is no use: its OOD set would come in other units.
    assert torch.equal(segment(tmp_path)[0], read["uci"])
    (tmp_path / "segment" / "segmentation.data").unlink()
    assert torch.equal(segment(tmp_path)[0], read["arff"])
    with pytest.raises(DataError, match="does not hold segmentation.data and segmentation.test .*archive.ics.uci.edu"):
        segment(tmp_path, layout="uci")


def test_positions_tell_the_layouts_apart(tmp_path: Path) -> None:
    for write in WRITERS.values():
        write(tmp_path)
    indices = []
    for layout in WRITERS:
        source = Segment(str(tmp_path), layout=layout, shape=[18], classes=ID)
        splits = [source.split(name) for name in SPLIT_NAMES]
        indices.append(torch.cat([split.indices for split in splits]))
        x, y = source.load("all")
        first = 2310 * (len(indices) - 1)
        assert all(torch.equal(split.x, x[split.indices - first]) for split in splits)
        assert all(torch.equal(split.y, y[split.indices - first]) for split in splits)
    assert len(torch.cat(indices).unique()) == 3 * 6 * layouts.PER_CLASS


def test_sky_is_the_ood_set_and_known_classes_can_be_left_out(tmp_path: Path) -> None:
    layouts.write_segment_uci(tmp_path)
    x, y = segment(tmp_path)
    sky = Segment(str(tmp_path), shape=[18], classes=SKY, val_fraction=0.2, test_fraction=0.8)
    found = torch.cat([sky.split("val").x, sky.split("test").x])
    assert torch.equal(found[found[:, 0].argsort()], x[y == 6][x[y == 6, 0].argsort()])
    five = Segment(str(tmp_path), shape=[18], classes=[0, 1, 2, 4, 5]).split("train")
    assert five.y.unique().tolist() == [0, 1, 2, 3, 4] and torch.equal(y[five.indices - 2310] == 4, five.y == 3)


def test_real_segment_layouts_hold_the_same_rows() -> None:
    root = real_data()
    csv_x, csv_y = segment(root, layout="csv")
    arff_x, arff_y = segment(root, layout="arff")
    assert csv_y.bincount().tolist() == arff_y.bincount().tolist() == [330] * 7
    assert csv_x[csv_y != 6].amin(0).tolist() == [0] * 18 and csv_x[csv_y != 6].amax(0).tolist() == [1] * 18
    ours, theirs = scaled(arff_x, arff_y), csv_x.double()
    # The same multiset, features in the same order, and classes with the same numbers.
    np.testing.assert_allclose(sorted_rows(ours, arff_y), sorted_rows(theirs, csv_y), rtol=0, atol=2e-6)
    # Each row is nearest to its own, so the order of sorting hides nothing.
    distance, row = KDTree(ours.numpy()).query(theirs.numpy())
    assert distance.max() < 2e-6 and torch.equal(arff_y[torch.from_numpy(row)], csv_y)


def test_real_segment_keeps_the_published_order_and_numbers() -> None:
    folder = real_data() / "segment"
    x, y = segment(real_data())
    for file, rows in (
        ("segment_scale_sky_missing.csv", slice(0, 1980)),
        ("segment_scale_sky_only.csv", slice(1980, 2310)),
    ):
        table = np.genfromtxt(folder / file, delimiter=",", skip_header=1, skip_footer=3)
        assert np.array_equal(x[rows], table[:, 1:-1].astype(np.float32)) and np.array_equal(y[rows], table[:, -1])
    assert x[1980:].max() == pytest.approx(1.937, abs=1e-3)
    # The split of the thesis: one permutation of the file's order.
    train = Segment(str(real_data()), shape=[18], classes=ID, test_fraction=0.1).split("train")
    assert np.array_equal(train.indices, np.random.default_rng(1).permutation(1980)[:1584])
    text = (folder / "segment-challenge.arff").read_text()
    declared = re.search(r"@attribute class \{(.*)\}", text)
    assert declared and [c for c in declared[1].split(",") if c != "sky"] == list(SEGMENT_CLASSES[:6])


# ----------------------------------------------------------------------------------------------------- sensorless


def test_sensorless_counts_classes_from_zero_and_keeps_units(tmp_path: Path) -> None:
    table = layouts.write_sensorless(tmp_path)
    x, y = SensorlessDrive(str(tmp_path), shape=[48]).load("all")
    assert np.array_equal(x, table[:, :48].astype(np.float32)) and np.array_equal(y, table[:, 48] - 1)
    ood = SensorlessDrive(str(tmp_path), shape=[48], classes=[9, 10]).split("test")
    assert set(table[ood.x[:, 0].long(), 48]) == {10, 11}


def test_the_subset_is_used_where_the_whole_is_absent_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    subset = layouts.write_sensorless(tmp_path, layouts.SENSORLESS_SUBSET, more=7)
    source = SensorlessDrive(str(tmp_path), shape=[48], max_per_class="smallest")
    with caplog.at_level(logging.INFO):
        x, y = source.load("all")
    assert f"of {len(subset)} rows is used, {11 * layouts.PER_CLASS} of them" in caplog.text
    assert y.bincount().tolist() == [layouts.PER_CLASS] * 11
    whole = layouts.write_sensorless(tmp_path)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        x, y = source.load("all")
    assert "subset" not in caplog.text
    assert np.array_equal(x, whole[:, :48].astype(np.float32))  # classes of equal size are kept whole


@pytest.mark.parametrize(("most", "expected"), [(None, [27, 27, 20]), ("smallest", [20] * 3), (5, [5] * 3)])
def test_the_first_rows_of_each_class_are_kept(most: int | str | None, expected: list[int], tmp_path: Path) -> None:
    table = layouts.write_sensorless(tmp_path, layouts.SENSORLESS_SUBSET, more=7)
    x, y = SensorlessDrive(str(tmp_path), shape=[48], max_per_class=most).load("all")
    assert y.bincount()[:3].tolist() == expected
    for c in range(11):
        first = table[table[:, 48] == c + 1][: (y == c).sum(), :48]
        assert np.array_equal(x[y == c], first.astype(np.float32))


def test_first_of_each_class_when_classes_alternate() -> None:
    y = np.array([2, 0, 2, 0, 2, 0, 4])
    assert first_of_each_class(y, 2).tolist() == [0, 1, 2, 3, 6]
    assert first_of_each_class(y, 9).tolist() == list(range(7))


def test_real_sensorless_is_the_balanced_protocol() -> None:
    known = SensorlessDrive(
        str(real_data()), shape=[48], classes=list(range(9)), max_per_class="smallest", val_fraction=0.2
    )
    splits = [known.split(name) for name in SPLIT_NAMES]
    assert [len(split) for split in splits] == [1080, 360, 360]
    assert torch.cat([split.y for split in splits]).bincount().tolist() == [200] * 9
    table = np.loadtxt(real_data() / "sensorless" / layouts.SENSORLESS_SUBSET)
    x, y = known.load("all")
    assert np.array_equal(x[y == 0], table[table[:, 48] == 1][:200, :48].astype(np.float32))


# ------------------------------------------------------------------------------------------------------ gaussian2d


@pytest.mark.parametrize("metadata", [True, False])
def test_csv_files_with_and_without_metadata(metadata: bool, tmp_path: Path) -> None:
    x, y = np.random.default_rng(0).normal(size=(30, 2)), np.arange(30) % 3
    layouts.write_postnet_csv(tmp_path / "a" / "b.csv", x, y, metadata)
    source = PostNetCsv(str(tmp_path), "a/b.csv", shape=[2])
    read_x, read_y = source.load("all")
    assert np.array_equal(read_x, x.astype(np.float32)) and np.array_equal(read_y, y)
    assert source.name == "b"


def test_the_published_gaussians_are_those_that_are_generated() -> None:
    x, y = PostNetCsv(str(real_data()), "gaussian2d/2DGaussians-0.2.csv", shape=[2]).load("all")
    generated_x, generated_y = Gaussian2D(shape=[2]).load("all")
    assert y.bincount().tolist() == [500] * 3
    for c in range(3):
        assert torch.allclose(x[y == c].mean(0), generated_x[generated_y == c].mean(0), atol=0.05)
        assert torch.allclose(x[y == c].std(0), torch.tensor(0.2), rtol=0.15)
    ring, label = PostNetCsv(str(real_data()), "gaussian2d/anomalous-2Ddataset.csv", shape=[2]).load("all")
    assert label.bincount().tolist() == [10] * 40 and torch.allclose(ring.norm(dim=1), torch.tensor(15.0), atol=0.5)


# --------------------------------------------------------------------------------------------------- what is wrong

SOURCES: dict[str, Callable[[Path], Any]] = {
    "segment": lambda root: Segment(str(root), shape=[18]),
    "sensorless": lambda root: SensorlessDrive(str(root), shape=[48]),
    "gaussian2d": lambda root: PostNetCsv(str(root), "gaussian2d/2DGaussians-0.2.csv", shape=[2]),
}


def sentence(source: Any) -> str:
    with pytest.raises(DataError) as error:
        source.prepare()
    text = str(error.value)
    assert "\n" not in text and "https://" in text
    return text


@pytest.mark.parametrize(
    ("name", "files"),
    [
        (
            "segment",
            [
                "segment_scale_sky_missing.csv",
                "segment_scale_sky_only.csv",
                "segmentation.data",
                "segmentation.test",
                "segment-challenge.arff",
                "segment-test.arff",
            ],
        ),
        ("sensorless", [layouts.SENSORLESS, layouts.SENSORLESS_SUBSET]),
        ("gaussian2d", ["2DGaussians-0.2.csv"]),
    ],
)
def test_missing_files_are_named_with_their_folder(name: str, files: list[str], tmp_path: Path) -> None:
    text = sentence(SOURCES[name](tmp_path))
    assert str(tmp_path / name) in text and all(file in text for file in files)


def truncate(path: Path) -> None:
    path.write_text(path.read_text()[: path.stat().st_size * 2 // 3])


def drop_lines(path: Path, *, first: int, stop: int) -> None:
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:first] + lines[stop:]) + "\n")


def drop_column(path: Path, column: int, delimiter: str = ",") -> None:
    rows = [line.split(delimiter) for line in path.read_text().splitlines()]
    path.write_text("\n".join(delimiter.join(row[:column] + row[column + 1 :]) for row in rows) + "\n")


def replace_text(path: Path, old: str, new: str) -> None:
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


CSV, UCI, ARFF = "segment/segment_scale_sky_missing.csv", "segment/segmentation.test", "segment/segment-test.arff"
FAULTS: list[tuple[str, str, Callable[[Path], None], str]] = [
    (
        "csv",
        CSV,
        truncate,
        r"is damaged \(the number of columns changed from \d+ to \d+|rows without a label at its end: 1",
    ),
    ("csv", CSV, lambda p: drop_lines(p, first=60, stop=70), r"has 110 rows of 18 features and says 120 of 18"),
    ("csv", CSV, lambda p: drop_column(p, 3), "has rows of 19 numbers where 20 are expected"),
    ("csv", CSV, lambda p: drop_column(p, 19), r"has rows of 19 numbers where 20 are expected"),
    ("csv", CSV, lambda p: replace_text(p, ",3.0\n", ",\n"), r"is damaged \(could not convert string ''"),
    ("csv", CSV, lambda p: replace_text(p, ",3.0\n", ",2.5\n"), r"has the label 2.5 in its row \d+"),
    ("csv", CSV, lambda p: replace_text(p, ",3.0\n", ",7.0\n"), "all of the seven have 330"),
    ("csv", CSV, lambda p: replace_text(p, ",3.0\n", ",2.0\n"), r"\[20, 20, 40, 0, 20, 20, 20\] rows"),
    ("csv", CSV, lambda p: p.write_bytes(b"\xff\xfe\x00"), r"is damaged \(it is no text\)"),
    ("csv", CSV, lambda p: p.write_text(""), r"is damaged \(it has no rows\)"),
    ("csv", CSV, lambda p: drop_lines(p, first=122, stop=123), "rows without a label at its end: 2, where 3"),
    ("uci", UCI, truncate, r"is damaged \(the number of columns|could not convert|rows of the classes"),
    ("uci", UCI, lambda p: drop_lines(p, first=40, stop=999), "all of the seven have 330; get both again"),
    ("uci", UCI, lambda p: drop_column(p, 5), r"has rows of 18 numbers where 19 are expected|is damaged"),
    ("uci", UCI, lambda p: drop_column(p, 0), r"is damaged \(it has no rows\)"),
    ("uci", UCI, lambda p: replace_text(p, "\nPATH,", "\nPATTH,"), "rows of the unknown class 'patth'"),
    ("arff", ARFF, lambda p: replace_text(p, ",window\n", ",door\n"), "rows of the unknown class 'door'"),
    ("arff", ARFF, lambda p: replace_text(p, "@data", ""), r"is damaged \(it has no rows\)"),
    ("arff", ARFF, lambda p: replace_text(p, ",9,", ",?,"), r"is damaged \(could not convert string '\?'"),
    ("arff", ARFF, lambda p: replace_text(p, ",9,", ","), "has rows of 18 numbers where 19 are expected"),
]


@pytest.mark.parametrize(("layout", "file", "spoil", "message"), FAULTS)
def test_damaged_segment_files(
    layout: str, file: str, spoil: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    WRITERS[layout](tmp_path)
    spoil(tmp_path / file)
    text = sentence(SOURCES["segment"](tmp_path))
    assert re.search(message, text) and str(tmp_path / "segment") in text


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (truncate, r"is damaged \(the number of columns changed|has the classes \[1, 2, 3, 4, 5, 6, 7\]"),
        (lambda p: drop_lines(p, first=180, stop=999), r"has the classes \[1, 2, 3, 4, 5, 6, 7, 8, 9\], not 1 to 11"),
        (lambda p: drop_column(p, 48, " "), "has rows of 48 numbers where 49 are expected"),
        (lambda p: replace_text(p, " 11\n", " 12\n"), r"has the classes \[1, .*, 12\], not 1 to 11"),
        (lambda p: replace_text(p, " 11\n", " x\n"), "is damaged .could not convert string 'x'"),
        (lambda p: replace_text(p, " 11\n", " nan\n"), "has the label nan in its row 200"),
        (lambda p: p.write_text(""), r"is damaged \(it has no rows\)"),
    ],
)
def test_damaged_sensorless_files(spoil: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    layouts.write_sensorless(tmp_path)
    spoil(tmp_path / "sensorless" / layouts.SENSORLESS)
    text = sentence(SOURCES["sensorless"](tmp_path))
    assert re.search(message, text) and layouts.SENSORLESS in text


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: drop_column(p, 3), r"has 90 rows of 1 features and says 90 of 2|has the label -?\d\.\d+ in its row"),
        (lambda p: p.write_text(",0\n0,1.0\n"), "header does not name an index, features and a label"),
        (lambda p: replace_text(p, "91,2.0,,", "91,3.0,,"), "has 90 rows of 2 features and says 90 of 3"),
        (lambda p: replace_text(p, "91,2.0,,", "91,x,,"), "is damaged .could not convert string 'x'"),
    ],
)
def test_damaged_csv_files(spoil: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    layouts.write_gaussian2d(tmp_path)
    spoil(tmp_path / "gaussian2d" / "2DGaussians-0.2.csv")
    assert re.search(message, sentence(SOURCES["gaussian2d"](tmp_path)))


def test_values_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    x = np.zeros((6, 2))
    x[4, 1] = np.nan
    layouts.write_postnet_csv(tmp_path / "gaussian2d" / "2DGaussians-0.2.csv", x, np.arange(6) % 3)
    with pytest.raises(DataError, match="2DGaussians-0.2 has values that are NaN or infinite"):
        SOURCES["gaussian2d"](tmp_path).prepare()


def test_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="layout must be 'auto', 'csv', 'uci' or 'arff', got 'xls'"):
        Segment("data", layout="xls", shape=[18])
    for value in (0, "largest", 2.5):
        with pytest.raises(ValueError, match="max_per_class must be null, 'smallest' or at least 1, got"):
            SensorlessDrive("data", max_per_class=value, shape=[48])  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "features"), [("segment", 18), ("sensorless", 48), ("gaussian2d", 2)])
def test_another_shape_is_refused(name: str, features: int, published: Callable[[], Path]) -> None:
    source = SOURCES[name](published())
    source.shape = (5,)
    with pytest.raises(DataError, match=rf"is a table of {features} features and cannot be given the shape \(5,\)"):
        source.prepare()
