"""Encoding: every id and label told by hand from tokenizers with one id a character."""

import pytest
import torch
from character_tokenizers import BOS, EOS, IM_END, IM_START, PAD, TWO_LINES, UNK, ids
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from ftlab.data.encoding import Encoder, Example, Pair
from ftlab.errors import UserError

MASK = -100
TEXT = st.text(alphabet="ab \n", max_size=12)
ANSWER = TEXT.filter(str.strip)


def _masked(prompt: list[int], response: list[int]) -> Example:
    return Example(prompt + response, [MASK] * len(prompt) + response)


def _pairs(*pairs: tuple[str, str]) -> list[Pair]:
    return [Pair(prompt, response, f"a.jsonl:{line}") for line, (prompt, response) in enumerate(pairs, start=1)]


class TestPlain:
    def test_bos_prompt_response_stop(self, plain_tokenizer: PreTrainedTokenizerFast) -> None:
        encoder = Encoder(plain_tokenizer)
        assert not encoder.chat
        assert encoder.encode("hi\n", "yo", "a:1") == _masked([BOS, *ids("hi\n")], [*ids("yo"), EOS])
        assert encoder.prompt_ids("hi\n") == [BOS, *ids("hi\n")]
        assert encoder.stop_ids == (EOS,)
        assert encoder.pad_id == PAD

    def test_the_boundary_is_never_merged(self, plain_tokenizer: PreTrainedTokenizerFast) -> None:
        encoder = Encoder(plain_tokenizer)
        assert encoder.encode("a\n", "\nb", "a:1") == _masked([BOS, *ids("a\n")], [*ids("\nb"), EOS])
        assert encoder.encode("a\n\n", "b", "a:1") == _masked([BOS, *ids("a"), TWO_LINES], [*ids("b"), EOS])

    def test_no_end_of_text_after_the_prompt(self, closing_tokenizer: PreTrainedTokenizerFast) -> None:
        assert closing_tokenizer("hi")["input_ids"] == [BOS, *ids("hi"), EOS]
        encoder = Encoder(closing_tokenizer)
        assert encoder.encode("hi", "yo", "a:1") == _masked([BOS, *ids("hi")], [*ids("yo"), EOS])
        assert encoder.pad_id == UNK

    def test_no_bos_where_the_tokenizer_sets_none(self, bare_tokenizer: PreTrainedTokenizerFast) -> None:
        encoder = Encoder(bare_tokenizer)
        assert encoder.encode("hi", "yo", "a:1") == _masked(ids("hi"), [*ids("yo"), EOS])
        assert encoder.pad_id == EOS

    def test_special_tokens_spelt_out_are_not_doubled(self, plain_tokenizer: PreTrainedTokenizerFast) -> None:
        encoder = Encoder(plain_tokenizer)
        assert encoder.encode("<s>hi", "yo</s>", "a:1") == _masked([BOS, *ids("hi")], [*ids("yo"), EOS])

    def test_a_tokenizer_without_end_of_text_is_refused(self, endless_tokenizer: PreTrainedTokenizerFast) -> None:
        with pytest.raises(UserError, match=r"has no end-of-text token, so no stop could be learned; set eos_token"):
            Encoder(endless_tokenizer)

    def test_chat_without_a_template_is_refused(self, plain_tokenizer: PreTrainedTokenizerFast) -> None:
        with pytest.raises(UserError, match=r"data\.template: chat, but .* has no chat template"):
            Encoder(plain_tokenizer, template="chat")

    def test_decoding_stops_at_the_stop_token(self, plain_tokenizer: PreTrainedTokenizerFast) -> None:
        encoder = Encoder(plain_tokenizer)
        assert encoder.decode([BOS, *ids(" a , b"), EOS, *ids("c"), PAD]) == " a , b"
        assert encoder.decode(torch.tensor([*ids("ab"), PAD])) == "ab"
        assert encoder.decode([]) == ""


