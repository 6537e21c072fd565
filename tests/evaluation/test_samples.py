"""The figure of samples: the data's own units, both kinds of data, nothing left changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from tests.conftest import CONFIGS, Trained
from uncertainty_est.data.module import OODDataModule
from uncertainty_est.data.sources.image import Digits
from uncertainty_est.data.sources.synthetic import Gaussian2D
from uncertainty_est.data.sources.tabular import BundledTable
from uncertainty_est.data.transforms import ImageTransform, TableTransform
from uncertainty_est.evaluate import evaluate
from uncertainty_est.evaluation.samples import sample_figure
from uncertainty_est.models.base import Batch, Method, Prediction
from uncertainty_est.request import Request


class Constant(Method):
    """Draws the same number everywhere."""

    can_sample = True

    def __init__(self, data_shape: Sequence[int], value: float) -> None:
        super().__init__()
        self.data_shape, self.value = data_shape, value

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        raise AssertionError("not trained here")

    def _predict(self, x: Tensor) -> Prediction:
        raise AssertionError("not scored here")

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        assert not self.training and not torch.is_grad_enabled()
        return torch.full((n, *self.data_shape), self.value)


def module(source: object, transform: object, shape: Sequence[int], classes: int) -> OODDataModule:
    data = OODDataModule(
        id_source=source,  # type: ignore[arg-type]
        transform=transform,  # type: ignore[arg-type]
        data_shape=shape,
        num_classes=classes,
        batch_size=8,
        eval_batch_size=8,
        val_ood_sources={},
        test_ood_sources={},
        seed=0,
    )
    data.setup()
    return data


def test_images_are_shown_with_their_own_grey_levels() -> None:
    data = module(Digits(shape=[1, 8, 8]), ImageTransform(mean=0.5, std=0.5), [1, 8, 8], 10)
    method = Constant([1, 8, 8], 0.0).train()
    figure = sample_figure(method, data, "title")
    assert figure is not None and method.training
    real, drawn = (np.asarray(axes.images[0].get_array()) for axes in figure.axes)
    assert real.shape == drawn.shape == (8 * 9 + 1, 8 * 9 + 1, 3)
    assert set(np.unique(drawn)) == {128, 255}, "mid grey tiles, white between them"
    assert np.array_equal(real[1:9, 1:9, 0], data.id_source.split("test").x[0, 0].numpy())


def test_two_features_are_points_in_the_datas_own_units() -> None:
    data = module(Gaussian2D(shape=[2]), TableTransform("standard"), [2], 3)
    figure = sample_figure(Constant([2], 0.0), data, "title")
    assert figure is not None
    drawn = figure.axes[1].collections[0].get_offsets()
    mean = data.id_source.split("train").x.mean(0).numpy()
    assert np.allclose(drawn, mean, atol=1e-5)


def test_wider_tables_have_no_picture() -> None:
    data = module(BundledTable("wine", shape=[13]), TableTransform("standard"), [13], 3)
    assert sample_figure(Constant([13], 0.0), data, "title") is None


@pytest.mark.parametrize("name", ["ood", "clf"])
def test_quantities_become_rows_of_the_tables(name: str, trained: Callable[[str], Trained], tmp_path: Path) -> None:
    run = trained("fc_norm_flow_coupling")
    report = evaluate(Request(tmp_path, CONFIGS / "source", checkpoint=[run.run.path], eval_classification=True))
    assert report.failed == []
    rows = pd.read_csv(tmp_path / f"{name}-out.csv").query("Metric == 'NLL of x'")
    assert len(rows) == 1
    recorded = run.results["classification"] if name == "clf" else run.results["ood"]["between"]["Mean"]
    assert rows["Value"].item() == pytest.approx(recorded["NLL of x"], rel=1e-6)
    folder = tmp_path / "figures-out" / run.run.path.name
    assert (folder / "samples.png").is_file() and not (folder / "reliability.png").exists()
