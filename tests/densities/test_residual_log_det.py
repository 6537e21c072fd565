"""Log-determinants of identity plus a contraction's Jacobian, against the whole Jacobian."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from uncertainty_est.densities.residual_log_det import (
    LogDet,
    Series,
    coefficients,
    exact_log_det,
    neumann_series,
    power_series,
    truncation_bound,
)

LIPSCHITZ = 0.8


class Residual(nn.Module):
    """A contraction with a Lipschitz constant of at most 0.8 and negative eigenvalues, where the series is slowest."""

    def __init__(self, dim: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Parameter(torch.randn(5, dim, dtype=torch.float64))
        self.second = nn.Parameter(-self.first.detach().T + 0.3 * torch.randn(dim, 5, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        first, second = (w / torch.linalg.matrix_norm(w, 2) for w in (self.first, self.second))
        return LIPSCHITZ * ((x.flatten(1) @ first.T + 0.3).tanh() @ second.T).view_as(x)


def inputs(batch: int = 4, shape: tuple[int, ...] = (3,)) -> Tensor:
    x = torch.randn(batch, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return x.requires_grad_()


def whole(residual: nn.Module, x: Tensor) -> Tensor:
    """The log-determinants ``[B]``, by another way."""

    def one(v: Tensor) -> Tensor:
        return (v + residual(v[None])[0]).flatten()

    jacobian = torch.func.vmap(torch.func.jacrev(one))(x).flatten(2)
    return torch.linalg.slogdet(jacobian).logabsdet


def basis(x: Tensor) -> Tensor:
    """Probes with which no trace is estimated: the unit vectors, of length sqrt D."""
    dim = x[0].numel()
    eye = math.sqrt(dim) * torch.eye(dim, dtype=x.dtype)
    return eye.view(dim, 1, *x.shape[1:]).expand(dim, *x.shape)


@pytest.mark.parametrize("shape", [(3,), (1, 2, 2)])
def test_the_exact_one_is_that_of_the_whole_jacobian(shape: tuple[int, ...]) -> None:
    residual, x = Residual(math.prod(shape)), inputs(shape=shape)
    expected = whole(residual, x)
    assert expected.std() > 0.01
    torch.testing.assert_close(exact_log_det(residual(x), x), expected)


@pytest.mark.parametrize("series", [power_series, neumann_series])
def test_a_long_series_with_all_directions_is_exact(series: Callable[..., Tensor]) -> None:
    residual, x = Residual(), inputs()
    got = series(residual(x), x, basis(x), coefficients(200))
    torch.testing.assert_close(got, whole(residual, x), atol=1e-10, rtol=0)


@pytest.mark.parametrize("n_terms", [1, 2, 3, 5, 10, 20])
def test_the_truncation_bound_holds(n_terms: int) -> None:
    residual, x = Residual(), inputs(64)
    error = power_series(residual(x), x, basis(x), coefficients(n_terms)) - whole(residual, x)
    assert error.abs().max() <= truncation_bound(3, LIPSCHITZ, n_terms)


@pytest.mark.parametrize("n_terms", [1, 4, 30])
def test_the_truncation_bound_is_reached_by_a_uniform_shrinkage(n_terms: int) -> None:
    x = inputs()
    error = power_series(-0.7 * x, x, basis(x), coefficients(n_terms)) - 3 * math.log1p(-0.7)
    expected = torch.full_like(error, truncation_bound(3, 0.7, n_terms))
    torch.testing.assert_close(error, expected, atol=1e-12, rtol=1e-9)


def test_the_bound_that_the_docs_name() -> None:
    # 2 (-ln 0.5 - 0.5 - 0.125)
    assert truncation_bound(2, 0.5, 2) == pytest.approx(2 * (math.log(2) - 0.625))


@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
def test_probes_have_the_identity_as_their_second_moment(probe: str) -> None:
    v = Series(probe=probe).draw_probes([100_000, 3], torch.zeros(()), torch.Generator().manual_seed(0))
    torch.testing.assert_close(v.T @ v / len(v), torch.eye(3), atol=0.02, rtol=0)
    if probe == "rademacher":
        assert set(v.unique().tolist()) == {-1.0, 1.0}


def test_the_roulettes_coefficients_are_those_of_the_series_on_average() -> None:
    torch.manual_seed(0)
    draws = torch.zeros(20_000, 8, dtype=torch.float64)
    for row in draws:
        kept = Series(n_exact_terms=2, stop_probability=0.4).draw_coefficients()[:8]
        row[: len(kept)] = torch.tensor(kept, dtype=torch.float64)
    error = draws.std(0) / math.sqrt(len(draws))
    expected = torch.tensor(coefficients(8), dtype=torch.float64)
    assert ((draws.mean(0) - expected).abs() <= 4 * error).all()
    assert torch.equal(draws[:, :2], expected[:2].expand(len(draws), 2))


@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
def test_the_roulette_is_unbiased(probe: str) -> None:
    """Mean of many draws within four standard errors; a series of the same certain terms is not."""
    residual, n = Residual(), 1000
    # One input in many copies: each has probes of its own, while the number of terms is one for a batch.
    x = inputs(1).detach().expand(64, -1).requires_grad_()
    log_det = LogDet((3,), "roulette", series=Series(n_exact_terms=2, stop_probability=0.3, probe=probe)).train()
    y = residual(x)
    torch.manual_seed(0)
    draws = torch.stack([log_det(y, x).detach().mean() for _ in range(n)])
    exact = whole(residual, x)[0]
    error = draws.std() / math.sqrt(n)
    assert (draws.mean() - exact).abs() < 4 * error
    cut_off = power_series(y, x, basis(x), coefficients(2))[0]
    assert (cut_off - exact).abs() > 10 * error


def gradients(value: Tensor, *inputs: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(value.sum(), inputs, retain_graph=True))


@pytest.mark.parametrize("series", [power_series, neumann_series])
@pytest.mark.parametrize("n_terms", [1, 3, 200])
def test_gradients_of_the_series_are_those_of_traces(series: Callable[..., Tensor], n_terms: int) -> None:
    residual, x = Residual(), inputs()
    wanted = (residual.first, residual.second, x)

    def one(v: Tensor) -> Tensor:
        return residual(v[None])[0]

    jacobian = torch.func.vmap(torch.func.jacrev(one))(x)
    if n_terms == 200:
        expected = torch.linalg.slogdet(torch.eye(3, dtype=x.dtype) + jacobian).logabsdet
    else:
        powers = [torch.linalg.matrix_power(jacobian, k) for k in range(1, n_terms + 1)]
        traces = [power.diagonal(dim1=-2, dim2=-1).sum(-1) for power in powers]
        expected = torch.stack([c * t for c, t in zip(coefficients(n_terms), traces, strict=True)]).sum(0)
    got = series(residual(x), x, basis(x), coefficients(n_terms))
    for g, e in zip(gradients(got, *wanted), gradients(expected, *wanted), strict=True):
        torch.testing.assert_close(g, e, atol=1e-8, rtol=1e-8)


def test_the_roulettes_gradient_is_unbiased() -> None:
    residual, n = Residual(), 1000
    x = inputs(1).detach().expand(64, -1).requires_grad_()
    log_det = LogDet((3,), "roulette", series=Series(stop_probability=0.3)).train()
    y = residual(x)
    torch.manual_seed(1)
    draws = torch.stack([gradients(log_det(y, x), residual.second)[0].flatten() for _ in range(n)])
    expected = gradients(exact_log_det(y, x), residual.second)[0].flatten()
    error = draws.std(0) / math.sqrt(n)
    assert ((draws.mean(0) - expected).abs() < 4 * error).all()


def test_the_two_series_have_one_value() -> None:
    residual, x = Residual(), inputs()
    y, probes = residual(x), torch.randn(5, *x.shape, dtype=x.dtype)
    torch.testing.assert_close(
        neumann_series(y, x, probes, coefficients(7)), power_series(y, x, probes, coefficients(7))
    )


@pytest.mark.parametrize("kind", ["exact", "series"])
def test_evaluation_is_a_function_of_the_input_alone(kind: str) -> None:
    residual, x = Residual().float(), inputs(6).detach().float().requires_grad_()
    log_det = LogDet((3,), evaluation=kind).eval()
    before = torch.random.get_rng_state()
    together = log_det(residual(x), x, False)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not together.requires_grad
    alone = []
    for i in range(6):
        one = x[i : i + 1].detach().requires_grad_()
        alone.append(log_det(residual(one), one, False))
    torch.testing.assert_close(torch.cat(alone), together)


def test_the_probes_of_evaluation_are_saved_and_differ_by_seed() -> None:
    first, second = LogDet((3,), seed=0), LogDet((3,), seed=1)
    assert not torch.equal(first.state_dict()["probes"], second.state_dict()["probes"])
    second.load_state_dict(first.state_dict(), strict=True)
    assert torch.equal(first.state_dict()["probes"], second.state_dict()["probes"])
    assert not LogDet((3,), evaluation="exact").state_dict()


def test_the_series_of_evaluation_is_near_to_exact() -> None:
    residual, x = Residual(), inputs(32)
    got = LogDet((3,), series=Series(n_eval_terms=40, n_eval_probes=500)).double().eval()(residual(x), x)
    torch.testing.assert_close(got, whole(residual, x), atol=0.1, rtol=0)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("n_terms", 0, "n_terms must be at least 1, got 0"),
        ("n_eval_probes", -1, "n_eval_probes must be at least 1, got -1"),
        ("stop_probability", 0.0, "stop_probability must lie between 0 and 1, got 0.0"),
        ("stop_probability", 1.0, "stop_probability must lie between 0 and 1, got 1.0"),
        ("probe", "sobol", "probe must be 'rademacher' or 'gaussian', got 'sobol'"),
    ],
)
def test_settings_out_of_range_are_refused(name: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        Series(**{name: value})  # type: ignore[arg-type]


def test_unknown_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match="^log_det must be 'exact', 'series' or 'roulette', got 'hutchinson'$"):
        LogDet((3,), training="hutchinson")
    with pytest.raises(ValueError, match="^eval_log_det must be 'exact' or 'series', got 'roulette'$"):
        LogDet((3,), evaluation="roulette")