class TestChat:
    def test_the_template_is_taken_by_itself(self, chat_tokenizer: PreTrainedTokenizerFast) -> None:
        encoder = Encoder(chat_tokenizer)
        prompt = [IM_START, *ids("user\nhi"), IM_END, *ids("\n"), IM_START, *ids("assistant\n")]
        assert encoder.chat
        assert encoder.prompt_ids("hi") == prompt
        assert encoder.encode("hi", "yo", "a:1") == _masked(prompt, [*ids("yo"), IM_END])
        assert encoder.stop_ids == (IM_END, EOS)
        assert not Encoder(chat_tokenizer, template="plain").chat

    def test_ids_are_those_of_transformers(self, chat_tokenizer: PreTrainedTokenizerFast) -> None:
        turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
        whole = chat_tokenizer.apply_chat_template(turns, return_dict=False)
        example = Encoder(chat_tokenizer).encode("hi", "yo", "a:1")
        assert example is not None
        assert example.input_ids == whole[:-1]  # the template's line feed after the stop token is dropped

    def test_a_response_that_merges_with_the_prompt_keeps_the_prompt(
        self, chat_tokenizer: PreTrainedTokenizerFast
    ) -> None:
        encoder = Encoder(chat_tokenizer)
        assert encoder.encode("hi", "\nyo", "a:1") == _masked(encoder.prompt_ids("hi"), [*ids("\nyo"), IM_END])

    def test_the_turn_ends_at_the_first_special_token(self, chat_tokenizer: PreTrainedTokenizerFast) -> None:
        chat_tokenizer.chat_template = chat_tokenizer.chat_template.replace(
            "{% if add", "{% if not add_generation_prompt %}</s>{% endif %}{% if add"
        )
        encoder = Encoder(chat_tokenizer)
        assert encoder.encode("hi", "yo", "a:1") == _masked(encoder.prompt_ids("hi"), [*ids("yo"), IM_END])

    def test_bos_is_the_templates(self, plain_tokenizer: PreTrainedTokenizerFast) -> None:
        """A template that writes <s> for a tokenizer that sets <s>: it stands there once."""
        template = "<s>{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}</s>{% else %}|{% endif %}"
        plain_tokenizer.chat_template = template + "{% endfor %}"
        try:
            encoder = Encoder(plain_tokenizer)
            assert encoder.encode("hi", "yo", "a:1") == _masked([BOS, *ids("hi|")], [*ids("yo"), EOS])
        finally:
            plain_tokenizer.chat_template = None

    @pytest.mark.parametrize(
        ("template", "sentence"),
        [
            (
                "{% for m in messages %}{{ m.content }}\n{% endfor %}",
                r"ends the assistant's turn with '\\n', .*no stop",
            ),
            ("{% for m in messages %}{{ m.content }}{% endfor %}", r"ends the assistant's turn with '', .*no stop"),
            ("{% for m in messages %}{{ m.content }}<nothing>{% endfor %}", r"special token, so no stop could be"),
            (
                "{% for m in messages %}é{{ m.content }}é{% endfor %}",
                r"special token, so no stop could be",
            ),  # é is <unk>
            ("{{ messages[0].content }}<|im_end|>", r"or not the assistant's turn"),
            ("{{ messages | length }}<|im_end|>", r"does not begin with its own prompt"),
            ("{{ raise_exception('no users') }}", r"fails on a user's and an assistant's turn \(no users\)"),
            ("{% for %}", r"fails on a user's"),
        ],
    )
    def test_a_template_that_ends_no_turn_is_refused(
        self, chat_tokenizer: PreTrainedTokenizerFast, template: str, sentence: str
    ) -> None:
        chat_tokenizer.chat_template = template
        with pytest.raises(UserError, match=sentence):
            Encoder(chat_tokenizer)

    def test_a_record_that_the_template_renders_otherwise_is_named(
        self, chat_tokenizer: PreTrainedTokenizerFast
    ) -> None:
        chat_tokenizer.chat_template = chat_tokenizer.chat_template.replace(
            "<|im_end|>", "<|im_end|>{% if message.content == 'odd' %}?{% endif %}"
        )
        with pytest.raises(UserError, match=r"a\.jsonl:2: the chat template .* renders this conversation otherwise"):
            Encoder(chat_tokenizer).encode_all(_pairs(("hi", "yo"), ("hi", "odd")))


class TestEmpty:
    @pytest.mark.parametrize("response", ["", "  \n"])
    def test_an_empty_response_is_named(
        self, plain_tokenizer: PreTrainedTokenizerFast, chat_tokenizer: PreTrainedTokenizerFast, response: str
    ) -> None:
        for tokenizer in (plain_tokenizer, chat_tokenizer):
            with pytest.raises(UserError, match=r"a\.jsonl:2: the response is empty, so nothing would be learned"):
                Encoder(tokenizer).encode_all(_pairs(("a", "b"), ("a", response)))

    def test_a_lone_first_token_is_not_learned(self, bare_tokenizer: PreTrainedTokenizerFast) -> None:
        """Without prompt and BOS nothing comes before the stop token that the response spells."""
        with pytest.raises(UserError, match=r"a:1: no token of the response would be learned"):
            Encoder(bare_tokenizer).encode("", "</s>", "a:1")


