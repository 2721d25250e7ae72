"""Every built-in reader under the contract of `liveedit.testing`. A new format adds one class."""

from __future__ import annotations

from typing import Any

from liveedit.datasets import format_names, reader_named
from liveedit.datasets.counterfact import COUNTERFACT
from liveedit.datasets.easyedit import EASYEDIT
from liveedit.datasets.edit_rows import EDIT_ROWS
from liveedit.datasets.mmedit import MMEDIT
from liveedit.datasets.selfcheckgpt import SELFCHECKGPT
from liveedit.datasets.vlkeb import VLKEB
from liveedit.datasets.zsre import ZSRE
from liveedit.testing import DatasetContract


class TestMMEdit(DatasetContract):
    reader = MMEDIT

    def rows(self) -> list[dict[str, Any]]:
        row = {
            "src": "How many tennis balls are there?",
            "pred": "no",
            "rephrase": "What is the number of tennis balls?",
            "alt": "2",
            "image": "val2014/a.jpg",
            "image_rephrase": "redrawn/a.png",
            "loc": "nq question: who wrote the winter's tale",
            "loc_ans": "William Shakespeare",
            "m_loc": "val2014/b.jpg",
            "m_loc_q": "What sport can you use this for?",
            "m_loc_a": "motocross",
        }
        further = {"name": "near_duplicate_locality", "prompt": "Which sport?", "image": "c.png", "answer": "golf"}
        return [row, {**row, "src": "Where is it?", "alt": "outside", "tags": ["place"], "probes": [further]}]


class TestVLKEB(DatasetContract):
    reader = VLKEB

    def rows(self) -> list[dict[str, Any]]:
        row = {
            "src": "What city is featured in the image?",
            "rephrase": "Can you identify the city?",
            "pred": "Wichita_Falls,_Texas",
            "alt": "Fort Smith, Arkansas",
            "image": "m.010bxh/bing_0.jpg",
            "image_rephrase": "m.010bxh/bing_3.jpg",
            "loc": "who ordered the attack",
            "loc_ans": "Emperor Hirohito",
            "m_loc": "m.0d9z_y/yahoo_0.jpg",
            "m_loc_q": "Which city is it?",
            "m_loc_a": "Texarkana",
        }
        hop = {"port_edit_q": "When?", "port_edit_a": "1817", "port_q": "When was it founded?", "port_a": "1817"}
        return [row, {**row, "image": "m.02xry/google_1.jpg", "alt": "11", "port_new": [hop]}]


class TestZsRE(DatasetContract):
    reader = ZSRE

    def rows(self) -> list[dict[str, Any]]:
        row = {
            "subject": "Watts Humphrey",
            "src": "What university did Watts Humphrey attend?",
            "pred": "Trinity College",
            "rephrase": "What university did Watts Humphrey take part in?",
            "alt": "University of Michigan",
            "answers": ["Illinois Institute of Technology"],
            "loc": "nq question: who played desmond doss father in hacksaw ridge",
            "loc_ans": "Hugo Weaving",
            "cond": "Trinity College >> University of Michigan || What university did Watts Humphrey attend?",
        }
        return [row, {**row, "src": "Who was Watts Humphrey?", "alt": "an engineer"}]


class TestSelfCheckGPT(DatasetContract):
    reader = SELFCHECKGPT

    def rows(self) -> list[dict[str, Any]]:
        row = {
            "prompt": "This is a Wikipedia passage about choi jae-bong.",
            "target_new": "Choi Jae-bong is a South Korean speed skater.",
            "subject": "choi jae-bong",
            "locality_prompt": "Description Map of South America.",
            "locality_ground_truth": "l print or plan?",
        }
        return [row, {**row, "prompt": "This is a Wikipedia passage about john russell.", "target_new": "He was born."}]


class TestCounterFact(DatasetContract):
    """The flat form."""

    reader = COUNTERFACT

    def rows(self) -> list[dict[str, Any]]:
        row = {
            "case_id": 0,
            "prompt": "The mother tongue of Danielle Darrieux is",
            "target_new": "English",
            "subject": "Danielle Darrieux",
            "ground_truth": "French",
            "rephrase_prompt": "Where Danielle Darrieux is from, people speak the language of",
            "locality_prompt": "Michel Rocard is a native speaker of",
            "locality_ground_truth": "French",
        }
        return [row, {**row, "case_id": 4, "prompt": "What is the twin city of Lyon? It is", "target_new": "Manila"}]


class TestCounterFactOfROME(DatasetContract):
    reader = COUNTERFACT

    def rows(self) -> list[dict[str, Any]]:
        rewrite = {
            "prompt": "The mother tongue of {} is",
            "relation_id": "P103",
            "target_new": {"str": "English", "id": "Q1860"},
            "target_true": {"str": "French", "id": "Q150"},
            "subject": "Danielle Darrieux",
        }
        row = {
            "case_id": 0,
            "pararel_idx": 2796,
            "requested_rewrite": rewrite,
            "paraphrase_prompts": ["Shayna does this and Yossel goes still. Danielle Darrieux, a native"],
            "neighborhood_prompts": ["Michel Rocard is a native speaker of", "Robert Schuman spoke the language"],
            "attribute_prompts": ["Julia Roberts's mother tongue is"],
            "generation_prompts": ["Danielle Darrieux was born in"],
        }
        return [row, {**row, "case_id": 1, "requested_rewrite": {**rewrite, "subject": "Lyon"}}]


class TestEditRows(DatasetContract):
    reader = EDIT_ROWS

    def rows(self) -> list[dict[str, Any]]:
        row = {"prompt": "What is it?", "answer": "a cat"}
        locality = [{"prompt": "Where?", "image": "a.png"}, {"prompt": "Who?"}, {"prompt": "Why?", "image": "b.png"}]
        more = {"image": "a.png", "rephrasings": ["What?"], "locality": locality, "author": "ada", "note": "seen"}
        return [row, {**row, "answer": "a dog", **more}]


class TestEasyEdit(DatasetContract):
    reader = EASYEDIT

    def rows(self) -> list[dict[str, Any]]:
        row = {"prompt": "Who wrote Faust?", "target_new": "Heine", "subject": "Faust", "ground_truth": "Goethe"}
        locality = {
            "text": {"prompt": ["Who wrote Emma?", "Who wrote Ulysses?"], "ground_truth": ["Austen", ["Joyce"]]},
            "vision": {"prompt": "What is it?", "ground_truth": "a cat", "image": "b.png"},
        }
        more = {
            "image": "a.png",
            "rephrase_prompt": "Faust was written by",
            "image_rephrase": "c.png",
            "locality_inputs": locality,
            "portability_inputs": {"hop": {"prompt": "Where was its author born?", "ground_truth": "Duesseldorf"}},
        }
        return [row, {**row, "prompt": "What is it?", **more}]


def test_every_built_in_reader_is_under_contract() -> None:
    built_in = {id(reader_named(name)) for name in format_names()}
    contracts = (TestMMEdit, TestVLKEB, TestZsRE, TestSelfCheckGPT, TestCounterFact, TestEditRows, TestEasyEdit)
    assert built_in == {id(contract.reader) for contract in contracts}
