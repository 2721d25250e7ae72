"""A tiny byte-level tokenizer for each family, with that family's own special tokens and chat template."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from ..backbones.families.blip2 import MINIGPT4_CHAT_TEMPLATE

_WORDS = ("\n\n", " the", " is", " a", " what", "What", " of", " this", " red", "The", "USER", "ASSISTANT", "user")


@dataclass(frozen=True)
class Tokens:
    """The special tokens and the chat template of one family's tokenizer.

    named: special tokens that the family's processor reads as attributes of the tokenizer. start: a token that
    the tokenizer puts before every text.
    """

    pad: str
    eos: str
    bos: str | None = None
    start: str | None = None
    named: dict[str, str] = field(default_factory=dict)
    others: tuple[str, ...] = ()
    chat_template: str | None = None

    def build(self) -> PreTrainedTokenizerFast:
        """The tokenizer: byte-pair merges over a few words, every byte as a fallback, special tokens last."""
        vocabulary, merges = _pairs(_WORDS)
        backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        first = [token for token in (self.pad, self.bos, self.eos) if token]
        backend.add_special_tokens(list(dict.fromkeys([*first, *self.named.values(), *self.others])))
        if self.start:
            backend.post_processor = processors.TemplateProcessing(
                single=f"{self.start} $A",
                pair=f"{self.start} $A $B",
                special_tokens=[(self.start, backend.token_to_id(self.start))],
            )
        return PreTrainedTokenizerFast(
            tokenizer_object=backend,
            pad_token=self.pad,
            bos_token=self.bos,
            eos_token=self.eos,
            extra_special_tokens=self.named,
            clean_up_tokenization_spaces=False,
            model_max_length=1024,
            padding_side="left",
            chat_template=self.chat_template,
        )


def _pairs(words: tuple[str, ...]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges that build each word letter by letter, from its left end."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges: dict[tuple[str, str], None] = {}
    for word in words:
        spelled = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(word)[0][0]
        merges.update({(spelled[:end], spelled[end]): None for end in range(1, len(spelled))})
    known = dict.fromkeys([*letters, *("".join(merge) for merge in merges)])
    return {token: index for index, token in enumerate(known)}, list(merges)


_LLAMA: dict[str, Any] = {"pad": "<unk>", "bos": "<s>", "eos": "</s>", "start": "<s>"}

_LLAVA_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' ' }}{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)

_QWEN_TURN = (
    "<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for content in message['content'] %}{% if content['type'] == 'image' or 'image' in content %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% elif content['type'] == 'video' or 'video' in content %}"
    "<|vision_start|><|video_pad|><|vision_end|>{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n"
)
_QWEN_ANSWER = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
_QWEN2_5_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}" + _QWEN_TURN + "{% endfor %}" + _QWEN_ANSWER
)
_QWEN3_TEMPLATE = "{% for message in messages %}" + _QWEN_TURN + "{% endfor %}" + _QWEN_ANSWER

_INTERNVL_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}{% elif content['type'] == 'video' %}{{ '<video>\n' }}"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_GEMMA_TEMPLATE = (
    "{{ bos_token }}{%- for message in messages -%}"
    "{%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}"
    "{{ '<start_of_turn>' + role + '\n' }}"
    "{%- if message['content'] is string -%}{{ message['content'] | trim }}{%- else -%}"
    "{%- for item in message['content'] -%}{%- if item['type'] == 'image' -%}{{ '<start_of_image>' }}"
    "{%- elif item['type'] == 'text' -%}{{ item['text'] | trim }}{%- endif -%}{%- endfor -%}{%- endif -%}"
    "{{ '<end_of_turn>\n' }}{%- endfor -%}{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"
)

_IDEFICS_TURNS = (
    "{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
_TILES = tuple(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7))

_MISTRAL_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}"
    "{% endfor %}"
)

_QWEN_VISION = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
}

TOKENS = {
    "llava": Tokens(**_LLAMA, named={"image_token": "<image>"}, chat_template=_LLAVA_TEMPLATE),
    "blip2-opt": Tokens(pad="<pad>", bos="</s>", eos="</s>", start="</s>", others=("<image>",)),
    "minigpt4": Tokens(**_LLAMA, others=("<image>",), chat_template=MINIGPT4_CHAT_TEMPLATE),
    "qwen2.5-vl": Tokens(
        pad="<|endoftext|>",
        eos="<|im_end|>",
        named=_QWEN_VISION,
        others=("<|im_start|>",),
        chat_template=_QWEN2_5_TEMPLATE,
    ),
    "qwen3-vl": Tokens(
        pad="<|endoftext|>",
        eos="<|im_end|>",
        named=_QWEN_VISION,
        others=("<|im_start|>",),
        chat_template=_QWEN3_TEMPLATE,
    ),
    "internvl": Tokens(
        pad="<|endoftext|>",
        eos="<|im_end|>",
        named={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
        others=("<|im_start|>",),
        chat_template=_INTERNVL_TEMPLATE,
    ),
    "gemma3": Tokens(
        pad="<pad>",
        bos="<bos>",
        eos="<eos>",
        start="<bos>",
        named={
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
            "image_token": "<image_soft_token>",
        },
        others=("<start_of_turn>", "<end_of_turn>"),
        chat_template=_GEMMA_TEMPLATE,
    ),
    "idefics3": Tokens(
        pad="<|reserved_special_token_0|>",
        bos="<|begin_of_text|>",
        eos="<|end_of_text|>",
        start="<|begin_of_text|>",
        others=("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", *_TILES),
        chat_template="<|begin_of_text|>" + _IDEFICS_TURNS,
    ),
    "smolvlm": Tokens(
        pad="<|im_end|>",
        bos="<|im_start|>",
        eos="<end_of_utterance>",
        named={
            "fake_image_token": "<fake_token_around_image>",
            "image_token": "<image>",
            "end_of_utterance_token": "<end_of_utterance>",
            "global_image_token": "<global-img>",
        },
        others=_TILES,
        chat_template="<|im_start|>" + _IDEFICS_TURNS,
    ),
    "llama": Tokens(**_LLAMA),
    "mistral": Tokens(**_LLAMA, chat_template=_MISTRAL_TEMPLATE),
}
