"""Encoding: every id and label told by hand from tokenizers with one id a character."""

import os
import pickle
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from character_tokenizers import BOS, EOS, IM_END, IM_START, PAD, TWO_LINES, UNK, ids
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ftlab.data.encoder import Encoder, Encoding
from ftlab.data.examples import Encoded, Example
from ftlab.data.records import Malformed, Message, Record, pair
from ftlab.errors import UserError
from ftlab.networks import Network

MASK = -100
TEXT = st.text(alphabet="ab \n", max_size=12)
ANSWER = TEXT.filter(str.strip)


def _masked(prompt: list[int], response: list[int]) -> Example:
    return Example(prompt + response, ((len(prompt), len(prompt + response)),))


def _pairs(*pairs: tuple[str, str]) -> list[Record]:
    return [pair(prompt, (response,), f"a.jsonl:{line}") for line, (prompt, response) in enumerate(pairs, start=1)]


def _encode(encoder: Encoder, prompt: str, response: str) -> Example:
    ((example,),) = (encoded.examples for encoded in encoder.encode_all([pair(prompt, (response,), "a:1")]))
    return example


def _prompt(encoder: Encoder, prompt: str) -> list[int]:
    return encoder.prompts_ids([pair(prompt, (), "a:1")])[0]


def _text(text: str, train: bool | None = None) -> Record:
    return Record((), (Message("text", text, train),), "a.txt:1")


class TestPlain:
    def test_bos_prompt_response_stop(self, plain_tokenizer: PreTrainedTokenizerFast) -> None:
        encoder = Encoder(plain_tokenizer)
        assert not encoder.chat
        assert _encode(encoder, "hi\n", "yo") == _masked([BOS, *ids("hi\n")], [*ids("yo"), EOS])
        assert _prompt(encoder, "hi\n") == [BOS, *ids("hi\n")]
        assert encoder.stop_ids == (EOS,)
        assert encoder.pad_id == PAD

    def test_the_boundary_is_never_merged(self, plain_tokenizer: PreTrainedTokenizerFast) -> None:
        encoder = Encoder(plain_tokenizer)
        assert _encode(encoder, "a\n", "\nb") == _masked([BOS, *ids("a\n")], [*ids("\nb"), EOS])
        assert _encode(encoder, "a\n\n", "b") == _masked([BOS, *ids("a"), TWO_LINES], [*ids("b"), EOS])

    def test_no_end_of_text_after_the_prompt(self, closing_tokenizer: PreTrainedTokenizerFast) -> None:
        assert closing_tokenizer("hi")["input_ids"] == [BOS, *ids("hi"), EOS]
        encoder = Encoder(closing_tokenizer)
        assert _encode(encoder, "hi", "yo") == _masked([BOS, *ids("hi")], [*ids("yo"), EOS])
        assert encoder.pad_id == UNK

    def test_no_bos_where_the_tokenizer_sets_none(self, bare_tokenizer: PreTrainedTokenizerFast) -> None:
        encoder = Encoder(bare_tokenizer)
        assert _encode(encoder, "hi", "yo") == _masked(ids("hi"), [*ids("yo"), EOS])
        assert encoder.pad_id == EOS

    def test_special_tokens_spelt_out_are_not_doubled(self, plain_tokenizer: PreTrainedTokenizerFast) -> None:
        encoder = Encoder(plain_tokenizer)
        assert _encode(encoder, "<s>hi", "yo</s>") == _masked([BOS, *ids("hi")], [*ids("yo"), EOS])

    def test_a_tokenizer_without_end_of_text_is_refused(self, endless_tokenizer: PreTrainedTokenizerFast) -> None:
        with pytest.raises(UserError, match=r"has no end-of-text token, so no stop could be learned; set eos_token"):
            Encoder(endless_tokenizer)

    def test_chat_without_a_template_is_refused(self, plain_tokenizer: PreTrainedTokenizerFast) -> None:
        with pytest.raises(UserError, match=r"data\.template: chat, but .* has no chat template"):
            Encoder(plain_tokenizer, Encoding(template="chat"))

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
        assert _prompt(encoder, "hi") == prompt
        assert _encode(encoder, "hi", "yo") == _masked(prompt, [*ids("yo"), IM_END])
        assert encoder.stop_ids == (IM_END, EOS)
        assert not Encoder(chat_tokenizer, Encoding(template="plain")).chat

    def test_ids_are_those_of_transformers(self, chat_tokenizer: PreTrainedTokenizerFast) -> None:
        turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
        whole = chat_tokenizer.apply_chat_template(turns, return_dict=False)
        example = _encode(Encoder(chat_tokenizer), "hi", "yo")
        assert example.input_ids == whole[:-1]  # the template's line feed after the stop token is dropped

    def test_a_response_that_merges_with_the_prompt_keeps_the_prompt(
        self, chat_tokenizer: PreTrainedTokenizerFast
    ) -> None:
        encoder = Encoder(chat_tokenizer)
        assert _encode(encoder, "hi", "\nyo") == _masked(_prompt(encoder, "hi"), [*ids("\nyo"), IM_END])

    def test_the_turn_ends_at_the_first_special_token(self, chat_tokenizer: PreTrainedTokenizerFast) -> None:
        chat_tokenizer.chat_template = chat_tokenizer.chat_template.replace(
            "{% if add", "{% if not add_generation_prompt %}</s>{% endif %}{% if add"
        )
        encoder = Encoder(chat_tokenizer)
        assert _encode(encoder, "hi", "yo") == _masked(_prompt(encoder, "hi"), [*ids("yo"), IM_END])

    def test_bos_is_the_templates(self, plain_tokenizer: PreTrainedTokenizerFast) -> None:
        """A template that writes <s> for a tokenizer that sets <s>: it stands there once."""
        template = "<s>{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}</s>{% else %}|{% endif %}"
        plain_tokenizer.chat_template = template + "{% endfor %}"
        try:
            encoder = Encoder(plain_tokenizer)
            assert _encode(encoder, "hi", "yo") == _masked([BOS, *ids("hi|")], [*ids("yo"), EOS])
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
            _encode(Encoder(bare_tokenizer), "", "</s>")