class TestOverflow:
    # <s> + 5 + 2 + </s> = 9 tokens, and 12 and 13
    PAIRS = _pairs(("abcde", "xy"), ("abcdefgh", "xy"), ("abc", "uvwxyzuv"))

    def test_refuse_names_the_first_and_counts(self, plain_tokenizer: PreTrainedTokenizerFast) -> None:
        encoder = Encoder(plain_tokenizer, max_length=11)
        with pytest.raises(UserError, match=r"a\.jsonl:2 takes 12 tokens .* allows 11, and 2 of 3 are too long"):
            encoder.encode_all(self.PAIRS)
        assert Encoder(plain_tokenizer, max_length=13).encode_all(self.PAIRS).dropped == 0

    def test_drop_leaves_out_and_counts(self, plain_tokenizer: PreTrainedTokenizerFast) -> None:
        encoded = Encoder(plain_tokenizer, max_length=11, overflow="drop").encode_all(self.PAIRS)
        assert encoded.examples == [_masked([BOS, *ids("abcde")], [*ids("xy"), EOS]), None, None]
        assert (len(encoded.kept), encoded.dropped, encoded.truncated) == (1, 2, 0)
        assert Encoder(plain_tokenizer, max_length=3, overflow="drop").encode("abc", "x", "a:1") is None

    def test_truncate_cuts_the_prompts_front_after_bos(self, plain_tokenizer: PreTrainedTokenizerFast) -> None:
        encoded = Encoder(plain_tokenizer, max_length=11, overflow="truncate").encode_all(self.PAIRS)
        assert encoded.examples == [
            _masked([BOS, *ids("abcde")], [*ids("xy"), EOS]),
            _masked([BOS, *ids("bcdefgh")], [*ids("xy"), EOS]),
            _masked([BOS, *ids("c")], [*ids("uvwxyzuv"), EOS]),
        ]
        assert (encoded.dropped, encoded.truncated) == (0, 2)

    def test_truncate_never_cuts_the_response(self, plain_tokenizer: PreTrainedTokenizerFast) -> None:
        encoder = Encoder(plain_tokenizer, max_length=10, overflow="truncate")
        with pytest.raises(UserError, match=r"a\.jsonl:3: the response alone takes 9 tokens .* allows 10"):
            encoder.encode_all(self.PAIRS)

    def test_prompts_to_generate_from_are_cut_likewise(self, plain_tokenizer: PreTrainedTokenizerFast) -> None:
        encoder = Encoder(plain_tokenizer, max_length=8, overflow="truncate")
        assert encoder.prompts_ids(["abcdef", "ab"], room=3) == [[BOS, *ids("cdef")], [BOS, *ids("ab")]]
        assert Encoder(plain_tokenizer, max_length=8).prompts_ids(["abcdef"], room=3) == [[BOS, *ids("abcdef")]]
        with pytest.raises(UserError, match="to generate 7 tokens leaves no room for a prompt"):
            encoder.prompts_ids(["abcdef"], room=7)

    def test_without_a_limit_nothing_is_too_long(self, plain_tokenizer: PreTrainedTokenizerFast) -> None:
        encoder = Encoder(plain_tokenizer, overflow="drop")
        assert encoder.encode_all([Pair("a" * 1000, "b" * 1000, "a:1")]).dropped == 0


FIXTURES_STAY = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)


@FIXTURES_STAY
@given(st.lists(st.tuples(TEXT, ANSWER), max_size=4), st.sampled_from(["chat", "plain"]))
def test_masks_cover_response_and_stop_and_nothing_else(
    chat_tokenizer: PreTrainedTokenizerFast, pairs: list[tuple[str, str]], template: str
) -> None:
    encoder = Encoder(chat_tokenizer, template=template)  # type: ignore[arg-type]
    examples = encoder.encode_all(_pairs(*pairs)).examples
    assert len(examples) == len(pairs)
    for (prompt, response), example in zip(pairs, examples, strict=True):
        assert example is not None
        start = encoder.prompt_ids(prompt)
        learned = example.input_ids[len(start) :]
        assert example.input_ids[: len(start)] == start
        assert example.labels == [MASK] * len(start) + learned
        assert learned[-1] == encoder.stop_ids[0]
        assert learned.count(encoder.stop_ids[0]) == 1
        assert encoder.decode(learned) == response


@FIXTURES_STAY
@given(TEXT, ANSWER, st.integers(4, 30))
def test_truncation_keeps_bos_the_response_and_the_end_of_the_prompt(
    plain_tokenizer: PreTrainedTokenizerFast, prompt: str, response: str, limit: int
) -> None:
    whole = Encoder(plain_tokenizer).encode(prompt, response, "a:1")
    assert whole is not None
    learned = [label for label in whole.labels if label != MASK]
    encoder = Encoder(plain_tokenizer, max_length=limit, overflow="truncate")
    if len(whole.input_ids) > limit <= len(learned) + 1:
        with pytest.raises(UserError):
            encoder.encode(prompt, response, "a:1")
        return
    cut = encoder.encode(prompt, response, "a:1")
    assert cut is not None
    length = min(limit, len(whole.input_ids))
    assert cut.input_ids == [BOS, *whole.input_ids[1:][-(length - 1) :]]
    assert cut.labels == [MASK] * (length - len(learned)) + learned
