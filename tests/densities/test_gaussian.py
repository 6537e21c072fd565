"""Class-conditional Gaussians against numpy, scipy and torch.distributions; jitter and casts."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from tests.processes import in_two_processes
from uncertainty_est.densities import gaussian
from uncertainty_est.densities.gaussian import ClassGaussians, GaussianStatistics
from uncertainty_est.errors import DataError, NotFittedError

C, D = 3, 4


def samples(n: int = 90, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Correlated features of unbalanced classes: about half, a third and a sixth of them."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.tensor([0, 1, 0, 2, 1, 0]).repeat(n // 6 + 1)[:n]
    z = torch.randn(n, D, generator=generator, dtype=torch.float64)
    mixing = torch.randn(C, D, D, generator=generator, dtype=torch.float64)
    z = (mixing[y] @ z.unsqueeze(-1)).squeeze(-1) + 2.0 * y.unsqueeze(-1)
    return z, y


def statistics_of(*batches: tuple[Tensor, Tensor], classes: int = C) -> GaussianStatistics:
    statistics = GaussianStatistics(classes, batches[0][0].shape[1])
    for z, y in batches:
        statistics.update(z, y)
    return statistics


def fitted(z: Tensor, y: Tensor, classes: int = C, min_jitter: float = 0.0) -> ClassGaussians:
    density = ClassGaussians(classes, z.shape[1], min_jitter)
    density.fit(statistics_of((z, y), classes=classes))
    return density


def assert_same(a: GaussianStatistics, b: GaussianStatistics, rtol: float = 1e-12) -> None:
    assert torch.equal(a.count, b.count)
    torch.testing.assert_close(a.mean, b.mean, rtol=rtol, atol=1e-13)
    scale = b.scatter.abs().amax().item()
    torch.testing.assert_close(a.scatter, b.scatter, rtol=rtol, atol=rtol * scale)


def golden() -> ClassGaussians:
    """Means (0, 0) and (3, 0), covariances I and 2I, from four points a class and equal priors."""
    corners = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]], dtype=torch.float64)
    unit = corners * 1.5**0.5  # sum of squares 3 a dimension, divided by n - 1 = 3
    z = torch.cat([unit, unit * 2**0.5 + torch.tensor([3.0, 0.0])])
    return fitted(z, torch.tensor([0] * 4 + [1] * 4), classes=2)


# --- statistics


def test_statistics_equal_numpys_per_class() -> None:
    z, y = samples()
    statistics = statistics_of((z, y))
    for c in range(C):
        members = z[y == c].numpy()
        assert statistics.count[c] == len(members)
        np.testing.assert_allclose(statistics.mean[c], members.mean(0), rtol=1e-12)
        covariance = statistics.scatter[c] / (len(members) - 1)
        np.testing.assert_allclose(covariance, np.cov(members.T), rtol=1e-11, atol=1e-13)


@settings(max_examples=30)
@given(st.lists(st.integers(0, 90), max_size=8))
def test_any_split_into_batches_gives_the_statistics_of_one_shot(cuts: list[int]) -> None:
    z, y = samples()
    edges = [0, *sorted(cuts), len(z)]  # equal edges make empty batches, close ones leave classes out
    batches = [(z[a:b], y[a:b]) for a, b in zip(edges[:-1], edges[1:], strict=True)]
    assert_same(statistics_of(*batches), statistics_of((z, y)))


@settings(max_examples=10)
@given(st.permutations(range(90)))
def test_statistics_do_not_depend_on_the_order_of_samples(order: list[int]) -> None:
    z, y = samples()
    assert_same(statistics_of((z[order], y[order])), statistics_of((z, y)))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_merging_parts_in_any_order_gives_the_statistics_of_all(order: tuple[int, ...]) -> None:
    z, y = samples()
    parts = [
        statistics_of((z[:1], y[:1])),
        statistics_of((z[1:50], y[1:50])),
        statistics_of((z[50:], y[50:])),
    ]
    untouched = parts[order[1]].scatter.clone()
    merged = GaussianStatistics(C, D)
    for k in order:
        merged.merge(parts[k])
    assert_same(merged, statistics_of((z, y)))
    assert torch.equal(parts[order[1]].scatter, untouched)


def test_nothing_cancels_where_the_mean_dwarfs_the_spread() -> None:
    generator = torch.Generator().manual_seed(1)
    # Multiples of 2^-20 are exact at a million too, so that the shift leaves the spread exactly as it is.
    spread = (torch.randn(300, D, generator=generator, dtype=torch.float64) * 1e-2 * 2**20).round() / 2**20
    y = torch.arange(300) % C
    z = spread + 1e6
    expected = statistics_of((spread, y))
    streamed = statistics_of(*zip(z.split(17), y.split(17), strict=True))
    halves = statistics_of((z[:100], y[:100]))
    halves.merge(statistics_of((z[100:], y[100:])))
    for statistics in (statistics_of((z, y)), streamed, halves):
        error = (statistics.scatter - expected.scatter).abs().amax() / expected.scatter.abs().amax()
        assert error < 1e-8
        torch.testing.assert_close(statistics.mean - 1e6, expected.mean, rtol=0, atol=1e-9)
    # What the test is about: second moments about zero have lost the covariance altogether.
    members = z[y == 0]
    naive = members.T @ members - len(members) * torch.outer(members.mean(0), members.mean(0))
    assert (naive - expected.scatter[0]).abs().amax() > 0.1 * expected.scatter[0].abs().amax()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_statistics_accumulate_any_floating_type_in_float64(dtype: torch.dtype) -> None:
    z, y = samples()
    z = z.to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        statistics = statistics_of((z, y.int()))
    assert not statistics.scatter.requires_grad
    assert_same(statistics, statistics_of((z.detach().double(), y)))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_features_that_are_not_finite_are_refused_and_leave_no_trace(bad: float) -> None:
    z, y = samples()
    statistics = statistics_of((z, y))
    broken = z.clone()
    broken[5, 2] = bad
    with pytest.raises(ValueError, match="features must be finite"):
        statistics.update(broken, y)
    assert_same(statistics, statistics_of((z, y)), rtol=0)


@pytest.mark.parametrize("label", [-1, C])
def test_labels_out_of_range_are_refused(label: int) -> None:
    with pytest.raises(ValueError, match=f"labels must be in 0 … 2, got {label}"):
        GaussianStatistics(C, D).update(torch.zeros(2, D), torch.tensor([0, label]))


@pytest.mark.parametrize(("z", "y"), [((2, D + 1), (2,)), ((2, D), (3,)), ((D,), (1,)), ((2, D), (2, 1))])
def test_wrong_shapes_are_refused(z: tuple[int, ...], y: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"z must be \[B, 4\] and y \[B\]"):
        GaussianStatistics(C, D).update(torch.zeros(z), torch.zeros(y, dtype=torch.int64))


def test_statistics_of_another_shape_are_refused() -> None:
    other = GaussianStatistics(C, D + 1)
    with pytest.raises(ValueError, match=r"\[C, D\] = \[3, 4\], got \[3, 5\]"):
        GaussianStatistics(C, D).merge(other)
    with pytest.raises(ValueError, match=r"\[C, D\] = \[3, 4\], got \[3, 5\]"):
        ClassGaussians(C, D).fit(other)


# --- distributed


def _reduce_on_rank(rank: int, folder: Path) -> None:
    z, y = samples()
    # An uneven share without class 2 on rank 0.
    mine = (y != 2) & (torch.arange(len(y)) < 30)
    mine = mine if rank == 0 else ~mine
    statistics = statistics_of((z[mine], y[mine]))
    statistics.all_reduce()
    torch.save(vars(statistics), folder / f"{rank}.pt")


def test_two_processes_hold_the_statistics_of_one(tmp_path: Path) -> None:
    assert in_two_processes(_reduce_on_rank, tmp_path, tmp_path) == [0, 0]
    whole = statistics_of(samples())
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for name in ("count", "mean", "scatter"):
        assert torch.equal(results[0][name], results[1][name])
    reduced = GaussianStatistics(C, D)
    vars(reduced).update(results[0])
    assert_same(reduced, whole)


def test_all_reduce_of_a_single_process_changes_nothing() -> None:
    statistics = statistics_of(samples())
    statistics.all_reduce()
    assert_same(statistics, statistics_of(samples()), rtol=0)


# --- density


def test_golden_log_densities() -> None:
    density = golden()
    log_prob = density.log_prob(torch.tensor([[1.0, 0.0]], dtype=torch.float64))
    expected = torch.tensor([[-2.337877066409, -3.531024246969]], dtype=torch.float64)
    torch.testing.assert_close(log_prob, expected, rtol=0, atol=1e-9)
    assert log_prob.logsumexp(-1).item() == pytest.approx(-2.073004159022257, abs=1e-9)
    assert density.jitter == 0


def test_the_marginal_weighs_classes_by_their_share() -> None:
    density = golden()
    z = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    balanced = (density.log_prob(z) + density.log_prior).logsumexp(-1)
    assert balanced.item() == pytest.approx(-2.073004159022257 + np.log(0.5), abs=1e-9)

    corners = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]], dtype=torch.float64)
    # Twelve points of covariance I make class 0 three times as frequent as class 1.
    unit = corners.repeat(3, 1) * (11 / 6) ** 0.5
    far = corners * 3**0.5 + torch.tensor([3.0, 0.0])
    weighed = fitted(torch.cat([unit, far]), torch.tensor([0] * 12 + [1] * 4), classes=2)
    torch.testing.assert_close(weighed.log_prior.exp(), torch.tensor([0.75, 0.25], dtype=torch.float64))
    joint = weighed.log_prob(z) + weighed.log_prior
    assert joint.logsumexp(-1).item() == pytest.approx(-2.529259954387335, abs=1e-9)


def test_log_prob_equals_torch_distributions() -> None:
    z, y = samples()
    density = fitted(z, y)
    points = torch.cat([z, 50 * torch.randn(20, D, dtype=torch.float64)])
    reference = MultivariateNormal(density.mean, scale_tril=density.scale_tril)
    torch.testing.assert_close(density.log_prob(points), reference.log_prob(points.unsqueeze(1)), rtol=1e-12, atol=1e-9)
    for c in range(C):
        covariance = density.scale_tril[c] @ density.scale_tril[c].T
        np.testing.assert_allclose(covariance, np.cov(z[y == c].numpy().T), rtol=1e-10, atol=1e-12)


def test_marginal_equals_scipys_mixture_of_normals_with_numpys_covariances() -> None:
    z, y = samples()
    density = fitted(z, y)
    mixture = sum(
        (y == c).double().mean().item() * stats.multivariate_normal(z[y == c].mean(0), np.cov(z[y == c].T)).pdf(z)
        for c in range(C)
    )
    marginal = (density.log_prob(z) + density.log_prior).logsumexp(-1)
    np.testing.assert_allclose(marginal, np.log(mixture), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("chunk", [1, 16, 40, 1000])
def test_chunks_of_any_size_give_the_same_densities(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    z, y = samples()
    density = fitted(z, y)
    whole = density.log_prob(z)
    monkeypatch.setattr(gaussian, "_CHUNK", chunk)
    torch.testing.assert_close(density.log_prob(z), whole, rtol=1e-13, atol=1e-13)


def test_a_density_integrates_to_one() -> None:
    density = golden()
    axis = torch.linspace(-12, 15, 400, dtype=torch.float64)
    mass = density.log_prob(torch.cartesian_prod(axis, axis)).exp().sum(0) * (axis[1] - axis[0]) ** 2
    torch.testing.assert_close(mass, torch.ones(2, dtype=torch.float64), rtol=0, atol=1e-6)


@settings(max_examples=10)
@given(st.integers(0, 2**31))
def test_a_rotation_of_the_features_changes_no_density(seed: int) -> None:
    z, y = samples()
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(D, D, generator=generator, dtype=torch.float64)).Q
    points, _ = samples(40, seed=2)
    before, after = fitted(z, y), fitted(z @ rotation, y)
    expected, actual = before.log_prob(points), after.log_prob(points @ rotation)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
    marginals = [(p + before.log_prior).logsumexp(-1) for p in (expected, actual)]
    assert torch.equal(marginals[0].argsort(), marginals[1].argsort())


def test_gradient_with_respect_to_the_features_is_exact() -> None:
    density = fitted(*samples())
    z = samples(6, seed=3)[0].requires_grad_()
    assert torch.autograd.gradcheck(density.log_prob, (z,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_arithmetic_stays_float64_under_autocast_and_for_any_input(dtype: torch.dtype) -> None:
    z, y = samples()
    density = fitted(z, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        log_prob = density.log_prob(z.to(dtype))
    assert log_prob.dtype == torch.float64
    assert torch.equal(log_prob, density.log_prob(z.to(dtype).double()))


def test_a_batch_of_one_or_none_keeps_its_shape() -> None:
    density = fitted(*samples())
    assert density.log_prob(torch.zeros(1, D)).shape == (1, C)
    assert density.log_prob(torch.zeros(0, D)).shape == (0, C)


@pytest.mark.parametrize("shape", [(D,), (2, D - 1), (2, 1, D)])
def test_features_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"z must be \[B, 4\]"):
        fitted(*samples()).log_prob(torch.zeros(shape))


# --- jitter


def factorises(covariance: Tensor, jitter: float) -> bool:
    """The search's criterion by another library: numpy raises where a factor does not exist."""
    try:
        np.linalg.cholesky(covariance.numpy() + jitter * np.eye(covariance.shape[-1]))
    except np.linalg.LinAlgError:
        return False
    return True


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e3])
def test_the_smallest_jitter_that_works_for_every_class_is_taken(
    scale: float, caplog: pytest.LogCaptureFixture
) -> None:
    z, y = samples()
    z[:, 3] = z[:, 0]  # every covariance is singular
    z[y == 1] *= scale
    with caplog.at_level(logging.INFO):
        density = fitted(z, y)
    jitter = density.jitter.item()
    assert f"jitter of the class covariances: {jitter:g}" in caplog.text
    statistics = statistics_of((z, y))
    covariances = statistics.scatter / (statistics.count - 1)[:, None, None]
    tried = [0.0] + [10.0**k for k in range(-20, 0)]
    assert jitter == next(j for j in tried if all(factorises(c, j) for c in covariances))
    assert jitter > 0
    torch.testing.assert_close(
        density.scale_tril @ density.scale_tril.mT,
        covariances + jitter * torch.eye(D, dtype=torch.float64),
        rtol=1e-12,
        atol=1e-12 * scale**2,
    )
    assert density.log_prob(z).isfinite().all()


