"""CCU: golden values, its objective, confidence far away and under attack, its floor, and where it starts from."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from sklearn.datasets import make_moons
from torch import Tensor, nn

from tests.conftest import Trained, compose_points, quick_overrides
from tests.densities.test_spherical_mixture import as_distribution
from tests.processes import in_two_processes
from uncertainty_est import checkpoints
from uncertainty_est.densities.fitted import Fitted
from uncertainty_est.errors import ConfigError, NotFittedError
from uncertainty_est.models.base import Batch
from uncertainty_est.models.ccu import CCU
from uncertainty_est.networks.fc import FC
from uncertainty_est.run import run

Items = tuple[Tensor, Tensor]
Get = Callable[[str], Trained]


@pytest.fixture
def outliers() -> Items:
    return 6 * torch.rand(60, 3, generator=torch.Generator().manual_seed(2)) - 3, torch.full((60,), -1)


@pytest.fixture
def method(network: FC, batch: Items, outliers: Items) -> CCU:
    """Four classes in three dimensions, densities fitted to unlike widths, with a network that is sure of itself."""
    return fitted(network, batch, outliers)


def fitted(network: FC, batch: Items, outliers: Items, **options: object) -> CCU:
    with torch.no_grad():
        network.head.weight.mul_(30)
    method = CCU(network, [3], num_components=4, **options)  # type: ignore[arg-type]
    wide = batch[0] * torch.tensor([1.0, 0.2, 0.5])
    method.fit_before([(wide[:25], batch[1][:25]), (wide[25:], batch[1][25:])], [outliers])
    return method.eval()


def moons(n: int = 600) -> tuple[CCU, Tensor]:
    """A method with densities of two moons and a steep network, as an attacker would like it."""
    x, y = (torch.from_numpy(a).float() for a in make_moons(n, noise=0.1, random_state=0))
    torch.manual_seed(0)
    network = FC(data_shape=[2], num_classes=2, hidden_dims=[32, 32])
    with torch.no_grad():
        network.head.weight.mul_(100)
    method = CCU(network, [2], num_components=10)
    noise = 8 * torch.rand(n, 2) - 4
    method.fit_before([(x, y)], [(noise, y)])
    return method.eval(), x


def golden() -> CCU:
    """In: standard deviation 1 at the origin. Out: 2. A network that always says (0.9, 0.1)."""
    network = FC([2], 2, hidden_dims=[4])
    method = CCU(network, [2], num_components=1, whitening="none")
    assert method.outside is not None
    with torch.no_grad():
        network.head.weight.zero_()
        network.head.bias.copy_(torch.tensor([0.9, 0.1]).log())
        method.outside.log_var.fill_(math.log(4))
        method.inside.fitted.fill_(True)
        method.outside.fitted.fill_(True)
    return method.eval()


# ------------------------------------------------------------------------------------------------------ predictions


def test_golden_probabilities() -> None:
    probs = golden().classify(torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, -3.0]]))
    far = [0.5481575467671536, 0.45184245323284655]
    torch.testing.assert_close(probs, torch.tensor([[0.82, 0.18], far, far]), rtol=1e-6, atol=0)


def test_golden_certificate() -> None:
    method, x = golden(), torch.tensor([[8.0, 0.0]])
    assert method.log_ratio_bound(x, torch.tensor([2.0])).exp().item() == pytest.approx(0.01634708575385627, rel=1e-12)
    assert method.confidence_bound(x, torch.tensor([2.0])).item() == pytest.approx(0.5080420783328, abs=1e-12)
    radius = method.certified_radius(x)
    assert radius.dtype == torch.float64
    assert radius.item() == pytest.approx(2.227756883624502, abs=1e-12)
    assert method.confidence_bound(x, radius).item() == pytest.approx(0.55, abs=1e-12)


@pytest.mark.parametrize("ratio", [-1e6, -30.0, 0.0, 30.0, 1e6])
def test_rows_sum_to_one_and_both_limits_are_exact(method: CCU, ratio: float) -> None:
    logits = torch.randn(9, 4, generator=torch.Generator().manual_seed(0)) * 20
    inside = torch.full((9,), -1e6 + ratio, dtype=torch.float64)
    outputs = {"logits": logits, "log_inside": inside, "log_outside": torch.full_like(inside, -1e6)}
    probs = method.predict_from(outputs).probs
    assert probs is not None
    torch.testing.assert_close(probs.sum(-1), torch.ones(9), rtol=0, atol=1e-6)
    if ratio == -1e6:
        assert (probs == 0.25).all()
    if ratio == 1e6:
        torch.testing.assert_close(probs, logits.softmax(-1))
    torch.testing.assert_close(method._log_mixture(outputs).exp().float(), probs, rtol=1e-5, atol=1e-30)


def test_scores_are_named_and_oriented(method: CCU, batch: Items) -> None:
    scores = method.get_ood_scores(torch.cat([batch[0] * torch.tensor([1.0, 0.2, 0.5]), 30 + batch[0]]))
    assert list(scores) == ["max p(y|x)", "log ratio", "log p(x|in)", "Entropy"]
    for name, score in scores.items():
        assert score[:40].mean() > score[40:].mean(), name


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_far_away_confidence_is_one_over_c_to_the_last_digit(method: CCU, precision: str) -> None:
    """Where the logarithms are near -1e5 and below, and although the network is certain."""
    direction = nn.functional.normalize(torch.randn(200, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16"):
        for distance in (300.0, 1e4, 1e8):
            x = distance * direction
            prediction = method.predict(x)
            assert prediction.scores["log p(x|in)"].max() < -1e4
            assert method.outputs(x)["logits"].softmax(-1).amax(-1).max() > 0.99
            assert prediction.probs is not None
            assert (prediction.probs == 0.25).all()


def test_confidence_falls_along_every_ray(method: CCU) -> None:
    direction = nn.functional.normalize(torch.randn(100, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    ratios = [method.get_ood_scores(distance * direction)["log ratio"] for distance in (5.0, 10.0, 20.0, 40.0, 1e3)]
    assert all((far < near).all() for near, far in pairwise(ratios))


def test_autocast_does_not_touch_the_densities(method: CCU, batch: Items) -> None:
    expected = method.log_densities(batch[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = method.log_densities(batch[0])
    assert all(torch.equal(a, b) and a.dtype == torch.float64 for a, b in zip(got, expected, strict=True))


def test_densities_are_of_the_input_and_not_of_its_whitened_form(method: CCU, batch: Items) -> None:
    inside, outside = method.log_densities(batch[0])
    x = batch[0].double().requires_grad_()
    jacobian = torch.autograd.functional.jacobian(lambda v: method.metric.whiten(v[None])[0], x[0].detach())
    volume = torch.linalg.slogdet(jacobian).logabsdet
    z = method.metric.whiten(x)
    assert method.outside is not None
    for got, mixture in ((inside, method.inside), (outside, method.outside)):
        torch.testing.assert_close(got, as_distribution(mixture).log_prob(z) + volume)


# -------------------------------------------------------------------------------------------------------- objective


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_the_loss_is_the_papers_objective(network: FC, batch: Items, outliers: Items, weight: float) -> None:
    method = fitted(network, batch, outliers, outlier_weight=weight)
    x, y = batch
    both = torch.cat([x, outliers[0]])
    inside, outside = (density.exp() for density in method.log_densities(both))
    softmax = network(both).double().softmax(-1)
    joint = softmax * inside[:, None] + weight * outside[:, None] / 4
    p, marginal = joint / joint.sum(-1, keepdim=True), (inside + weight * outside) / (1 + weight)
    of_data = -p[: len(x)].gather(1, y[:, None]).log().mean() - marginal[: len(x)].log().mean()
    of_outliers = -p[len(x) :].log().mean() - marginal[len(x) :].log().mean()
    parts = method.loss({"id": batch, "ood": outliers})
    total = torch.stack(list(parts.values())).sum()
    torch.testing.assert_close(total, ((of_data + weight * of_outliers) / (1 + weight)).float())
    total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters())


def test_every_outlier_counts(method: CCU, batch: Items, outliers: Items) -> None:
    x, y = outliers
    parts = method.loss({"id": batch, "ood": outliers})
    halves = [method.loss({"id": batch, "ood": (x[i::2], y[i::2])}) for i in range(2)]
    for name in ("uniform", "likelihood_ood"):
        torch.testing.assert_close(parts[name], (halves[0][name] + halves[1][name]) / 2)


def test_a_uniform_out_density_is_one_everywhere(network: FC, batch: Items, outliers: Items) -> None:
    method = fitted(network, batch, outliers, out_density="uniform")
    assert method.prefitted == ("metric", "inside")
    prediction = method.predict(batch[0])
    torch.testing.assert_close(prediction.scores["log ratio"], prediction.scores["log p(x|in)"])
    radius = torch.full((40,), 0.3)
    bound = method.log_ratio_bound(batch[0], radius)
    assert (bound >= method.log_densities(batch[0])[0]).all()
    torch.testing.assert_close(method.log_ratio_bound(batch[0], 0 * radius), method.log_densities(batch[0])[0])
    assert method.loss({"id": batch, "ood": outliers})["likelihood_ood"].isfinite()


# ------------------------------------------------------------------------------------------------------ certificate


def test_an_attack_on_the_network_stays_below_the_bound() -> None:
    """Projected gradient ascent on the confidence itself, in the metric's ball, from several starts."""
    method, x = moons()
    centres = 2.5 * torch.randn(60, 2, generator=torch.Generator().manual_seed(1))
    for radius in (method.certified_radius(centres), torch.full((60,), 0.5).double(), torch.full((60,), 2.0).double()):
        bound = method.confidence_bound(centres, radius)
        assert ((bound >= 0.5) & (bound <= 1)).all()
        z = method.metric.whiten(centres)
        best = method.classify(centres).amax(-1)  # type: ignore[union-attr]
        for start in range(3):
            noise = torch.randn(60, 2, generator=torch.Generator().manual_seed(start), dtype=torch.float64)
            offset = radius[:, None] * nn.functional.normalize(noise, dim=1) * start / 2
            for _ in range(40):
                offset = offset.detach().requires_grad_()
                log_p = method._log_mixture(method.outputs(method.metric.unwhiten(z + offset).float())).amax(-1)
                (gradient,) = torch.autograd.grad(log_p.sum(), offset)
                moved = offset + 0.1 * radius[:, None] * nn.functional.normalize(gradient, dim=1)
                offset = moved * (radius[:, None] / moved.norm(dim=1, keepdim=True)).clamp(max=1).nan_to_num(1)
                point = method.metric.unwhiten(z + offset.detach()).float()
                best = torch.maximum(best, method.classify(point).amax(-1))  # type: ignore[union-attr]
        assert (best.double() <= bound + 1e-6).all()
    assert best.max() > 0.9  # of the largest radius: the attack does find what is there to find


