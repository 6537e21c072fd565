"""Features of a trained classifier as data sets: what is in the files, what can be done with them, what is refused."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from sklearn.datasets import load_digits

from tests.conftest import CONFIGS, Trained, compose_points
from tests.processes import Command
from uncertainty_est import checkpoints
from uncertainty_est.building import build_data, build_method
from uncertainty_est.cli import one_sentence_errors
from uncertainty_est.config import build
from uncertainty_est.data.source import SPLIT_NAMES
from uncertainty_est.embed import Report, Request, embed, embed_splits, next_command
from uncertainty_est.errors import DataError
from uncertainty_est.evaluate import evaluate
from uncertainty_est.models.ce_baseline import CEBaseline
from uncertainty_est.request import Request as EvaluateRequest
from uncertainty_est.run import run
from uncertainty_est.run_folder import read_config

Get = Callable[[str], Trained]
SOURCES = CONFIGS / "source"
NAMES = ["digits", "photo_patches", "between", "digits_unscaled", "unlabelled"]
EMBEDDED = ["digits", "mnist", "fashionmnist", "cifar10"]


@pytest.fixture(scope="module")
def run_dir(trained: Get, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a classifier's run whose data root holds one more set, of test images without labels."""
    folder, root = tmp_path_factory.mktemp("run") / "ce", tmp_path_factory.mktemp("root")
    shutil.copytree(trained("img_ce_baseline").run.path, folder)
    edit(folder, data_root=str(root))
    np.savez(root / "unlabelled.npz", x_test=np.random.default_rng(0).integers(0, 256, (30, 8, 8), dtype=np.uint8))
    return folder


@pytest.fixture(scope="module")
def report(run_dir: Path) -> Report:
    return embed(Request(run_dir, SOURCES, datasets=NAMES))


@pytest.fixture
def method(run_dir: Path) -> CEBaseline:
    loaded = checkpoints.load(run_dir).method
    assert isinstance(loaded, CEBaseline)
    return loaded


def edit(run_dir: Path, **changes: Any) -> None:
    path = run_dir / "config.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}))


def arrays_of(report: Report, name: str) -> dict[str, np.ndarray]:
    with np.load(report.folder / f"{name}_embedded.npz", allow_pickle=False) as file:
        return dict(file)


def features_of_levels(method: CEBaseline, levels: np.ndarray) -> np.ndarray:
    """Features of images ``[N, 8, 8]`` of levels 0..255, scaled by hand as configs/dataset/digits.yaml says."""
    with torch.no_grad():
        return method.eval().outputs(torch.from_numpy(levels).float()[:, None] / 127.5 - 1)["features"].numpy()


