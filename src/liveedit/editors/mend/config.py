"""Every choice of MEND: which weights it edits, the size of its networks, and how they are trained."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class MendConfig(BaseModel):
    """Sizes of a MEND editor and weights of its losses.

    Loss weights are the paper's (appendix B); the other defaults are the best of the settings tried on `tiny-llava`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: int = Field(default=3, gt=0, description="Last decoder layers whose MLP matrices are edited (paper: 3).")
    rank: int = Field(default=128, gt=0, description="Rank of the networks' linear maps (paper: 1920).")
    edit_rate: float = Field(
        default=3e-4, gt=0, description="First value of each matrix's learned edit learning rate (paper: 1e-4)."
    )
    edit_weight: float = Field(default=0.1, ge=0, description="Weight c_edit of the edit loss (paper: 0.1).")
    locality_weight: float = Field(default=1.0, ge=0, description="Weight c_loc of the locality loss (paper: 1).")
    locality_inputs: int = Field(
        default=2,
        gt=0,
        description="Locality inputs that a case is trained on; cases take the kinds in turn (paper: 1).",
    )
    edits_together: int = Field(
        default=1,
        gt=0,
        description="Edits active at once in training, their changes summed (paper: 1; section 5: more).",
    )
    statistics_cases: int = Field(
        default=512, gt=1, description="Training cases whose gradients the normalisation is taken from."
    )
