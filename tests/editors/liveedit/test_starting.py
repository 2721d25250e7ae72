"""The standardized start: every output dimension of the LayerNorms has mean 0 and standard deviation 1."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from liveedit.backbones import Backbone, HiddenTokens, TokenRole
from liveedit.backbones.hidden_states import HiddenStateCache
from liveedit.editors.liveedit import LiveEdit, LiveEditConfig
from liveedit.editors.liveedit.modules import LiveEditModules
from liveedit.editors.liveedit.starting import standardize
from liveedit.editors.trained import train_editor, training_setup
from liveedit.errors import ConfigError
from liveedit.samples import EditCase
from liveedit.training.trainer import StageConfig, TrainingConfig

ConfigMaker = Callable[..., LiveEditConfig]


def uneven_tokens(width: int) -> HiddenTokens:
    """Tokens with two dimensions that are a hundred times as large as the others, and always so."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(6, 12, width, generator=generator)
    states[..., :2] += 100
    roles = torch.tensor([TokenRole.IMAGE] * 5 + [TokenRole.PROMPT] * 5 + [TokenRole.ANSWER] * 2).expand(6, -1)
    return HiddenTokens(roles=roles, input_ids=torch.zeros_like(roles), hidden_states=states, word_embeddings=states)


def spreads(norm: torch.nn.Module, rows: Tensor) -> Tensor:
    return norm(rows).std(0)


def test_all_dimensions_vary_alike(small_config: ConfigMaker) -> None:
    torch.manual_seed(0)
    modules, tokens = LiveEditModules(small_config()), uneven_tokens(192)
    image, prompt = (tokens.hidden_states[mask] for mask in (tokens.image_mask, tokens.prompt_mask))
    phi1 = modules.bar.attend_phi1
    assert phi1 is not None
    read = [
        (phi1, prompt),
        (modules.bar.attend_phi2, image),
        (modules.hat.attend_psi, prompt),
        (modules.generator.attend_u, tokens.hidden_states.flatten(0, 1)),
    ]
    assert all(spreads(attention.source_norms[0], rows).max() < 0.5 for attention, rows in read)
    standardize(modules, tokens)
    for attention, rows in read:
        normed = attention.source_norms[0](rows)
        assert torch.allclose(normed.std(0), torch.ones(192), atol=1e-3)
        assert torch.allclose(normed.mean(0), torch.zeros(192), atol=1e-3)
    sentinel = modules.sentinel.detach()
    assert (sentinel[:, :2] > 90).all() and (sentinel[:, 2:] < 10).all(), "it is not told apart by its size"


def test_a_training_starts_so_and_its_editor_has_the_digest_of_what_it_is(
    random_backbone: Backbone, train_cases: tuple[EditCase, ...], tmp_path: Path
) -> None:
    def trained(standardized: bool | None) -> dict[str, Tensor]:
        settings = {"module_width": 32, "rank": 2, "heads": 4, "layer": 2, "standardized_start": standardized}
        stages = (StageConfig(name="routing", steps=1, batch=4, learning_rate=1e-8),)
        training = TrainingConfig(stages=stages, validation=2, mixed_precision=False)
        setup = training_setup(LiveEdit, random_backbone, settings, training=training)
        states = HiddenStateCache(random_backbone, 2)
        result = train_editor(setup, random_backbone, train_cases, tmp_path / str(standardized), states=states)
        with LiveEdit.load(random_backbone, str(result.folder)) as editor:
            return {name: value.clone() for name, value in editor.modules.state_dict().items()}

    plain, standardized, default = trained(False), trained(True), trained(None)
    assert all(torch.equal(default[name], value) for name, value in standardized.items()), "it is not built in"
    changed = {name for name in plain if (plain[name] - standardized[name]).abs().max() > 1e-4}
    norms = {f"{name}.source_norms.0" for name in ("hat.attend_phi1", "bar.attend_phi2", "generator.attend_v")}
    assert {f"{norm}.{part}" for norm in norms for part in ("weight", "bias")} | {"sentinel"} <= changed
    assert all("source_norms.0" in name or name == "sentinel" for name in changed)


def test_a_built_in_backbone_starts_plainly_unless_asked(tiny_llava: Backbone, small_config: ConfigMaker) -> None:
    class Task:
        backbone = tiny_llava

        def sample(self) -> HiddenTokens:
            return uneven_tokens(192)

    for given, wanted in ((None, False), (True, True), (False, False)):
        modules = LiveEditModules(small_config(standardized_start=given))
        before = modules.sentinel.detach().clone()
        LiveEdit.start(modules, Task())  # type: ignore[arg-type]
        assert torch.equal(modules.sentinel, before) != wanted


def test_it_needs_a_norm(small_config: ConfigMaker) -> None:
    with pytest.raises(ConfigError, match="needs norm = true"):
        small_config("paper", standardized_start=True)