class TestOverflow:
    # <s> + 5 + 2 + </s> = 9 tokens, and 12 and 13
    PAIRS = _pairs(("abcde", "xy"), ("abcdefgh", "xy"), ("abc", "uvwxyzuv"))

    def test_refuse_names_the_first_and_counts(self, plain_tokenizer: PreTrainedTokenizerFast) -> None:
        encoder = Encoder(plain_tokenizer, Encoding(max_length=11))
        too_long = r"a\.jsonl:2 takes 12 tokens .* allows 11, and 2 of the 3 rows read with it are too long"
        with pytest.raises(UserError, match=too_long):
            encoder.encode_all(self.PAIRS)
        assert all(e.examples for e in Encoder(plain_tokenizer, Encoding(max_length=13)).encode_all(self.PAIRS))

    def test_drop_leaves_out_and_says_so(self, plain_tokenizer: PreTrainedTokenizerFast) -> None:
        encoded = Encoder(plain_tokenizer, Encoding(max_length=11, overflow="drop")).encode_all(self.PAIRS)
        assert encoded[0] == Encoded((_masked([BOS, *ids("abcde")], [*ids("xy"), EOS]),))
        assert encoded[1:] == [Encoded((), "too_long")] * 2

    def test_truncate_cuts_the_prompts_front_after_bos(self, plain_tokenizer: PreTrainedTokenizerFast) -> None:
        encoded = Encoder(plain_tokenizer, Encoding(max_length=11, overflow="truncate")).encode_all(self.PAIRS)
        assert encoded == [
            Encoded((_masked([BOS, *ids("abcde")], [*ids("xy"), EOS]),)),
            Encoded((_masked([BOS, *ids("bcdefgh")], [*ids("xy"), EOS]),), truncated=1),
            Encoded((_masked([BOS, *ids("c")], [*ids("uvwxyzuv"), EOS]),), truncated=1),
        ]

    def test_truncate_never_cuts_the_response(self, plain_tokenizer: PreTrainedTokenizerFast) -> None:
        encoder = Encoder(plain_tokenizer, Encoding(max_length=10, overflow="truncate"))
        with pytest.raises(Malformed, match=r"a\.jsonl:3: the response alone takes 9 tokens .* allows 10"):
            encoder.encode_all(self.PAIRS)

    def test_from_the_right_the_stop_goes(self, plain_tokenizer: PreTrainedTokenizerFast) -> None:
        options = Encoding(max_length=6, overflow="truncate", truncate_from="right")
        encoder = Encoder(plain_tokenizer, options)
        assert _encode(encoder, "abc", "uvwxyzuv") == _masked([BOS, *ids("abc")], ids("uv"))
        with pytest.raises(Malformed, match=r"the prompt alone takes 6 tokens .* allows 6"):
            _encode(encoder, "abcde", "xy")

    def test_only_running_text_is_split(self, plain_tokenizer: PreTrainedTokenizerFast) -> None:
        encoder = Encoder(plain_tokenizer, Encoding(max_length=11, overflow="split"))
        with pytest.raises(UserError, match=r"2 of the 3 rows read with it are too long.* to truncate or drop"):
            encoder.encode_all(self.PAIRS)

    def test_prompts_to_generate_from_are_cut_likewise(self, plain_tokenizer: PreTrainedTokenizerFast) -> None:
        encoder = Encoder(plain_tokenizer, Encoding(max_length=8, overflow="truncate"))
        records = [pair("abcdef", (), "a:1"), pair("ab", (), "a:2")]
        assert encoder.prompts_ids(records, room=3) == [[BOS, *ids("cdef")], [BOS, *ids("ab")]]
        assert _prompt(Encoder(plain_tokenizer, Encoding(max_length=4)), "abcdef") == [BOS, *ids("abcdef")]
        with pytest.raises(UserError, match="to generate 7 tokens leaves no room for a prompt"):
            encoder.prompts_ids(records, room=7)

    def test_without_a_limit_nothing_is_too_long(self, plain_tokenizer: PreTrainedTokenizerFast) -> None:
        encoder = Encoder(plain_tokenizer, Encoding(overflow="drop"))
        assert len(_encode(encoder, "a" * 1000, "b" * 1000).input_ids) == 2002