def test_features_constant_within_a_class_get_the_first_positive_jitter() -> None:
    z, y = samples()
    z[y == 1, 2] = 0.5  # the mean of equal halves is exact, hence a variance of exactly zero
    assert fitted(z, y).jitter == 1e-20


def test_fewer_samples_than_dimensions_can_be_fitted() -> None:
    z = torch.randn(20, 50, generator=torch.Generator().manual_seed(0))
    y = torch.arange(20) % 2
    density = fitted(z, y, classes=2)
    assert density.jitter > 0
    assert density.log_prob(z).isfinite().all()


@pytest.mark.parametrize("min_jitter", [1e-6, 3e-4, 0.5])
def test_no_jitter_below_the_minimum_is_tried(min_jitter: float) -> None:
    z, y = samples()
    density = fitted(z, y, min_jitter=min_jitter)
    assert density.jitter == min_jitter
    covariance = np.cov(z[y == 0].numpy().T) + min_jitter * np.eye(D)
    np.testing.assert_allclose(density.scale_tril[0] @ density.scale_tril[0].T, covariance, rtol=1e-10)


@pytest.mark.parametrize("min_jitter", [0.0, 1e-8, 2e-4])
def test_a_minimum_that_is_too_small_is_raised_and_added_once(min_jitter: float) -> None:
    statistics = statistics_of(samples())
    eigenvalues = torch.tensor([2.0, 1.0, 1.0, -5e-4], dtype=torch.float64)
    statistics.scatter[:] = eigenvalues.diag() * (statistics.count - 1)[:, None, None]
    density = ClassGaussians(C, D, min_jitter)
    density.fit(statistics)
    assert density.jitter == 1e-3
    variances = (density.scale_tril @ density.scale_tril.mT).diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(variances, (eigenvalues + 1e-3).expand(C, D), rtol=1e-10, atol=0)


