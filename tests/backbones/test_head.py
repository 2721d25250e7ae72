"""Models that change the output of their head: a split forward gives the same logits as the whole one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Cohere2Config,
    CohereConfig,
    Gemma2Config,
    GraniteConfig,
    PreTrainedConfig,
)

from liveedit.backbones import load_backbone
from liveedit.backbones.families.text_only import TextBackbone
from liveedit.samples import Question
from liveedit.testing.backbone_checks import BackboneChecks
from liveedit.testing.family_models import FAMILIES

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.5,
}


@pytest.mark.parametrize(
    "config",
    [
        Gemma2Config(**SIZES, head_dim=16, final_logit_softcapping=5.0),
        CohereConfig(**SIZES, logit_scale=0.25),
        Cohere2Config(**SIZES, logit_scale=3.0),
        GraniteConfig(**SIZES, logits_scaling=8.0),
    ],
    ids=lambda config: config.model_type,
)
def test_a_split_forward_has_the_logits_of_the_whole(config: PreTrainedConfig, tmp_path: Path) -> None:
    FAMILIES["llama"](tmp_path)
    processor = load_backbone(tmp_path, device="cpu").processor
    tokenizer = processor.tokenizer
    config.vocab_size = len(tokenizer)  # type: ignore[attr-defined]
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config, name, getattr(tokenizer, name))
    torch.manual_seed(0)
    backbone = TextBackbone("tiny", AutoModelForCausalLM.from_config(config).eval(), processor)
    questions = [Question(text) for text in ("What is there?", "How many corners does a square have?", "Why?")]
    checks = BackboneChecks(backbone, 2, questions)
    found, whole = checks.split_logits()
    assert whole.abs().max() > 1, "too small for a cap to be seen"
    torch.testing.assert_close(found, whole, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(*checks.split_gradients(), atol=1e-4, rtol=1e-4)