def _turn(role: str, content: str) -> list[int]:
    return [IM_START, *ids(f"{role}\n{content}"), IM_END, *ids("\n")]


class TestChatOverflow:
    """A turn of ChatML takes 4 tokens beside role and content."""

    CONTEXT = (
        Message("system", "s"),
        Message("user", "abcd"),
        Message("assistant", "e"),
        Message("user", "fghij"),
    )
    OPENING = (IM_START, *ids("assistant\n"))
    ANSWER = (*ids("yo"), IM_END)

    def _cut(self, tokenizer: PreTrainedTokenizerFast, limit: int, record: Record | None = None) -> Example:
        record = record or Record(self.CONTEXT, (Message("assistant", "yo"),), "a:1")
        encoder = Encoder(tokenizer, Encoding(max_length=limit, overflow="truncate"))
        (encoded,) = encoder.encode_all([record])
        (example,) = encoded.examples
        assert encoded.truncated == 1
        room = example.spans[-1][1] - example.spans[-1][0]
        assert encoder.prompts_ids([record], room=room) == [example.input_ids[: len(example.input_ids) - room]]
        return example

    def test_old_turns_go_first_and_the_system_stays(self, chat_tokenizer: PreTrainedTokenizerFast) -> None:
        prompt = [*_turn("system", "s"), *_turn("user", "fghij"), *self.OPENING]
        for limit in (len(prompt) + 3, len(prompt) + 3 + 5):
            assert self._cut(chat_tokenizer, limit) == _masked(prompt, list(self.ANSWER))

    def test_then_the_front_of_what_the_user_says(self, chat_tokenizer: PreTrainedTokenizerFast) -> None:
        prompt = [*_turn("system", "s"), *_turn("user", "ij"), *self.OPENING]
        assert self._cut(chat_tokenizer, len(prompt) + 3) == _masked(prompt, list(self.ANSWER))

    def test_where_that_makes_no_room_it_is_refused(self, chat_tokenizer: PreTrainedTokenizerFast) -> None:
        with pytest.raises(Malformed, match=r"a:1: the response alone takes 3 tokens .* allows 30"):
            self._cut(chat_tokenizer, 30)
        encoder = Encoder(chat_tokenizer, Encoding(max_length=20, overflow="truncate"))
        with pytest.raises(Malformed, match=r"a:1: no cut of what the user says makes the prompt fit into 15 tokens"):
            encoder.prompts_ids([pair("abcdefghij", (), "a:1")], room=5)

    def test_both_answers_of_a_preference_keep_one_prompt(self, chat_tokenizer: PreTrainedTokenizerFast) -> None:
        context = (Message("user", "abcdef"),)
        record = Record(context, (Message("assistant", "yo"),), "a:1", rejected=Message("assistant", "oh no"))
        prompt = [*_turn("user", "ef"), *self.OPENING]
        encoder = Encoder(chat_tokenizer, Encoding(max_length=len(prompt) + 6, overflow="truncate"))
        assert encoder.encode_all([record])[0].examples == (
            replace(_masked(prompt, list(self.ANSWER)), rejected=_masked(prompt, [*ids("oh no"), IM_END])),
        )


