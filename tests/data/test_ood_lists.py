"""The published lists of OOD sets, ``ood=…``, and the lists that come with a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import CONFIGS, DATASETS, compose_points
from tests.data import layouts
from uncertainty_est.building import build_data
from uncertainty_est.config import build

ODIN = ["tiny_imagenet_crop", "tiny_imagenet_resize", "lsun_crop", "lsun_resize", "isun"]
PUBLISHED = {
    ("cifar10", "odin"): ([], [*ODIN, "uniform_noise", "gaussian_noise"]),
    ("cifar100", "odin"): ([], [*ODIN, "uniform_noise", "gaussian_noise"]),
    ("cifar10", "eloc"): ([], ODIN[:4]),
    ("cifar100", "eloc"): ([], ODIN[:4]),
    ("cifar10", "energy"): ([], ["textures_all", "svhn", "places365", "lsun_crop", "lsun_resize", "isun"]),
    ("cifar100", "energy"): ([], ["textures_all", "svhn", "places365", "lsun_crop", "lsun_resize", "isun"]),
    ("mnist", "oe_mnist"): (["fashionmnist", "notmnist", "omniglot"], ["gaussian_noise", "cifar10"]),
    ("cifar10", "oe_cifar10"): (["cifar100"], ["gaussian_noise", "textures_all", "svhn", "places365", "lsun_resize"]),
    ("cifar100", "oe_cifar100"): (["cifar10"], ["gaussian_noise", "textures_all", "svhn", "places365", "lsun_resize"]),
    ("mnist", "openood_mnist"): (
        ["notmnist", "fashionmnist"],
        ["textures_all", "cifar10", "tiny_imagenet", "places365"],
    ),
    ("cifar10", "openood_cifar10"): (["cifar100", "tiny_imagenet"], ["mnist", "svhn", "textures_all", "places365"]),
    ("cifar100", "openood_cifar100"): (["cifar10", "tiny_imagenet"], ["mnist", "svhn", "textures_all", "places365"]),
    ("imagenet", "openood_imagenet"): (["ssb_hard", "ninco"], ["inaturalist", "textures_all", "openimage_o"]),
    ("imagenet200", "openood_imagenet200"): (["ssb_hard", "ninco"], ["inaturalist", "textures_all", "openimage_o"]),
}


def test_every_list_is_checked_here() -> None:
    assert {ood for _, ood in PUBLISHED} == {path.stem for path in (CONFIGS / "ood").glob("*.yaml")}


@pytest.mark.parametrize(("dataset", "ood"), PUBLISHED)
def test_published_lists(dataset: str, ood: str) -> None:
    (fixed,) = compose_points(f"dataset={dataset}", f"ood={ood}", "model=img_ce_baseline")
    near, far = PUBLISHED[dataset, ood]
    assert fixed["ood_groups"] == {"near": near, "far": far}
    assert sorted(fixed["test_ood_datasets"]) == sorted(near + far)
    assert fixed["val_ood_datasets"] == (["isun"] if ood == "eloc" else [])
    data = build_data(fixed)
    assert list(data.ood_sources["test"]) == fixed["test_ood_datasets"]
    assert all(tuple(source.shape) == data.data_shape for source in data.ood_sources["test"].values())


def targets(node: Any) -> set[str]:
    """Classes of a source and of what it is made of."""
    inner = [value for value in node.values() if isinstance(value, dict) and "_target_" in value]
    return {node["_target_"].rpartition(".")[2]}.union(*map(targets, inner))


@pytest.mark.parametrize("dataset", DATASETS)
def test_default_lists_ask_for_nothing_that_is_put_there_by_hand(dataset: str) -> None:
    """Beside the data set itself: what torchvision downloads, what is generated, and parts of the set's own files."""
    model = "img_ce_baseline" if "Image" in (CONFIGS / "dataset" / f"{dataset}.yaml").read_text() else "fc_ce_baseline"
    (fixed,) = compose_points(f"dataset={dataset}", f"model={model}")
    asked = set().union(*(targets(fixed["sources"][name]) for name in fixed["test_ood_datasets"]))
    assert not asked & {"ImageFolder", "TinyImageNet", "CorruptedCifar"}


def test_openoods_lists_of_cifars_ood_sets_are_used_where_they_are(tmp_path: Path) -> None:
    asked = ("dataset=cifar10", "ood=openood_cifar10", "model=img_ce_baseline", f"fixed.data_root={tmp_path}")
    layouts.write_tiny_imagenet(tmp_path)
    layouts.write_folders(tmp_path, ["val_256", "images_classic/places365/a", "images_classic/tin/val/n01443537"])
    folder = tmp_path / "benchmark_imglist" / "cifar10"
    folder.mkdir(parents=True)
    sizes = {}
    for listed in (False, True):
        if listed:
            (folder / "test_tin.txt").write_text("tin/val/n01443537/4.png -1\ntin/val/n01443537/2.png -1\n")
            (folder / "test_places365.txt").write_text("places365/a/7.png -1\n")
        (fixed,) = compose_points(*asked)
        splits = {n: build(fixed["sources"][n]).split("test") for n in ("tiny_imagenet", "places365")}
        sizes[listed] = [len(split) for split in splits.values()]
    assert sizes == {False: [6, 9], True: [2, 1]}
    assert splits["tiny_imagenet"].x[:, 0, 0, 0].tolist() == [4, 2] and splits["tiny_imagenet"].y.tolist() == [-1, -1]