def test_certified_radii_are_zero_on_data_and_grow_outwards() -> None:
    method, x = moons()
    assert (method.certified_radius(x[:50]) == 0).all()
    ray = torch.tensor([3.0, 3.0]) * torch.tensor([[1.0], [2.0], [4.0], [8.0]])
    assert (method.certified_radius(ray).diff() > 0).all()
    assert (method.certified_radius(ray, factor=1.5) > method.certified_radius(ray, factor=1.1)).all()


# --------------------------------------------------------------------------------------------------------- training


class Watch(pl.Callback):
    """After every step, by how much each out-log-variance exceeds the largest in-log-variance."""

    def __init__(self) -> None:
        self.gaps: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object) -> None:
        assert isinstance(pl_module, CCU)
        assert pl_module.outside is not None
        self.gaps.append(float((pl_module.outside.log_var.min() - pl_module.inside.log_var.max()).detach()))


class Batches(torch.utils.data.Dataset[Batch]):
    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return 30

    def __getitem__(self, i: int) -> Batch:
        return self.batch


def fit(method: CCU, batch: Batch, **options: object) -> Watch:
    watch = Watch()
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[watch],
        **options,  # type: ignore[arg-type]
    )
    trainer.fit(method, torch.utils.data.DataLoader(Batches(batch), batch_size=None))
    return watch