class TestPreference:
    RECORD = Record((Message("user", "hi"),), (Message("assistant", "yo"),), "a:1", rejected=Message("assistant", "no"))

    def test_the_worse_answer_has_the_same_prompt(self, plain_tokenizer: PreTrainedTokenizerFast) -> None:
        ((example,),) = (e.examples for e in Encoder(plain_tokenizer).encode_all([self.RECORD]))
        prompt = [BOS, *ids("hi")]
        assert example.rejected == _masked(prompt, [*ids("no"), EOS])
        assert replace(example, rejected=None) == _masked(prompt, [*ids("yo"), EOS])

    def test_every_answer_is_an_example(self, plain_tokenizer: PreTrainedTokenizerFast) -> None:
        (encoded,) = Encoder(plain_tokenizer).encode_all([pair("hi", ("yo", "oh"), "a:1")])
        prompt = [BOS, *ids("hi")]
        assert encoded.examples == tuple(_masked(prompt, [*ids(text), EOS]) for text in ("yo", "oh"))

    def test_one_that_is_too_long_by_its_worse_answer_is_dropped(
        self, plain_tokenizer: PreTrainedTokenizerFast
    ) -> None:
        long = replace(self.RECORD, rejected=Message("assistant", "no no"))
        encoder = Encoder(plain_tokenizer, Encoding(max_length=6, overflow="drop"))
        assert [e.dropped for e in encoder.encode_all([self.RECORD, long])] == [None, "too_long"]


class TestRunningText:
    def test_all_is_learned_but_the_beginning(self, plain_tokenizer: PreTrainedTokenizerFast) -> None:
        (encoded,) = Encoder(plain_tokenizer).encode_all([_text("abc")])
        assert encoded.examples == (Example([BOS, *ids("abc"), EOS], ((1, 5),)),)
        assert encoded.examples[0].labels == [MASK, *ids("abc"), EOS]
        assert encoded.examples[0].targets == 4

    def test_beginning_and_end_stand_once(self, closing_tokenizer: PreTrainedTokenizerFast) -> None:
        (encoded,) = Encoder(closing_tokenizer).encode_all([_text("<s>abc</s>")])
        assert encoded.examples == (Example([BOS, *ids("abc"), EOS], ((1, 5),)),)

    def test_pieces_hold_every_token_once(self, plain_tokenizer: PreTrainedTokenizerFast) -> None:
        """<s>abcdefg</s> by 4: the last piece is not left a lone token, from which nothing could be learned."""
        encoder = Encoder(plain_tokenizer, Encoding(max_length=4, overflow="split"))
        (encoded,) = encoder.encode_all([_text("abcdefg")])
        assert [e.input_ids for e in encoded.examples] == [[BOS, *ids("abc")], ids("def"), [*ids("g"), EOS]]
        assert [e.spans for e in encoded.examples] == [((1, 4),), ((0, 3),), ((0, 2),)]
        assert [e.targets for e in encoded.examples] == [3, 2, 1]

    def test_it_is_cut_at_either_end(self, plain_tokenizer: PreTrainedTokenizerFast) -> None:
        left = Encoder(plain_tokenizer, Encoding(max_length=4, overflow="truncate"))
        right = Encoder(plain_tokenizer, Encoding(max_length=4, overflow="truncate", truncate_from="right"))
        assert left.encode_all([_text("abcd")])[0].examples == (Example([BOS, *ids("cd"), EOS], ((1, 4),)),)
        assert right.encode_all([_text("abcd")])[0].examples == (Example([BOS, *ids("abc")], ((1, 4),)),)

    def test_text_without_use_is_dropped_or_named(self, plain_tokenizer: PreTrainedTokenizerFast) -> None:
        encoder = Encoder(plain_tokenizer)
        assert encoder.encode_all([_text("abc", train=False)]) == [Encoded((), "no_target")]
        with pytest.raises(Malformed, match=r"a\.txt:1: the text is empty"):
            encoder.encode_all([_text(" \n")])
        with pytest.raises(UserError, match=r"a\.txt:1 is running text, which asks nothing"):
            encoder.prompts_ids([_text("abc")])


