"""MEND: a trained network turns the gradient of one edit into a change of the last layers' weights."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ...backbones import Backbone
from ...errors import BackboneError, CheckpointError
from ...samples import Edit
from ...training.trainer import StageConfig
from ..trained import TrainedEditor
from .config import MendConfig
from .factors import edit_gradients, layer_before, mlp_matrices
from .modules import MendModules
from .task import MendTask


class Mend(TrainedEditor):
    """The editor of "Fast Model Editing at Scale" (https://arxiv.org/abs/2110.11309).

    One gradient step per edit: the gradient of the answer's NLL in the last layers' MLP matrices, taken at the model
    with all earlier edits active, goes factor by factor through `MendModules`, and the change that comes out is
    added to the weights. Edits sum up in the same weights and each depends on those before it: single ones cannot be
    undone. `reset` and `detach` restore the first weights bit for bit.

    The sum of changes is kept in float32 beside the first weights: a model in half precision would lose small changes
    one by one.
    """

    name = "mend"
    summary = "an edit's gradient, transformed into a weight change (MEND)"
    table_order = 20
    config_class = MendConfig
    task_class: ClassVar = MendTask

    def __init__(self, backbone: Backbone, modules: MendModules):
        super().__init__(backbone, modules)
        self._matrices = mlp_matrices(backbone, self.config.layers)
        wanted = tuple(matrix.shape for matrix in self._matrices)
        if wanted != modules.shapes:
            raise BackboneError(
                f"This editor was made for the matrices {modules.shapes}; {backbone.name} has {wanted}. Train one for "
                "it: liveedit train --editor mend."
            )
        self._before = layer_before(self._matrices)
        self.modules.to(backbone.layer_device(self._before + 1))
        self._original = {matrix.name: matrix.module.weight.detach().clone() for matrix in self._matrices}
        self._change: dict[str, Tensor] = {}
        self._edits = 0

    # -- making and training -----------------------------------------------------------------------------

    @classmethod
    def backbone_settings(cls, backbone: Backbone) -> dict[str, Any]:
        """As many of the last layers as the paper edits, fewer where the backbone is too shallow."""
        editable = len(backbone.layers) - 1 - backbone.first_edit_layer
        return {"layers": max(1, min(MendConfig().layers, editable))}

    @classmethod
    def new_modules(cls, backbone: Backbone, config: MendConfig) -> MendModules:
        """Networks for the backbone's matrices: untrained, an edit is a plain gradient step."""
        modules = MendModules(config, [matrix.shape for matrix in mlp_matrices(backbone, config.layers)])
        return modules.to(backbone.layer_device(len(backbone.layers) - config.layers))

    @classmethod
    def default_stages(cls) -> tuple[StageConfig, ...]:
        """One stage."""
        return (StageConfig(name="edit", steps=1400, batch=12, learning_rate=3e-3),)

    @classmethod
    def hidden_layer(cls, backbone: Backbone, config: MendConfig) -> int:
        """The layer before the first edited one."""
        return layer_before(mlp_matrices(backbone, config.layers))

    @torch.no_grad()
    def round_weights(self) -> None:
        """As for every trained editor; statistics stay in float32, for gradients lie below what float16 holds."""
        for name, tensor in self.modules.state_dict().items():
            if not name.startswith("statistics."):
                tensor.copy_(tensor.half())

    # -- editing -----------------------------------------------------------------------------------------

    def _edit_one(self, edit_id: str, edit: Edit) -> dict[str, Any]:
        changes = self.changes(edit)
        before = self._change or {name: torch.zeros_like(change) for name, change in changes.items()}
        after = {name: before[name] + change for name, change in changes.items()}
        # After many edits the gradients of a model can overflow: such an edit is not made.
        made = all(bool(change.isfinite().all()) for change in after.values())
        if made:
            self._change = after
            self._edits += 1
            self._write()
        return {"details": {"made": made}}

    def changes(self, edit: Edit) -> dict[str, Tensor]:
        """The change that this edit would make to each weight as it is now, by name, (out, in) in float32."""
        inputs = self.backbone.encode([edit.question], [edit.answer])
        with torch.no_grad():
            states = self.backbone.hidden_states(inputs, self._before)
            gradients = edit_gradients(self.backbone, self._matrices, states, inputs)
            found = self.modules(gradients)
        changes = [(matrix.name, change.dense()[0]) for matrix, change in zip(self._matrices, found, strict=True)]
        return {name: change.to(self._original[name].device) for name, change in changes}

    @torch.no_grad()
    def _write(self) -> None:
        """Write the first weights plus the changes into the model."""
        for matrix in self._matrices:
            weight, original = matrix.module.weight, self._original[matrix.name]
            change = self._change.get(matrix.name)
            weight.copy_(original if change is None else original.float() + change)

    def reset(self) -> None:
        """Restore the first weights."""
        self._change, self._edits = {}, 0
        self._write()

    def edited_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The sum of all changes of each weight, in float32, and how many edits made them."""
        return dict(self._change), {"edits": self._edits}

    def restore(self, tensors: dict[str, Tensor], note: dict[str, Any]) -> None:
        """Replace the active changes by these. Raises `CheckpointError` if they do not fit."""
        shapes = {name: tuple(value.shape) for name, value in self._original.items()}
        given = {name: tuple(value.shape) for name, value in tensors.items()}
        if given and given != shapes:
            raise CheckpointError(f"The edits change weights {given}; this editor has {shapes}. Use the same editor.")
        self._edits = int(note["edits"])
        self._change = {name: value.float().to(self._original[name].device) for name, value in tensors.items()}
        self._write()
