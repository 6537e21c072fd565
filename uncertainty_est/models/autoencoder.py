"""Autoencoder: what it cannot restore is not what it was trained on."""

from __future__ import annotations

from torch import Tensor

from uncertainty_est.models.base import Batch, Prediction
from uncertainty_est.models.encoder_decoder import EncoderDecoder, distance


class Autoencoder(EncoderDecoder):
    r"""Encoder e and decoder d trained with :math:`\operatorname{mean} \lVert x - d(e(x)) \rVert_2` (not squared).

    Score: ``Reconstruction``, :math:`-\lVert x - d(e(x)) \rVert_2`. There are no class probabilities.

    Args:
        data_shape: shape of one input, D numbers.
        network: builds the encoder; called with ``num_classes``, the number of its outputs.
        decoder: builds the decoder; called with ``latent_dim`` and ``data_shape``.
        latent_dim: length of the latent vector; :math:`\lfloor \sqrt D \rfloor` if not given.

    Raises:
        ValueError: `latent_dim` below 1.
    """

    outputs_per_latent = 1

    def reconstruct(self, x: Tensor) -> Tensor:
        """Restored inputs ``[B, *data_shape]`` of ``x: [B, *data_shape]``."""
        return self.decode(self.network(x))

    def _predict(self, x: Tensor) -> Prediction:
        return Prediction(None, {"Reconstruction": -distance(x, self.reconstruct(x))})

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        x, _ = batch["id"]
        return {"rec": distance(x, self.reconstruct(x)).mean()}

    def validate_batch(self, batch: Batch) -> tuple[dict[str, Tensor], None]:
        return self.loss(batch), None
