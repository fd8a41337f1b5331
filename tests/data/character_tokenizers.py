"""Tokenizers with one id a character, so that every expected id can be told by hand."""

import string

from tokenizers import Tokenizer, decoders, models
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<unk>", "<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>"]
UNK, BOS, EOS, PAD, IM_START, IM_END = range(6)
CHARACTERS = [chr(10), *string.printable[:95]]
ID = {character: len(SPECIAL) + place for place, character in enumerate(CHARACTERS)}
TWO_LINES = len(SPECIAL) + len(CHARACTERS)  # the one merge there is: two line feeds become one token

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def ids(text: str) -> list[int]:
    """The ids of a text by hand: one a character."""
    return [ID[character] for character in text]


def character_tokenizer(special: list[str], post: str | None = None, **names: str) -> PreTrainedTokenizerFast:
    vocabulary = {name: place for place, name in enumerate(SPECIAL) if name in special}
    vocabulary |= ID | {"\n\n": TWO_LINES}
    unk = "<unk>" if "<unk>" in special else None
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("\n", "\n")], unk_token=unk))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(special)
    if post:
        used = [name for name in special if name in post]
        tokenizer.post_processor = TemplateProcessing(single=post, special_tokens=[(u, vocabulary[u]) for u in used])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