@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
def test_the_floor_holds_after_every_step(network: FC, batch: Items, outliers: Items) -> None:
    """Outliers as narrow as the data pull the out-variances down, so that the floor is what holds them."""
    optimizer = torch.optim.Adam
    method = fitted(network, batch, outliers, mixture_lr=0.05, optimizer=lambda groups: optimizer(groups, lr=1e-3))
    narrow = {"id": (batch[0] * 0.5, batch[1]), "ood": (outliers[0] * 0.01, outliers[1])}
    start = method.inside.log_var.detach().clone()
    gaps = fit(method.train(), narrow).gaps
    assert len(gaps) == 30
    assert min(gaps) >= math.log(4) - 1e-12
    assert gaps[-1] == pytest.approx(math.log(4), abs=1e-12)
    assert not torch.equal(method.inside.log_var, start)


def test_the_floor_holds_after_the_fit(network: FC, batch: Items) -> None:
    method = fitted(network, batch, batch)  # outliers that are the data
    assert method.outside is not None
    gap = method.outside.log_var.min() - method.inside.log_var.max()
    assert gap.item() == pytest.approx(math.log(4), abs=1e-12)


def test_mixtures_have_their_own_rate_and_no_decay(network: FC) -> None:
    method = CCU(
        network, [3], num_components=2, optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-2, weight_decay=0.1)
    )
    of_network, of_mixtures = method.configure_optimizers().param_groups
    assert (of_network["lr"], of_network["weight_decay"]) == (1e-2, 0.1)
    assert (of_mixtures["lr"], of_mixtures["weight_decay"]) == (1e-5, 0.0)
    assert {id(p) for p in of_network["params"]} == {id(p) for p in network.parameters()}
    assert len(of_network["params"]) + len(of_mixtures["params"]) == len(list(method.parameters()))