def sentence_of(call: Callable[[], Any], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop, one_sentence_errors():
        call()
    assert stop.value.code == 1
    text = capsys.readouterr().err
    assert text.startswith("error: ") and text.count("\n") == 1, text
    return text


def test_a_file_for_every_set_beside_the_run(report: Report, run_dir: Path) -> None:
    assert report.failed == {}
    assert report.files == {name: run_dir / "embedded" / f"{name}_embedded.npz" for name in NAMES}
    for name in NAMES:
        arrays = arrays_of(report, name)
        for split in {key.removeprefix("x_") for key in arrays if key.startswith("x_")}:
            x, y = arrays[f"x_{split}"], arrays[f"y_{split}"]
            assert (x.dtype, y.dtype) == (np.float32, np.int64)
            assert x.shape == (len(y), 64) and len(y)


def test_id_features_are_the_methods_own_on_the_runs_own_splits(
    report: Report, run_dir: Path, method: CEBaseline
) -> None:
    data = build_data(read_config(run_dir))
    arrays, digits = arrays_of(report, "digits"), load_digits()
    with np.load(run_dir / "splits.npz") as splits:
        indices = dict(splits)
    for split in SPLIT_NAMES:
        assert np.array_equal(arrays[f"y_{split}"], digits.target[indices[split]])
        with torch.no_grad():
            own = torch.cat([method.outputs(x)["features"] for x, _ in data.plain_loader(split)])
        assert np.array_equal(arrays[f"x_{split}"], own.numpy())
        # And on pixels that no code of ours has touched: neither augmented nor normalised in another way.
        levels = np.rint(digits.images[indices[split]] * 255 / 16)
        np.testing.assert_allclose(arrays[f"x_{split}"], features_of_levels(method, levels), rtol=1e-4, atol=1e-5)


def test_the_head_on_the_features_is_the_classifier(report: Report, trained: Get) -> None:
    trained_run = trained("img_ce_baseline")
    head = trained_run.run.method.network.head
    arrays = arrays_of(report, "digits")
    logits = arrays["x_test"] @ head.weight.detach().numpy().T + head.bias.detach().numpy()
    accuracy = 100 * (logits.argmax(1) == arrays["y_test"]).mean()
    assert accuracy == pytest.approx(trained_run.results["classification"]["Accuracy"])


def test_ood_sets_come_in_the_splits_that_they_have(report: Report, run_dir: Path, method: CEBaseline) -> None:
    assert set(arrays_of(report, "unlabelled")) == {"x_test", "y_test"}
    assert (arrays_of(report, "unlabelled")["y_test"] == -1).all()
    for name in ("photo_patches", "between", "digits_unscaled"):
        arrays = arrays_of(report, name)
        assert set(arrays) == {f"{kind}_{split}" for kind in "xy" for split in SPLIT_NAMES}
        assert arrays["y_test"].min() >= 0
    sizes = [len(arrays_of(report, "photo_patches")[f"y_{split}"]) for split in SPLIT_NAMES]
    assert sizes == [2544, 1696, 4240]
    # Unscaled images bypass the transform.
    digits, unscaled = load_digits(), arrays_of(report, "digits_unscaled")
    with np.load(run_dir / "splits.npz") as splits:
        raw = np.rint(digits.images[splits["test"]] * 255 / 16)
    expected = features_of_levels(method, (raw + 1) * 127.5)
    np.testing.assert_allclose(unscaled["x_test"], expected, rtol=1e-3, atol=1e-3)


def test_the_same_run_gives_the_same_features_whatever_the_batch_size(
    report: Report, run_dir: Path, tmp_path: Path
) -> None:
    names = ["digits", "photo_patches"]
    again = embed(Request(run_dir / "checkpoint.pt", SOURCES, names, tmp_path / "again"))
    other = embed(Request(run_dir, SOURCES, names, tmp_path / "other", batch_size=100))
    for name in names:
        expected, same, near = (arrays_of(r, name) for r in (report, again, other))
        assert same.keys() == expected.keys() == near.keys()
        for key, values in expected.items():
            assert np.array_equal(same[key], values)
            np.testing.assert_allclose(near[key], values, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def embedded_run(report: Report, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two epochs on the features of the digits."""
    (fixed,) = compose_points(
        "dataset=digits_embedded",
        "model=fc_ce_baseline",
        "trainer=cpu",
        "logger=none",
        f"fixed.data_root={report.folder}",
        f"fixed.output_folder={tmp_path_factory.mktemp('runs')}",
        "fixed.test_ood_datasets=[photo_patches_embedded,unlabelled_embedded]",
        "fixed.val_ood_datasets=[between_embedded]",
        "fixed.trainer_config.max_epochs=2",
        "fixed.trainer_config.enable_progress_bar=false",
    )
    return run(**fixed)


def test_a_table_method_trains_on_the_features_and_scores_ood_features(embedded_run: dict[str, Any]) -> None:
    assert embedded_run["classification"]["Accuracy"] > 90
    assert {"photo_patches_embedded", "unlabelled_embedded"} <= set(embedded_run["ood"])
    assert embedded_run["ood"]["photo_patches_embedded"]["max p(y|x)"]["AUROC"] > 60


def test_the_splits_of_the_embedded_set_are_the_parts_of_its_file(
    embedded_run: dict[str, Any], report: Report, tmp_path: Path
) -> None:
    folder, arrays = Path(embedded_run["run_dir"]), arrays_of(report, "digits")
    with np.load(folder / "splits.npz") as splits:
        for split in SPLIT_NAMES:
            assert np.array_equal(splits[split], np.arange(len(arrays[f"y_{split}"])))
    data = build_data(read_config(folder))
    x = torch.cat([x for x, _ in data.plain_loader("val")]).numpy()
    mean, std = arrays["x_train"].astype(float).mean(0), arrays["x_train"].astype(float).std(0)
    np.testing.assert_allclose(x, (arrays["x_val"] - mean) / np.where(std > 0, std, 1), rtol=1e-3, atol=1e-4)
    again = evaluate(EvaluateRequest(tmp_path, SOURCES, checkpoint=[folder], no_plots=True))
    assert again.failed == []
    assert set(again.ood["n_ood"]) == {4240, 30}


def test_the_command_names_what_it_left_out_and_what_to_do_next(run_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(run_dir, tmp_path / "ce", ignore=shutil.ignore_patterns("embedded"))
    edit(tmp_path / "ce", data_root=str(tmp_path))
    (tmp_path / "damaged.npz").write_text("no data")
    command = ["-m", "uncertainty_est.data.embed", "--run", str(tmp_path / "ce")]
    result = Command([*command, "--datasets", "damaged", "between", "digits", "--device", "cpu"], tmp_path).wait()
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    assert "data set 'damaged' is left out" in result.stdout
    folder = tmp_path / "ce" / "embedded"
    assert f"{folder / 'digits_embedded.npz'}: x_train [1258, 64], x_val [180, 64], x_test [359, 64]" in result.stdout
    assert sorted(p.name for p in folder.glob("*.npz")) == ["between_embedded.npz", "digits_embedded.npz"]
    last = result.stdout.splitlines()[-1].removeprefix("next: ")
    assert last.startswith("python train_local.py dataset=digits_embedded model=")
    (fixed,) = compose_points(*shlex.split(last)[2:])
    assert (fixed["data_root"], fixed["data_shape"]) == (str(folder), [64])
    assert fixed["test_ood_datasets"] == ["between_embedded"]


def test_by_default_the_runs_own_sets_are_embedded(run_dir: Path, tmp_path: Path) -> None:
    assert list(embed(Request(run_dir, SOURCES, output_folder=tmp_path)).files) == ["digits", "between"]


def test_the_next_command_of_a_set_that_has_no_configuration_says_what_is_different(tmp_path: Path) -> None:
    files = {name: tmp_path / f"{name}_embedded.npz" for name in ("digits_holdout", "constant")}
    words = next_command({"dataset": "digits_holdout", "num_classes": 8}, Report(tmp_path, 32, files), SOURCES)
    (fixed,) = compose_points(*shlex.split(" ".join(words))[2:])
    assert fixed["dataset"] == "digits_holdout_embedded"
    assert (fixed["num_classes"], fixed["data_shape"]) == (8, [32])
    assert fixed["test_ood_datasets"] == ["constant_embedded"]


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys, uncertainty_est.data.embed as e; e.parser().format_help(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_wrong_run_set_option_or_folder(
    run_dir: Path, report: Report, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(**changes: Any) -> str:
        request = {"run": run_dir, "source_dir": SOURCES, "output_folder": tmp_path / "out"} | changes
        return sentence_of(lambda: embed(Request(**request)), capsys)

    assert "'nowhere' is no finished run" in refused(run=Path("nowhere"))
    assert "no data set 'photo_patchez'" in refused(datasets=["photo_patchez"])
    assert "--batch-size: must be at least 1, got 0" in refused(batch_size=0)
    assert "--device cuda:77" in refused(device="cuda:77")
    assert "--output-folder: cannot write to" in refused(output_folder=run_dir / "config.yaml")
    assert not (tmp_path / "out").exists(), "nothing was computed, so nothing may be left behind"


def test_features_of_another_run_do_not_get_into_the_same_folder(
    run_dir: Path, report: Report, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run_dir, tmp_path / "ce")
    embed(Request(tmp_path / "ce", SOURCES, ["digits"]))  # the same weights elsewhere are the same run
    content = torch.load(tmp_path / "ce" / "checkpoint.pt", weights_only=True)
    content["state_dict"]["network.head.bias"] += 1
    torch.save(content, tmp_path / "ce" / "checkpoint.pt")
    text = sentence_of(lambda: embed(Request(tmp_path / "ce", SOURCES, ["digits"])), capsys)
    assert "--output-folder" in text and "holds features of another run" in text


def test_a_run_whose_data_changed_or_that_was_tuned_on_the_set(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run_dir, tmp_path / "ce", ignore=shutil.ignore_patterns("embedded"))
    request = Request(tmp_path / "ce", SOURCES, ["photo_patches"])
    edit(tmp_path / "ce", val_ood_datasets=["photo_patches"])
    assert "'photo_patches' is also in" in sentence_of(lambda: embed(request), capsys)
    with np.load(tmp_path / "ce" / "splits.npz") as splits:
        changed = {name: values[::-1] for name, values in splits.items()}
    np.savez(tmp_path / "ce" / "splits.npz", **changed)
    edit(tmp_path / "ce", val_ood_datasets=[])
    assert "no longer the one the run was trained with" in sentence_of(lambda: embed(request), capsys)
    assert not (tmp_path / "ce" / "embedded").exists()


def test_a_method_without_features(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (fixed,) = compose_points("dataset=digits", "model=img_deep_ensemble", "fixed.model_config.num_members=2")
    checkpoints.save_config(tmp_path, fixed)
    checkpoints.save_weights(tmp_path, build_method(fixed))
    text = sentence_of(lambda: embed(Request(tmp_path, SOURCES)), capsys)
    assert "--run: DeepEnsemble has no features" in text and "model=img_ce_baseline" in text


def test_a_set_of_another_shape_or_with_infinite_features_is_left_out(
    run_dir: Path, tmp_path: Path, method: CEBaseline, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(run_dir, tmp_path / "ce", ignore=shutil.ignore_patterns("embedded"))
    sources = read_config(run_dir)["sources"]
    sources["between"]["shape"] = [1, 9, 9]
    edit(tmp_path / "ce", sources=sources)
    report = embed(Request(tmp_path / "ce", SOURCES, ["between", "digits"]))
    assert list(report.files) == ["digits"]
    assert "items have the shape (1, 9, 9), but the run takes (1, 8, 8)" in report.failed["between"]
    assert "data set 'between' is left out" in caplog.text
    infinite = [(torch.full((2, 1, 8, 8), torch.inf), torch.zeros(2, dtype=torch.int64))]
    with pytest.raises(DataError, match="features of the test split are not all finite"):
        embed_splits(method, {"test": infinite})  # type: ignore[dict-item]


@pytest.mark.parametrize("dataset", EMBEDDED)
def test_the_configurations_mirror_those_of_the_images(dataset: str, tmp_path: Path) -> None:
    (images,) = compose_points(f"dataset={dataset}", "model=img_ce_baseline", f"fixed.data_root={tmp_path}")
    (tables,) = compose_points(f"dataset={dataset}_embedded", "model=fc_ce_baseline", f"fixed.data_root={tmp_path}")

    def embedded(names: list[str]) -> list[str]:
        return [f"{name}_embedded" for name in names]

    assert tables["dataset"] == f"{dataset}_embedded"
    assert tables["test_ood_datasets"] == embedded(images["test_ood_datasets"])
    assert tables["ood_groups"] == {name: embedded(group) for name, group in images["ood_groups"].items()}
    assert tables["num_classes"] == images["num_classes"]
    with torch.device("meta"):
        network = build(images["model_config"]["network"])
    assert tables["data_shape"] == [network.feature_dim]
    assert tables["model_config"]["network"]["_target_"].endswith("fc.FC")


def test_every_embedded_configuration_is_held_to_this() -> None:
    assert {path.stem for path in (CONFIGS / "dataset").glob("*_embedded.yaml")} == {f"{d}_embedded" for d in EMBEDDED}