@pytest.mark.parametrize("min_jitter", [-1e-9, float("nan"), float("inf")])
def test_a_minimum_that_is_no_jitter_is_refused(min_jitter: float) -> None:
    with pytest.raises(ValueError, match="min_jitter must be finite and at least 0, got"):
        ClassGaussians(C, D, min_jitter)


@pytest.mark.parametrize(("min_jitter", "last"), [(0.0, "0.1"), (0.5, "0.5")])
def test_covariances_beyond_every_jitter_are_an_error_that_names_the_class(min_jitter: float, last: str) -> None:
    statistics = statistics_of(samples())
    statistics.scatter[1] = -torch.eye(D, dtype=torch.float64) * 1e6
    density = ClassGaussians(C, D, min_jitter)
    with pytest.raises(ValueError, match=f"class 1 is not positive definite even with jitter {last}:"):
        density.fit(statistics)
    assert not density.fitted


@pytest.mark.parametrize(
    ("n", "words"), [(0, "class 2 has 0 training samples;"), (1, "class 2 has 1 training sample;")]
)
def test_a_class_without_a_covariance_is_named(n: int, words: str) -> None:
    z, y = samples()
    keep = (y != 2) | ((y == 2).cumsum(0) <= n)
    with pytest.raises(DataError, match=f"^{words} a full covariance needs at least 2: "):
        fitted(z[keep], y[keep])