# ------------------------------------------------------------------------------------------------ fit, load, refuse


def test_the_fit_reads_no_more_than_it_may(network: FC, batch: Items, outliers: Items) -> None:
    short, whole = (CCU(network, [3], num_components=4, max_fit_items=n) for n in (30, 60_000))
    loader = [(batch[0][i : i + 8], batch[1][i : i + 8]) for i in range(0, 40, 8)]
    short.fit_before(loader, [outliers])
    whole.fit_before([(batch[0][:30], batch[1][:30])], [(outliers[0][:30], outliers[1][:30])])
    for name, value in short.state_dict().items():
        torch.testing.assert_close(whole.state_dict()[name], value)


def test_it_starts_from_a_classifier_or_from_a_whole_run(network: FC, method: CCU, batch: Items) -> None:
    plain = {f"network.{name}": value for name, value in network.state_dict().items()}
    other = CCU(FC([3], 4, hidden_dims=[16, 16]), [3], num_components=4)
    other.init_from([plain])
    with pytest.raises(NotFittedError):
        other.predict(batch[0])
    other.init_from([method.state_dict()])
    assert all(bool(m.fitted) for m in other.modules() if isinstance(m, Fitted))
    torch.testing.assert_close(other.eval().classify(batch[0]), method.classify(batch[0]), rtol=0, atol=0)
    with pytest.raises(ConfigError, match=r"fixed\.init_from: the run's weights do not fit"):
        CCU(FC([3], 4, hidden_dims=[16, 16]), [3], num_components=5).init_from([method.state_dict()])
    with pytest.raises(ConfigError, match="CCU takes one run, got 2"):
        other.init_from([plain, plain])


def _start_on_rank(rank: int, folder: Path) -> None:
    torch.manual_seed(rank)  # as if rounding on two machines were this unlike
    method = CCU(FC([3], 4, hidden_dims=[4]), [3], num_components=2)
    method.metric.fit(torch.randn(50, 3))
    method.on_fit_start()
    torch.save(method.metric.state_dict(), folder / f"{rank}.pt")


def test_two_processes_train_in_one_metric(tmp_path: Path) -> None:
    assert in_two_processes(_start_on_rank, tmp_path, tmp_path) == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_refusals(network: FC) -> None:
    with pytest.raises(ValueError, match="out_density must be one of mixture, uniform, got 'none'"):
        CCU(network, [3], out_density="none")
    with pytest.raises(ValueError, match="outlier_weight must be positive"):
        CCU(network, [3], outlier_weight=0.0)
    with pytest.raises(ValueError, match="max_fit_items must be at least 2"):
        CCU(network, [3], max_fit_items=1)


def test_it_learns_two_moons_and_knows_nothing_far_from_them(tmp_path: Path) -> None:
    """A sign or a factor wrong in the loss, and either the accuracy or the doubt is gone."""
    overrides = [
        "+fixed.sources.two_moons.n=1000",
        "dataset=two_moons",
        "fixed.test_ood_datasets=[two_moons_far]",
        "fixed.trainer_config.max_epochs=30",
        "logger=none",
    ]
    (fixed,) = compose_points(*quick_overrides("fc_ccu", tmp_path, tmp_path)[1:], *overrides)
    results = run(**fixed)
    assert results["classification"]["Accuracy"] > 97
    assert results["ood"]["two_moons_far"]["max p(y|x)"]["AUROC"] > 99
    method = checkpoints.load(Path(results["run_dir"])).method
    assert isinstance(method, CCU)
    noise = 10 * torch.rand(4000, 2, generator=torch.Generator().manual_seed(0)) - 5
    assert 0.5 <= method.get_ood_scores(noise)["max p(y|x)"].mean() < 0.6
    angle = torch.linspace(0, 6.283, 500)
    assert (method.classify(50 * torch.stack([angle.cos(), angle.sin()], dim=1)) == 0.5).all()  # type: ignore[union-attr]
    corners = 5 * torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])
    assert (method.certified_radius(corners) > 1).all()
