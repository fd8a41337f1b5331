"""GaLore, and how its projections get into a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ftlab.errors import UserError
from ftlab.modules.optimizers.combined import Combined, adamw
from ftlab.modules.optimizers.hidden import split


class GaLore(Combined):
    """AdamW whose states for a matrix live in the gradient's leading singular directions (Zhao et al. 2024, arXiv
    2403.03507), by pytorch_optimizer.

    A matrix of m rows and n columns, m the longer side, keeps 2 m r + r n numbers in place of AdamW's 2 m n. That is
    for matrices of hidden layers with both sides above `rank`; all else is trained by AdamW.

    Args:
        params: Groups of parameters.
        lr: Learning rate.
        weight_decay: Decoupled weight decay.
        betas: Decay of the running mean and of the running square of the gradient.
        rank: Directions r that are kept of a gradient.
        update_proj_gap: Steps between new projections, each a singular value decomposition of every gradient.
        scale: Factor of a projected matrix's step.

    Raises:
        UserError: pytorch_optimizer is not installed, or no matrix is that large.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 3e-5,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        rank: int = 8,
        update_proj_gap: int = 500,
        scale: float = 4.0,
    ) -> None:
        try:
            from pytorch_optimizer import GaLore as LowRankAdamW
        except ModuleNotFoundError as error:
            raise UserError(
                "model.optimizer: GaLore comes from pytorch_optimizer, which is not installed; "
                "run pip install pytorch_optimizer"
            ) from error
        matrices, rest = split(params, rank, "GaLore")
        projection = {"rank": rank, "update_proj_gap": update_proj_gap, "scale": scale, "projection_type": "std"}
        groups = [group | projection for group in matrices]
        low_rank = LowRankAdamW(groups, lr=lr, weight_decay=weight_decay, betas=betas)
        super().__init__([low_rank, *adamw(rest, lr=lr, weight_decay=weight_decay, betas=betas)])

    def state_dict(self) -> dict[str, Any]:
        """As torch's, with what changes of a projector in its place: checkpoints hold tensors and plain values."""
        whole = super().state_dict()
        for key, state in whole["state"].items():
            if "projector" in state:
                changing = {name: getattr(state["projector"], name) for name in ("ortho_matrix", "last_svd_step")}
                whole["state"][key] = state | {"projector": changing}
        return whole

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Makes the projectors again, each from its group and what changes of it."""
        from pytorch_optimizer.optimizer.utils.galore import GaLoreProjector

        super().load_state_dict(state_dict)
        for group in self.param_groups:
            for state in (self.state[parameter] for parameter in group["params"] if parameter in self.state):
                if "projector" in state:
                    names = ("rank", "update_proj_gap", "scale", "projection_type")
                    projector = GaLoreProjector(**{name: group[name] for name in names})
                    vars(projector).update(state["projector"])
                    state["projector"] = projector
