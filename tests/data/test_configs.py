"""Every YAML file in configs/source, found by globbing, builds a data set that keeps the contract."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from tests.conftest import compose_points, real_data
from tests.data.layouts import OWN_PATHS, write_all
from uncertainty_est.building import build_data
from uncertainty_est.data.source import SPLIT_NAMES, Source, Split
from uncertainty_est.errors import DataError

FILES = sorted((Path(__file__).resolve().parents[2] / "configs" / "source").glob("*.yaml"))
SHAPES = ([2], [13], [18], [30], [48], [1, 8, 8])


def node(file: Path, shape: list[int], root: Path, split_seed: int = 1) -> DictConfig:
    """The file in a composition with the digits as its in-distribution set, which some sets are made of."""
    digits = OmegaConf.load(file.with_stem("digits"))
    fixed = {"data_shape": shape, "data_root": str(root), "split_seed": split_seed, "dataset": "digits"}
    fixed["path"] = str(root / OWN_PATHS.get(file.stem, ""))
    return OmegaConf.create({"fixed": {**fixed, "sources": {"digits": digits}}, "node": OmegaConf.load(file)}).node


def build(file: Path, root: Path, split_seed: int = 1) -> Source:
    """The source at the first of `SHAPES` that it can make."""
    for shape in SHAPES:
        # With OmegaConf's own lists, as Hydra hands them over by default.
        source = instantiate(node(file, shape, root, split_seed))
        try:
            source.prepare()
            source.split("test")
        except DataError:
            continue
        return source
    raise AssertionError(f"{file.name} can make none of {SHAPES}")


def splits_of(source: Source) -> dict[str, Split]:
    splits: dict[str, Split] = {}
    for name in SPLIT_NAMES:
        try:
            splits[name] = source.split(name)
        except DataError as error:  # OOD sets use all they have for validation and testing, some for testing alone
            assert re.search(rf"its {name} split is empty|no (split from a )?train part", str(error)) and name != "test"
    return splits


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All published sets, written once: nothing here changes them."""
    folder = tmp_path_factory.mktemp("published")
    write_all(folder)
    return folder


def test_there_are_sources() -> None:
    assert len(FILES) >= 50


@pytest.mark.usefixtures("published")  # torchvision takes files without the official checksums
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_shapes_types_labels_and_disjoint_deterministic_splits(file: Path, root: Path) -> None:
    source, again, other = build(file, root), build(file, root), build(file, root, split_seed=2)
    splits, repeated, reseeded = splits_of(source), splits_of(again), splits_of(other)
    assert "test" in splits
    for name, split in splits.items():
        n = len(split)
        assert n > 0
        assert split.x.shape == (n, *source.shape) and split.y.shape == split.indices.shape == (n,)
        assert split.x.dtype == (torch.uint8 if len(source.shape) == 3 else torch.float32)
        assert split.x.is_contiguous() and split.y.dtype == split.indices.dtype == torch.int64
        assert (split.y == -1).all() or split.y.min() >= 0
        for field in ("x", "y", "indices"):
            assert torch.equal(getattr(split, field), getattr(repeated[name], field))
    for part in {split.part for split in splits.values()}:
        indices = torch.cat([split.indices for split in splits.values() if split.part == part])
        assert len(indices.unique()) == len(indices)
    if "val" in splits and splits["val"].part != "val":
        same = [torch.equal(getattr(splits["val"], key), getattr(reseeded["val"], key)) for key in ("x", "indices")]
        assert not all(same), "split_seed changes nothing"


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("digits", [1258, 180, 359]),
        ("photo_patches", [2544, 1696, 4240]),
        ("two_moons", [8000, 1000, 1000]),
        ("gaussian2d", [1200, 150, 150]),
        ("anomalous_gaussian2d", [0, 80, 320]),
        ("two_moons_far", [0, 538, 2151]),
    ],
)
def test_the_files_say_how_a_set_is_cut(name: str, sizes: list[int], tmp_path: Path) -> None:
    splits = splits_of(build(FILES[0].with_stem(name), tmp_path))
    assert [len(splits[split]) if split in splits else 0 for split in SPLIT_NAMES] == sizes


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("segment", [1584, 198, 198]),
        ("segment_ood", [0, 66, 264]),
        ("sensorless", [1440, 180, 180]),
        ("sensorless_ood", [0, 80, 320]),
        ("gaussian2d_file", [1200, 150, 150]),
        ("anomalous_gaussian2d_file", [0, 80, 320]),
    ],
)
def test_real_tables_are_cut_as_the_files_say(name: str, sizes: list[int]) -> None:
    splits = splits_of(build(FILES[0].with_stem(name), real_data()))
    assert [len(splits[split]) if split in splits else 0 for split in SPLIT_NAMES] == sizes


@pytest.mark.parametrize(
    ("dataset", "more", "sizes"),
    [
        ("segment", [], [1584, 198, 198]),
        ("segment", ["classes=[0,1,2,4,5]"], [1320, 165, 165]),
        ("segment", ["val_fraction=0.2", "test_fraction=0.2"], [1188, 396, 396]),
        ("sensorless", ["val_fraction=0.2", "test_fraction=0.2", "max_per_class=100"], [540, 180, 180]),
    ],
)
def test_other_splits_by_override(dataset: str, more: list[str], sizes: list[int]) -> None:
    """As the comments in configs/dataset say."""
    overrides = [f"+fixed.sources.{dataset}.{item}" for item in more]
    if more and more[0].startswith("classes"):
        overrides.append("fixed.num_classes=5")
    (fixed,) = compose_points(
        f"dataset={dataset}", "model=fc_ce_baseline", f"fixed.data_root={real_data()}", *overrides
    )
    data = build_data(fixed)
    data.setup()
    assert [len(indices) for indices in data.split_indices().values()] == sizes
    assert len(data.class_counts) == fixed["num_classes"] and data.class_counts.min() > 0


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_shape_that_cannot_be_made_is_refused(file: Path, root: Path) -> None:
    with pytest.raises(DataError, match=r"shape|\(2, 3\)"):
        instantiate(node(file, [2, 3], root)).split("test")