class TestTokens:
    def _row(self, *tokens: int, labels: tuple[int, ...] | None = None) -> Record:
        return Record((), (), "a:1", tokens=tokens, labels=labels)

    def test_they_come_as_they_are(self, plain_tokenizer: PreTrainedTokenizerFast) -> None:
        rows = [self._row(9, 8, 7), self._row(9, 8, 7, 6, labels=(MASK, 8, MASK, 6))]
        encoded = Encoder(plain_tokenizer).encode_all(rows)
        assert [e.examples for e in encoded] == [
            (Example([9, 8, 7], ((0, 3),)),),
            (Example([9, 8, 7, 6], ((1, 2), (3, 4))),),
        ]
        assert encoded[1].examples[0].labels == [MASK, 8, MASK, 6]

    def test_a_row_that_learns_nothing_is_dropped(self, plain_tokenizer: PreTrainedTokenizerFast) -> None:
        rows = [self._row(9, 8, labels=(MASK, MASK)), self._row()]
        assert Encoder(plain_tokenizer).encode_all(rows) == [Encoded((), "no_target")] * 2

    def test_pieces_without_a_target_are_left_out(self, plain_tokenizer: PreTrainedTokenizerFast) -> None:
        encoder = Encoder(plain_tokenizer, Encoding(max_length=2, overflow="split"))
        (encoded,) = encoder.encode_all([self._row(9, 8, 7, 6, labels=(MASK, MASK, MASK, 6))])
        assert encoded.examples == (Example([7, 6], ((1, 2),)),)

    @pytest.mark.parametrize(
        ("row", "sentence"),
        [
            ({"tokens": (9, 9999)}, "input_ids holds 9999, which the tokenizer .* does not know"),
            ({"tokens": (9, -1)}, "input_ids holds -1"),
            ({"tokens": (9, 8), "labels": (9,)}, "labels must be as many as input_ids"),
            ({"tokens": (9, 8), "labels": (MASK, 9)}, ".*each the token itself or -100"),
        ],
    )
    def test_strange_ids_are_named(self, plain_tokenizer: PreTrainedTokenizerFast, row: dict, sentence: str) -> None:
        with pytest.raises(Malformed, match=rf"a:1: {sentence}"):
            Encoder(plain_tokenizer).encode_all([Record((), (), "a:1", **row)])


class TestPlainConversations:
    @pytest.mark.parametrize(
        "context", [(Message("system", "s"), Message("user", "u")), (Message("system", "s"),), TestChatOverflow.CONTEXT]
    )
    def test_they_need_a_template(self, plain_tokenizer: PreTrainedTokenizerFast, context: tuple[Message, ...]) -> None:
        record = Record(context, (Message("assistant", "yo"),), "a:1")
        with pytest.raises(UserError, match=r"a:1 is a conversation .* set data\.template to the path of one"):
            Encoder(plain_tokenizer).encode_all([record])
        with pytest.raises(UserError, match="a:1 is a conversation"):
            Encoder(plain_tokenizer).prompts_ids([record])

    def test_learning_more_than_the_answer(self, plain_tokenizer: PreTrainedTokenizerFast) -> None:
        whole = [BOS, *ids("hiyo"), EOS]
        spans = {"assistant": ((3, 6),), "all": ((1, 6),)}
        for learn, expected in spans.items():
            assert _encode(Encoder(plain_tokenizer, Encoding(learn=learn)), "hi", "yo") == Example(whole, expected)  # type: ignore[arg-type]
        assert _encode(Encoder(plain_tokenizer, Encoding(learn=["user"])), "hi", "yo") == Example(whole, ((1, 3),))

    def test_without_an_answer_there_is_nothing_to_learn(self, plain_tokenizer: PreTrainedTokenizerFast) -> None:
        with pytest.raises(Malformed, match="a:1 has no answer"):
            Encoder(plain_tokenizer).encode_all([pair("hi", (), "a:1")])


