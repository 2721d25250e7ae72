"""Equations 1 to 7 and 13 to 16 of the paper once more, as loops over Python floats.

A matrix is a list of rows. Weights are those of a torch `nn.Linear`, (out, in), read from a state dict.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

Vector = list[float]
Matrix = list[Vector]
Weights = Mapping[str, Tensor]


def dot(a: Sequence[float], b: Sequence[float]) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def part_of(weights: Weights, name: str) -> dict[str, Tensor]:
    """The weights below a name, with the name taken off."""
    return {key[len(name) + 1 :]: value for key, value in weights.items() if key.startswith(f"{name}.")}


def matrix(tensor: Tensor) -> Matrix:
    return tensor.double().tolist()


def linear(rows: Matrix, weights: Weights, name: str) -> Matrix:
    weight = matrix(weights[f"{name}.weight"])
    bias = weights[f"{name}.bias"].double().tolist() if f"{name}.bias" in weights else [0.0] * len(weight)
    return [[dot(row, out) + shift for out, shift in zip(weight, bias, strict=True)] for row in rows]


def standardized(row: Vector) -> Vector:
    mean = math.fsum(row) / len(row)
    variance = math.fsum((value - mean) ** 2 for value in row) / len(row)
    return [(value - mean) / math.sqrt(variance + 1e-5) for value in row]


def layer_norm(rows: Matrix, weights: Weights, name: str) -> Matrix:
    if f"{name}.weight" not in weights:
        return rows
    gain, shift = weights[f"{name}.weight"].double().tolist(), weights[f"{name}.bias"].double().tolist()
    return [[value * g + s for value, g, s in zip(standardized(row), gain, shift, strict=True)] for row in rows]


def softmax(values: Sequence[float]) -> Vector:
    top = max(values)
    powers = [math.exp(value - top) for value in values]
    return [power / math.fsum(powers) for power in powers]


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def cross_attention(x: Matrix, sources: Sequence[Matrix], weights: Weights, heads: int = 1) -> Matrix:
    """Equation 2, with the scale of section 4.2; `sources` hold the tokens that count and no others."""
    queries = linear(layer_norm(x, weights, "query_norm"), weights, "query")
    keys: Matrix = []
    values: Matrix = []
    for place, source in enumerate(sources):
        normed = layer_norm(source, weights, f"source_norms.{place}")
        keys += linear(normed, weights, f"keys.{place}") if normed else []
        values += linear(normed, weights, f"values.{place}") if normed else []
    key_width, value_width = len(queries[0]) // heads, len(weights["values.0.weight"]) // heads
    found: Matrix = []
    for query in queries:
        read: Vector = []
        for head in range(heads):
            key_slice = slice(head * key_width, (head + 1) * key_width)
            scores = [dot(query[key_slice], key[key_slice]) / math.sqrt(key_width) for key in keys]
            attention = softmax(scores) if scores else []
            for column in range(head * value_width, (head + 1) * value_width):
                read.append(math.fsum(a * value[column] for a, value in zip(attention, values, strict=True)))
        found.append(read)
    return linear(found, weights, "output") if "output.weight" in weights else found


def generate_expert(weights: Weights, sources: Sequence[Matrix], heads: int = 1) -> tuple[Matrix, Matrix]:
    """Equation 1: U and V."""
    made = []
    for letter in ("u", "v"):
        start = matrix(weights[f"{letter}0"])
        made.append(cross_attention(start, sources, part_of(weights, f"attend_{letter}"), heads))
    return made[0], made[1]


def slotted_answer(weights: Weights, embeddings: Matrix, slots: int) -> Matrix:
    """The answer's word embeddings, standardised, with slots and the answer's length (not the paper's)."""
    slot, length = matrix(weights["slots.weight"]), matrix(weights["lengths.weight"])
    its_length = length[min(len(embeddings) - 1, slots - 1)]
    return [
        [e + s + n for e, s, n in zip(standardized(row), slot[min(place, slots - 1)], its_length, strict=True)]
        for place, row in enumerate(embeddings)
    ]


def extract_features(
    weights: Weights, image: Matrix, prompt: Matrix, heads: int = 1, unit_length: bool = False
) -> tuple[Vector, Vector]:
    """Equation 3: phi and psi, flat."""
    asked = cross_attention(matrix(weights["phi0"]), [prompt], part_of(weights, "attend_phi1"), heads)
    phi = cross_attention(asked, [image], part_of(weights, "attend_phi2"), heads)
    psi = cross_attention(matrix(weights["psi0"]), [prompt], part_of(weights, "attend_psi"), heads)
    flat = [[value for row in rows for value in row] for rows in (phi, psi)]
    if unit_length:
        flat = [[value / math.sqrt(dot(row, row)) for value in row] for row in flat]
    return flat[0], flat[1]


@dataclass(frozen=True)
class ReferenceExpert:
    """One row of the repository."""

    u: Matrix
    v: Matrix
    visual: Vector
    prompt: Vector


def fire(
    visual: Vector,
    sentinel: Vector,
    prompt: Vector,
    experts: Mapping[str, ReferenceExpert],
    visual_scale: float,
    prompt_scale: float,
    prompt_offset: float = 0.0,
) -> dict[str, float]:
    """Equations 5 and 7: the experts that pass, by their names, with their weights."""
    threshold = dot(visual, sentinel) * visual_scale
    passed = [name for name, it in experts.items() if dot(visual, it.visual) * visual_scale > threshold]
    scores = [dot(prompt, experts[name].prompt) * prompt_scale - prompt_offset for name in passed]
    relative = softmax(scores) if scores else []
    return {name: sigmoid(s) * r for name, s, r in zip(passed, scores, relative, strict=True)}


def edited_states(
    states: Matrix,
    experts: Mapping[str, ReferenceExpert],
    weights: Mapping[str, float],
    normed: bool = False,
    scale: float = 1.0,
) -> Matrix:
    """Equation 6: the states with the residual of these experts."""
    edited = []
    for row in states:
        read = standardized(row) if normed else row
        changed = list(row)
        for name, weight in weights.items():
            for u, v in zip(experts[name].u, experts[name].v, strict=True):
                strength = weight * scale * max(0.0, dot(read, u))
                changed = [value + strength * direction for value, direction in zip(changed, v, strict=True)]
        edited.append(changed)
    return edited


def info_nce(scores: Sequence[float], wanted: int) -> float:
    """Equation 14 over ready similarities."""
    return -math.log(softmax(scores)[wanted])
