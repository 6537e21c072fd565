"""Energy-based models trained with Langevin chains; as classifiers, Joint Energy-Based Models (JEM)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from uncertainty_est.models.base import Batch, Prediction, scoring_mode
from uncertainty_est.models.ebm.energy import EnergyModel
from uncertainty_est.networks.base import Network
from uncertainty_est.samplers.random import rank_generator
from uncertainty_est.samplers.replay_buffer import ReplayBuffer
from uncertainty_est.samplers.sgld import Chain, LogDensity


class Sampler(Protocol):
    """Moves a batch of chains, such as :class:`uncertainty_est.samplers.sgld.SGLD`."""

    def __call__(self, log_density: LogDensity, x: Tensor, generator: torch.Generator | None = None) -> Chain: ...


class MCMC(EnergyModel):
    r"""Maximum likelihood with samples :math:`x^-` of the model from persistent chains.

    .. math:: L = w_x \bigl( \operatorname{mean} F(x^-) - \operatorname{mean} F(x)
        + c \,[\operatorname{mean} F(x)^2 + \operatorname{mean} F(x^-)^2] \bigr)
        + w_{y|x} \bigl( \operatorname{mean} [-\ln p(y \mid x)] - r \operatorname{mean} H[p(\cdot \mid x)] \bigr)
        + w_{xy} \bigl( \operatorname{mean} f_y(x^-_y) - \operatorname{mean} f_y(x) \bigr)

    The same batch of data stands in all terms: the gradients of :math:`\ln p(x)` and :math:`\ln p(y \mid x)` add up to
    that of :math:`\ln p(x, y)`, sample by sample, and one pass through the network serves both.

    Chains run on F or, for :math:`x^-_y` and with `class_cond_p_x_sample`, on the logit of their class. The network is
    in eval mode meanwhile. Under DDP every process has chains, a buffer and random numbers of its own.

    Scores: as :class:`EnergyModel`, and with `approximate_mass` ``Approximate mass``,
    :math:`-\|\nabla_x F(x)\|_2`: a density that has little mass around x falls steeply there, whatever its height.

    :meth:`sample` goes on with chains of the buffer for one more call of the sampler and leaves the buffer alone.

    References:
        Grathwohl et al., arXiv:1912.03263 (JEM; Eq. 13 for the approximate mass). Hinton, 2002 (without classes).
        The regularisers c and r: Elflein et al., arXiv:2107.08785.

    Args:
        network: its logits ``[B, C]`` are f; ``num_classes: 1`` for a density without classes.
        sampler: moves the chains.
        buffer: keeps the chains; in as many blocks as there are classes where chains have a class.
        pxsgld: :math:`w_x`.
        pyxce: :math:`w_{y|x}`.
        pxysgld: :math:`w_{xy}`.
        p_control: c, holds F near 0; without it, F may run away.
        entropy_reg: r, rewards uncertain classes.
        label_smoothing: s, the target is 1 - s at the label and s / (C - 1) at every other class.
        class_cond_p_x_sample: every chain of :math:`x^-` has a class; the classes are equally frequent.
        approximate_mass: add the score of this name, which costs a gradient.
        input_noise: standard deviation of Gaussian noise on the inputs of training and validation, in the network's
            input space.
        warmup_steps: steps in which the learning rate rises linearly to its own value.

    Raises:
        ValueError: a value outside its range, nothing to train, or classes asked for where there are none.
    """

    can_sample = True

    def __init__(
        self,
        network: Network,
        sampler: Sampler,
        buffer: ReplayBuffer,
        pxsgld: float = 1.0,
        pyxce: float = 0.0,
        pxysgld: float = 0.0,
        p_control: float = 1.0,
        entropy_reg: float = 0.0,
        label_smoothing: float = 0.0,
        class_cond_p_x_sample: bool = False,
        approximate_mass: bool = False,
        input_noise: float = 0.0,
        warmup_steps: int = 0,
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        scheduler: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(network, input_noise, warmup_steps, optimizer, scheduler)
        if min(pxsgld, pyxce, pxysgld, p_control) < 0 or not pxsgld + pyxce + pxysgld > 0:
            raise ValueError(
                f"pxsgld, pyxce, pxysgld and p_control must be at least 0, and one of the first three positive, got"
                f" {pxsgld}, {pyxce}, {pxysgld} and {p_control}"
            )
        if not self.has_classes and (pyxce or pxysgld or class_cond_p_x_sample):
            raise ValueError("pyxce, pxysgld and class_cond_p_x_sample need classes, but network.num_classes is 1")
        self.num_classes = network.head.out_features
        if not 0 <= label_smoothing <= 1 - 1 / self.num_classes:
            raise ValueError(f"label_smoothing must lie between 0 and 1 - 1 / num_classes, got {label_smoothing}")
        if (pxysgld or class_cond_p_x_sample) and buffer.num_classes != self.num_classes:
            raise ValueError(
                f"buffer.num_classes must be network.num_classes, {self.num_classes}, for chains of a class"
            )
        self.sampler = sampler
        self.buffer = buffer
        self.keep_from_ddp("buffer")
        self.pxsgld = pxsgld
        self.pyxce = pyxce
        self.pxysgld = pxysgld
        self.p_control = p_control
        self.entropy_reg = entropy_reg
        self.label_smoothing = label_smoothing
        self.class_cond_p_x_sample = class_cond_p_x_sample
        self.approximate_mass = approximate_mass
        self.generator: torch.Generator | None = None  # until training starts, PyTorch's own

    def on_fit_start(self) -> None:
        """Make the chains of every process others than those of the first."""
        self.generator = rank_generator(self.device, self.global_rank)
        if self.global_rank:
            self.buffer.reset(self.generator)

    # ------------------------------------------------------------------------------------------------------- training

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        x, y = batch["id"]
        inputs = [self.noisy(x)]
        if self.pxsgld:
            inputs.append(self.negatives(len(x)))
        if self.pxysgld:
            inputs.append(self.negatives(len(x), y))
        # One pass for all: no network of an energy-based model may let the samples of a batch know of each other.
        data, *drawn = self.logits(torch.cat(inputs)).split(len(x))
        parts: dict[str, Tensor] = {}
        if self.pxsgld:
            parts |= self._density_loss(data.logsumexp(-1), drawn[0].logsumexp(-1))
        if self.pyxce:
            parts |= {name: self.pyxce * part for name, part in self.class_loss(data, y).items()}
        if self.pxysgld:
            parts["joint"] = self.pxysgld * (_of_class(drawn[-1], y).mean() - _of_class(data, y).mean())
        return parts

    def _density_loss(self, data: Tensor, drawn: Tensor) -> dict[str, Tensor]:
        """Parts of :math:`w_x` from F of data and of samples, both ``[B]``."""
        self.note({"F/data": data.mean(), "F/samples": drawn.mean()})
        parts = {"density": self.pxsgld * (drawn.mean() - data.mean())}
        if self.p_control:
            parts["control"] = self.pxsgld * self.p_control * (data.square().mean() + drawn.square().mean())
        return parts

    def class_loss(self, logits: Tensor, y: Tensor) -> dict[str, Tensor]:
        # PyTorch spreads its share of smoothing over all classes, the label's own included.
        spread = self.label_smoothing * self.num_classes / max(self.num_classes - 1, 1)
        parts = {"ce": F.cross_entropy(logits, y, label_smoothing=spread)}
        if self.entropy_reg:
            log_p = logits.log_softmax(-1)
            parts["entropy"] = self.entropy_reg * (log_p.exp() * log_p).sum(-1).mean()
        return parts

    # ------------------------------------------------------------------------------------------------------- sampling

    def negatives(self, n: int, y: Tensor | None = None) -> Tensor:
        """Samples ``[n, *data_shape]`` of the model, or of its density of each class of ``y: [n]``, from the buffer.

        Raises:
            ConfigError: `n` exceeds the buffer.
        """
        x, slots = self.buffer.draw(n, y, self.generator)
        if y is None and self.class_cond_p_x_sample:
            y = self.buffer.classes(slots)
        chain = self.run_chains(x, y, self.generator)
        self.buffer.write(slots, chain.x)
        self.note({f"sampler/{name}": value for name, value in chain.statistics.items()})
        return chain.x

    def run_chains(self, x: Tensor, y: Tensor | None, generator: torch.Generator | None) -> Chain:
        """One call of the sampler from ``x: [n, *data_shape]``, on F or on the logits of classes ``y: [n]``."""
        with scoring_mode(self.network):
            return self.sampler(lambda x: self.chain_density(self.logits(x), y), x, generator)

    def chain_density(self, logits: Tensor, y: Tensor | None) -> Tensor:
        """What chains climb, ``[B]``, from ``logits: [B, C]``."""
        return logits.logsumexp(-1) if y is None else _of_class(logits, y)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        slots = torch.randint(len(self.buffer), (n,), generator=generator, device=self.device)
        y = self.buffer.classes(slots) if self.class_cond_p_x_sample else None
        return self.run_chains(self.buffer.samples[slots], y, generator).x

    # -------------------------------------------------------------------------------------------------------- scoring

    def _predict(self, x: Tensor) -> Prediction:
        if not self.approximate_mass:
            return super()._predict(x)
        # Validation may run in inference mode, whose tensors can have no gradients.
        with torch.inference_mode(False), torch.enable_grad():
            x = x.detach().clone().requires_grad_()
            logits = self.logits(x)
            (gradient,) = torch.autograd.grad(logits.logsumexp(-1).sum(), x)
        prediction = self.predict_from(logits.detach())
        prediction.scores["Approximate mass"] = -torch.linalg.vector_norm(gradient.flatten(1), dim=1)
        return prediction


def _of_class(logits: Tensor, y: Tensor) -> Tensor:
    return logits.gather(-1, y.unsqueeze(-1)).squeeze(-1)
