"""Second stage: the language model learns to answer, on frozen vision features.

Eight questions about one image share one row (`rows`), so that the image is computed once for eight answers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..datasets.world import catalog, questions
from ..datasets.world.questions import Topic
from ..datasets.world.scene import Scene
from .models import EDIT_LAYER, IMAGE_TOKENS, language_parts
from .rows import PackedRows, Turn, answer_logits
from .vision_stage import hat_token, thing_token

QUESTIONS_PER_ROW = 8
_ENTITIES = tuple(Topic(name) for name in questions.ENTITY_RELATIONS)
_CENTER_TOKENS = (5, 6, 9, 10)


def image_turns(scene: Scene, rng: np.random.Generator) -> list[Turn]:
    """Eight questions about a scene; no question about facts if the creature is not a known one."""
    known = bool(scene.creature.name)
    attributes = [topic for topic in questions.topics(scene) if not topic.is_entity]
    things = [topic for topic in attributes if topic.thing]
    others = [topic for topic in attributes if not topic.thing]
    chosen = ([*_ENTITIES] if known else []) + things
    left = max(0, QUESTIONS_PER_ROW - len(chosen))
    chosen += [others[index] for index in rng.permutation(len(others))[:left]]
    return [(_ask(topic, rng), questions.answer(scene, topic)) for topic in chosen]


def text_turns(tokenizer: Any, rng: np.random.Generator) -> list[Turn]:
    """Six facts about countries, and two texts to repeat, which keep every token of the vocabulary in use."""
    turns = []
    for _ in range(QUESTIONS_PER_ROW - 2):
        country = catalog.countries()[rng.integers(60)]
        relation = questions.TEXT_RELATIONS[rng.integers(2)]
        wording = "train" if rng.random() < 0.8 else "unseen_by_editor"
        turns.append(questions.ask_country(country, relation, wording, rng))
    for _ in range(2):
        tokens = rng.integers(4, len(tokenizer), rng.integers(1, 5))
        text = tokenizer.decode(tokens.tolist()).strip()
        turns.append((f"Say {text}", text))
    return turns


class LanguageStage(nn.Module):
    """The language model and projector with their losses; `emblem` is a helper head that is dropped after training."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.projector, self.language = language_parts(model)
        self.image_id = model.config.image_token_id
        self.emblem = nn.Linear(self.language.config.hidden_size, catalog.EMBLEM_CELLS)

    def forward(
        self, rows: PackedRows, features: Tensor, words: Tensor, cells: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """Answer loss + word alignment + emblem kept readable at the edit layer.

        features: (images, 16, vision width), in the order of the rows that have an image.
        words: (images, 16, 3) token ids of what an image token shows, -100 where nothing.
        cells: (images, 25) the emblem.
        """
        image = self.projector(features)
        output, logits, wanted = answer_logits(self.language, rows, image, self.image_id, output_hidden_states=True)
        is_image = rows.ids == self.image_id
        answer_loss = F.cross_entropy(logits.float(), wanted)
        alignment = self._alignment(image, words)
        middle = output.hidden_states[EDIT_LAYER + 1][is_image].view(len(features), IMAGE_TOKENS, -1)
        emblem = self.emblem(F.layer_norm(middle.float(), middle.shape[-1:]).mean(1))
        emblem_loss = F.binary_cross_entropy_with_logits(emblem, cells)
        right = (logits.argmax(-1) == wanted).float().mean().item()
        report = {
            "answer_loss_nats": answer_loss.item(),
            "alignment_loss_nats": alignment.item(),
            "token_accuracy": 100 * right,
            "emblem_cells": 100 * ((emblem > 0) == cells.bool()).float().mean().item(),
        }
        return answer_loss + 0.3 * alignment + 0.5 * emblem_loss, report

    def _alignment(self, image: Tensor, words: Tensor) -> Tensor:
        """Loss that aligns each image token with the embeddings of the words for what it shows."""
        shown = (words >= 0).any(-1)
        scores = F.linear(image[shown], self.language.embed_tokens.weight).float().log_softmax(-1)
        wanted = words[shown]
        picked = scores.gather(-1, wanted.clamp(min=0)) * (wanted >= 0)
        return -(picked.sum(-1) / (wanted >= 0).sum(-1)).mean()


def alignment_words(scene: Scene, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Token ids (16, 3) of the words for what each image token shows, -100 if it shows nothing."""
    words = np.full((IMAGE_TOKENS, 3), -100)
    words[hat_token(scene), :2] = _word_ids(tokenizer, scene.hat, scene.hat_color)
    for thing in scene.things:
        words[thing_token(scene, thing.slot), :2] = _word_ids(tokenizer, thing.shape, thing.color)
    center = _word_ids(tokenizer, scene.color, *([scene.creature.name] if scene.creature.name else []))
    for token in _CENTER_TOKENS:
        words[token, : len(center)] = center
    return words


def _word_ids(tokenizer: PreTrainedTokenizerBase, *words: str) -> list[int]:
    """The first token of each word."""
    return [tokenizer.encode(f" {word}", add_special_tokens=False)[0] for word in words]


def _ask(topic: Topic, rng: np.random.Generator) -> str:
    return questions.ask(topic, "train" if rng.random() < 0.8 else "unseen_by_editor", rng)