# --- state


def test_an_unfitted_density_says_so() -> None:
    with pytest.raises(NotFittedError, match="not fitted"):
        ClassGaussians(C, D).log_prob(torch.zeros(2, D))


def test_the_state_dict_is_the_whole_fitted_state() -> None:
    z, y = samples()
    density = fitted(z, y, min_jitter=1e-6)
    empty = ClassGaussians(C, D)
    assert set(empty.state_dict()) == {"mean", "scale_tril", "log_prior", "jitter", "fitted"}
    empty.load_state_dict(density.state_dict(), strict=True)
    assert torch.equal(empty.log_prob(z), density.log_prob(z))
    assert empty.jitter == 1e-6


def test_a_second_fit_replaces_the_first() -> None:
    density = fitted(*samples(seed=0))
    density.fit(statistics_of(samples(seed=1)))
    z, _ = samples(seed=2)
    assert torch.equal(density.log_prob(z), fitted(*samples(seed=1)).log_prob(z))


@pytest.mark.parametrize("cast", ["half", "bfloat16", "float", "double"])
def test_casts_of_a_parent_leave_the_density_in_float64(cast: str) -> None:
    z, y = samples()
    parent = nn.ModuleDict({"linear": nn.Linear(D, C), "density": fitted(z, y)})
    before = parent["density"].log_prob(z)
    getattr(parent, cast)()
    parent.to("cpu", torch.float16)
    assert parent["linear"].weight.dtype == torch.float16  # the cast did reach the parent
    dtypes = {name: buffer.dtype for name, buffer in parent["density"].named_buffers()}
    assert dtypes.pop("fitted") == torch.bool
    assert set(dtypes.values()) == {torch.float64}
    assert torch.equal(parent["density"].log_prob(z), before)


def test_moves_still_reach_the_density() -> None:
    moved = ClassGaussians(C, D).to("meta", torch.float16)
    assert moved.mean.device.type == "meta"
    assert moved.mean.dtype == torch.float64
