"""What a method fits before training, kept in a file so that later runs on the same data need not fit it again."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from uncertainty_est import checkpoints
from uncertainty_est.data.module import OODDataModule
from uncertainty_est.errors import DataError
from uncertainty_est.files import make_folder
from uncertainty_est.models.base import Method

log = logging.getLogger(__name__)

FOLDER = ".fitted"


def prefit(method: Method, data: OODDataModule, output_folder: Path, device: torch.device) -> Path | None:
    """Fit the submodules named in ``method.prefitted`` to the training splits, or take them from an earlier fit.

    Every process does the same to the same data. Where weights of another run brought all of them along, nothing is
    done.

    Args:
        method: moved to `device`.
        data: set up.
        output_folder: its ``.fitted/<sha256 of data and settings>.pt`` holds the outcome.
        device: where to fit.

    Returns:
        The file, or ``None`` where there was nothing to fit.

    Raises:
        ConfigError: the folder cannot be written to, or the method's settings do not suit the data.
        DataError: the data cannot be read or fitted to.
    """
    if all(bool(method.get_submodule(name).fitted) for name in method.prefitted):
        return None
    method.to(device)
    id_loader = data.plain_loader("train", device=device)
    ood_loader = data.plain_outlier_loader("train", device=device)
    folder = make_folder(output_folder / FOLDER, "fixed.output_folder")
    path = folder / f"{digest(method, id_loader, ood_loader)}.pt"
    if path.is_file() and load(method, path):
        log.info("densities fitted earlier: %s", path)
        return path
    method.fit_before(id_loader, ood_loader)
    checkpoints.save_state(path, method, fitted_state(method))
    log.info("densities fitted: %s", path)
    return path


def digest(
    method: Method, id_loader: Iterable[tuple[Tensor, Tensor]], ood_loader: Iterable[tuple[Tensor, Tensor]] | None
) -> str:
    """SHA-256, in hexadecimal, of all that decides the outcome: the method's settings and every input it may read."""
    settings = {"class": f"{type(method).__module__}.{type(method).__qualname__}"} | method.prefit_settings()
    hasher = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for loader in (id_loader, ood_loader or ()):
        shapes = []
        for x, _ in loader:
            hasher.update(x.cpu().contiguous().numpy().data)
            shapes.append([str(x.dtype), *x.shape])
        hasher.update(json.dumps(shapes).encode())
    return hasher.hexdigest()


def fitted_state(method: Method) -> dict[str, Tensor]:
    """The state of all fitted submodules, by the names it has in the method's own."""
    return {
        f"{name}.{key}": value.cpu()
        for name in method.prefitted
        for key, value in method.get_submodule(name).state_dict().items()
    }


def load(method: Method, path: Path) -> bool:
    """Put an earlier fit into `method`; a file that is damaged is told of, and nothing changes."""
    try:
        _, state = checkpoints.read_state(path, remedy="the densities are fitted again")
    except DataError as error:
        log.warning("%s", error)
        return False
    if _shapes(state) != _shapes(fitted_state(method)):
        log.warning("%s holds other densities than %s has; they are fitted again", path, type(method).__name__)
        return False
    method.load_state_dict(state, strict=False)
    return True


def _shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in state.items()}
