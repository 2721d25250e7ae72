"""Near wordings of a prompt: small changes that a person makes by accident or by habit. No model is needed."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from ...samples import normalize_prompt

Rule = Callable[[str, random.Random], str | None]
"""Another wording of a prompt, or None if the rule does not apply to it. All choices are made by the generator."""

_END: Final = re.compile(r"[\s.,;:?!…\"']*$")
_WH_WORDS: Final = ("what", "which", "where", "when", "who", "whose", "why", "how")
_WH: Final = re.compile(rf"\b({'|'.join(_WH_WORDS)})\b", re.IGNORECASE)
_AUXILIARY: Final = re.compile(
    r"(is|are|was|were|do|does|did|has|have|had|can|could|will|would|should|may|must)\b", re.IGNORECASE
)
_SHORTEST_WORD_WITH_TYPO: Final = 4


@dataclass(frozen=True)
class Wording:
    """A near wording of a prompt. kind: the group that it is reported in; rule: how it was made."""

    kind: str
    rule: str
    prompt: str


def near_wordings(prompt: str, seed: str) -> tuple[Wording, ...]:
    """The near wordings of a prompt by every rule that applies to it, in a fixed order.

    Each differs from the prompt. The same prompt and seed give the same wordings.
    """
    return tuple(_made(prompt, seed, tuple(RULES)))


def contradicting_prompts(prompt: str, seed: str) -> tuple[str, str, str] | None:
    """The prompt and two near wordings of it with a typo or another word order; None if there are not two.

    The three still differ in `normalize_prompt`, so that no editor may take two of them for the same question.
    """
    made = [one.prompt for one in _made(prompt, seed, ("word_order", "typos"))]
    random.Random(f"{seed} contradictions {prompt}").shuffle(made)
    distinct = {normalize_prompt(one): one for one in (prompt, *made)}
    prompts = tuple(distinct.values())
    return None if len(prompts) < 3 else (prompt, prompts[1], prompts[2])


def _made(prompt: str, seed: str, kinds: tuple[str, ...]) -> Iterator[Wording]:
    for kind in kinds:
        for rule, make in RULES[kind].items():
            made = make(prompt, random.Random(f"{seed} {rule} {prompt}"))
            if made is not None and made != prompt and made.strip():
                yield Wording(kind, rule, made)


def _parts(prompt: str) -> tuple[list[str], str]:
    """The words of a prompt, and its final marks."""
    end = _END.search(prompt)
    marks = end[0] if end else ""
    return prompt[: len(prompt) - len(marks)].split(), marks


def _ended(prompt: str, marks: str) -> str:
    return _END.sub("", prompt) + marks


# -- word order and question type --------------------------------------------------------------------------------


def _wh_last(prompt: str, rng: random.Random) -> str | None:
    """The first wh-word goes to the end: "Is this creature called what?"."""
    words, marks = _parts(prompt)
    place = next((place for place, word in enumerate(words) if _WH.fullmatch(word)), None)
    if place is None:
        return None
    rest = [*words[:place], *words[place + 1 :]]
    if place == 0 and rest:
        rest[0] = rest[0][:1].upper() + rest[0][1:]
    return " ".join([*rest, words[place].lower()]) + marks


def _end_first(prompt: str, rng: random.Random) -> str | None:
    """The second half of the words comes first."""
    words, marks = _parts(prompt)
    middle = (len(words) + 1) // 2
    return " ".join([*words[middle:], *words[:middle]]) + marks


def _swapped_words(prompt: str, rng: random.Random) -> str | None:
    """Two adjacent words change places."""
    words, marks = _parts(prompt)
    places = [place for place in range(len(words) - 1) if words[place].casefold() != words[place + 1].casefold()]
    if not places:
        return None
    place = rng.choice(places)
    words[place], words[place + 1] = words[place + 1], words[place]
    return " ".join(words) + marks


def _other_wh(prompt: str, rng: random.Random) -> str | None:
    """Another wh-word; "why" before a question that is answered by yes or no."""
    found = _WH.search(prompt)
    if found is None:
        return f"Why {prompt[:1].lower()}{prompt[1:]}" if _AUXILIARY.match(prompt) else None
    # "what" for "which" would be the same question.
    same = ("what", "which") if found[0].lower() in ("what", "which") else (found[0].lower(),)
    other = rng.choice([word for word in _WH_WORDS if word not in same])
    return prompt[: found.start()] + (other.capitalize() if found[0][0].isupper() else other) + prompt[found.end() :]


# -- typos -------------------------------------------------------------------------------------------------------


def _typo(prompt: str, rng: random.Random, change: Callable[[str, int], str]) -> str | None:
    """The prompt with one letter of a word of four letters or more changed."""
    words = re.finditer(rf"[^\W\d_]{{{_SHORTEST_WORD_WITH_TYPO},}}", prompt)
    places = [place for word in words for place in range(word.start(), word.end() - 1)]
    changed = [
        made
        for made in (change(prompt, place) for place in places)
        if normalize_prompt(made) != normalize_prompt(prompt)
    ]
    return rng.choice(changed) if changed else None


def _swapped_letters(prompt: str, rng: random.Random) -> str | None:
    return _typo(prompt, rng, lambda text, at: f"{text[:at]}{text[at + 1]}{text[at]}{text[at + 2 :]}")


def _dropped_letter(prompt: str, rng: random.Random) -> str | None:
    return _typo(prompt, rng, lambda text, at: text[:at] + text[at + 1 :])


def _doubled_letter(prompt: str, rng: random.Random) -> str | None:
    return _typo(prompt, rng, lambda text, at: text[: at + 1] + text[at:])


RULES: Final[dict[str, dict[str, Rule]]] = {
    "case": {
        "upper": lambda prompt, rng: prompt.upper(),
        "lower": lambda prompt, rng: prompt.lower(),
        "title": lambda prompt, rng: " ".join(word[:1].upper() + word[1:] for word in prompt.split(" ")),
    },
    "punctuation": {
        "no_mark": lambda prompt, rng: _ended(prompt, ""),
        "exclamation": lambda prompt, rng: _ended(prompt, "!!"),
        "ellipsis": lambda prompt, rng: _ended(prompt, "..."),
        "doubled_spaces": lambda prompt, rng: prompt.replace(" ", "  "),
        "leading_space": lambda prompt, rng: f" {prompt}",
        "trailing_space": lambda prompt, rng: f"{prompt} ",
        "leading_quote": lambda prompt, rng: f'"{prompt}',
        "trailing_quote": lambda prompt, rng: f'{prompt}"',
    },
    "word_order": {"wh_last": _wh_last, "end_first": _end_first, "swapped_words": _swapped_words},
    "question_type": {"other_wh": _other_wh},
    "typos": {
        "swapped_letters": _swapped_letters,
        "dropped_letter": _dropped_letter,
        "doubled_letter": _doubled_letter,
    },
}
"""Every rule by its kind."""