class TestOptions:
    def test_nothing_to_learn_is_refused(self, plain_tokenizer: PreTrainedTokenizerFast) -> None:
        with pytest.raises(UserError, match=r"data\.learn names no role"):
            Encoder(plain_tokenizer, Encoding(learn=[]))
        with pytest.raises(UserError, match=r"data\.max_length: 1 leaves no token"):
            Encoder(plain_tokenizer, Encoding(max_length=1))


class TestProcesses:
    def test_it_is_pickled_with_its_results(self, chat_tokenizer: PreTrainedTokenizerFast) -> None:
        encoder = Encoder(chat_tokenizer)
        again = pickle.loads(pickle.dumps(encoder))
        records = _pairs(("hi", "yo"), ("\n", "\n\na"))
        assert again.encode_all(records) == encoder.encode_all(records)
        assert again.fingerprint() == encoder.fingerprint()

    @pytest.mark.slow  # imports everything anew
    def test_the_fingerprint_is_the_same_elsewhere(self, network: Network) -> None:
        """In a process with other hashes of strings, and whatever the tokenizer was last used for."""
        code = (
            "import sys; from transformers import AutoTokenizer; from ftlab.data.encoder import Encoder;"
            "tokenizer = AutoTokenizer.from_pretrained(sys.argv[1]); encoder = Encoder(tokenizer);"
            "tokenizer(['a', 'ab'], padding=True, truncation=True, max_length=1); print(encoder.fingerprint())"
        )
        command = [sys.executable, "-c", code, network.path]
        environment = {**os.environ, "PYTHONHASHSEED": "1"}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        tokenizer = AutoTokenizer.from_pretrained(network.path)
        assert done.stdout.strip() == Encoder(tokenizer).fingerprint()

    def test_it_changes_with_what_changes_the_ids(self, chat_tokenizer: PreTrainedTokenizerFast) -> None:
        prints = [Encoder(chat_tokenizer).fingerprint(), Encoder(chat_tokenizer, Encoding(max_length=9)).fingerprint()]
        chat_tokenizer.chat_template = "{# of ours #}" + chat_tokenizer.chat_template
        prints.append(Encoder(chat_tokenizer).fingerprint())
        chat_tokenizer.add_tokens(["abc"])
        prints.append(Encoder(chat_tokenizer).fingerprint())
        assert len(set(prints)) == 4


FIXTURES_STAY = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)


@FIXTURES_STAY
@given(st.lists(st.tuples(TEXT, ANSWER), max_size=4), st.sampled_from(["chat", "plain"]))
def test_masks_cover_response_and_stop_and_nothing_else(
    chat_tokenizer: PreTrainedTokenizerFast, pairs: list[tuple[str, str]], template: str
) -> None:
    encoder = Encoder(chat_tokenizer, Encoding(template=template))
    records = _pairs(*pairs)
    starts = encoder.prompts_ids(records)
    for start, (_, response), encoded in zip(starts, pairs, encoder.encode_all(records), strict=True):
        (example,) = encoded.examples
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
    whole = _encode(Encoder(plain_tokenizer), prompt, response)
    learned = [label for label in whole.labels if label != MASK]
    encoder = Encoder(plain_tokenizer, Encoding(max_length=limit, overflow="truncate"))
    if len(whole.input_ids) > limit <= len(learned) + 1:
        with pytest.raises(Malformed):
            _encode(encoder, prompt, response)
        return
    cut = _encode(encoder, prompt, response)
    length = min(limit, len(whole.input_ids))
    assert cut.input_ids == [BOS, *whole.input_ids[1:][-(length - 1) :]]
    assert cut.labels == [MASK] * (length - len(learned)) + learned


@FIXTURES_STAY
@given(st.integers(2, 9), st.text("ab\n", min_size=1, max_size=40).filter(str.strip))
def test_split_text_is_whole_again(plain_tokenizer: PreTrainedTokenizerFast, limit: int, text: str) -> None:
    ((whole,),) = (e.examples for e in Encoder(plain_tokenizer).encode_all([_text(text)]))
    (encoded,) = Encoder(plain_tokenizer, Encoding(max_length=limit, overflow="split")).encode_all([_text(text)])
    joined = [token for example in encoded.examples for token in example.input_ids]
    lone = limit == 2 and len(whole.input_ids) % 2  # by twos the last may be left alone, and nothing learns it
    assert joined == whole.input_ids[: len(whole.input_ids) - lone]
    assert all(len(example.input_ids) <= limit and example.targets for example in encoded.examples)
