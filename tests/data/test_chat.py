"""Chat templates: what is learned of real ones, told by hand and by transformers' own `{% generation %}` masks."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from character_tokenizers import CHATML
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from ftlab.data.encoder import Encoder, Encoding
from ftlab.data.examples import Example
from ftlab.data.records import Malformed, Message, Record, pair
from ftlab.errors import UserError

LLAMA_3 = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
    "{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
ALTERNATE = (
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
)
LLAMA_2 = (
    "{{ bos_token }}{% for message in messages %}" + ALTERNATE + "{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}" + ALTERNATE + "{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ message['content'] + eos_token}}{% else %}"
    "{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}" + ALTERNATE + "{% if (message['role'] == 'assistant') %}"
    "{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
ZEPHYR = (
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + "
    "eos_token }}\n{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}"
    "\n{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)
PHI_3 = (
    "{% for message in messages %}{{'<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
QWEN_2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN_3 = (  # the reasoning of turns before the last question is left out; the last has at least an empty one
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% if ns.last < 0 %}{{ raise_exception('No user query found in messages.') }}{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.index0 > ns.last %}<think>\n{{ m.reasoning_content or '' }}\n</think>\n\n"
    "{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GENERATION = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{{ '\n' }}{% else %}{{ m.content }}<|im_end|>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_PROMPT = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + "
    "'\n' }}{% endfor %}"
)
TOOLS = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for call in m.tool_calls or [] %}<tool_call>{{ call | tojson }}</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = [
    "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    "<start_of_turn>", "<end_of_turn>", "<|end|>", "<|user|>", "<|assistant|>", "<tool_call>", "</tool_call>",
]  # fmt: skip
WORDS = r"(?i:'[stmd]|'re|'ve|'ll)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CORPUS = ["How are you? I am fine, thanks.\n\n", "A user and the assistant\n  talk:\n\n\n\nyes  no\n"] * 20
CONVERSATION = (
    Message("user", "How are you?"),
    Message("assistant", "I am fine, thanks."),
    Message("user", "\nAnd\n\nthen?  "),
    Message("assistant", "yes\n\n\nno  "),
)


def byte_tokenizer(template: Any = None) -> PreTrainedTokenizerFast:
    """Byte-level BPE, as Llama 3's and Qwen's, with the special tokens of many families."""
    tokenizer = Tokenizer(models.BPE())
    words = pre_tokenizers.Split(Regex(WORDS), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    made.chat_template = template
    return made


def spell(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids)))


def learned(tokenizer: PreTrainedTokenizerFast, example: Example) -> list[str]:
    """What the learned tokens spell, decoded one by one, by span."""
    return [
        "".join(spell(tokenizer, [token]) for token in example.input_ids[start:end]) for start, end in example.spans
    ]


def record(*messages: Message, **fields: Any) -> Record:
    return Record(messages[:-1], messages[-1:], "a:1", **fields)


def encode(chat_template: Any, row: Record, **options: Any) -> tuple[PreTrainedTokenizerFast, tuple[Example, ...]]:
    tokenizer = byte_tokenizer(chat_template)
    (encoded,) = Encoder(tokenizer, Encoding(**options)).encode_all([row])
    assert encoded.dropped is None
    return tokenizer, encoded.examples


FAMILIES = {
    "chatml": (CHATML, "{}<|im_end|>", False),
    "llama 3": (LLAMA_3, "{}<|eot_id|>", True),
    "llama 2": (LLAMA_2, " {} </s>", True),
    "mistral": (MISTRAL, "{}</s>", False),
    "gemma": (GEMMA, "{}<end_of_turn>", True),
    "zephyr": (ZEPHYR, "{}</s>", False),
    "phi 3": (PHI_3, "{}<|end|>", False),
    "qwen 2": (QWEN_2, "{}<|im_end|>", False),
    "generation": (GENERATION, "{}<|im_end|>", False),
    "no prompt": (NO_PROMPT, "{}<|im_end|>", False),
}


@pytest.mark.parametrize("family", FAMILIES)
class TestFamilies:
    def test_every_assistants_turn_is_learned_to_its_stop(self, family: str) -> None:
        template, turn, trims = FAMILIES[family]
        tokenizer, (example,) = encode(template, record(*CONVERSATION), learn="assistant")
        answers = [message.content for message in CONVERSATION if message.role == "assistant"]
        assert learned(tokenizer, example) == [turn.format(text.strip() if trims else text) for text in answers]

    def test_the_ids_are_those_of_transformers_up_to_the_stop(self, family: str) -> None:
        tokenizer, (example,) = encode(FAMILIES[family][0], record(*CONVERSATION))
        turns = [{"role": message.role, "content": message.content} for message in CONVERSATION]
        whole: Any = tokenizer.apply_chat_template(turns, return_dict=False)
        assert example.input_ids == whole[: len(example.input_ids)]
        assert spell(tokenizer, whole[len(example.input_ids) :]).strip() in ("", "</s>")
        assert example.input_ids.count(tokenizer.bos_token_id) == FAMILIES[family][0].count("bos_token")

    def test_the_prompt_is_that_of_generation(self, family: str) -> None:
        tokenizer, (example,) = encode(FAMILIES[family][0], record(*CONVERSATION))
        turns = [{"role": message.role, "content": message.content} for message in CONVERSATION[:-1]]
        prompt: Any = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        if family == "no prompt":  # the assistant's header is given, though the template never gives it
            prompt += tokenizer("<|im_start|>assistant\n")["input_ids"]
        assert example.input_ids[: example.spans[0][0]] == prompt
        assert Encoder(tokenizer).prompts_ids([record(*CONVERSATION)]) == [prompt]


class TestMasks:
    def test_they_are_those_of_generation_marks(self) -> None:
        tokenizer, (example,) = encode(GENERATION, record(*CONVERSATION), learn="assistant")
        turns = [{"role": message.role, "content": message.content} for message in CONVERSATION]
        given: Any = tokenizer.apply_chat_template(turns, return_assistant_tokens_mask=True, return_dict=True)
        masks = [int(label != -100) for label in example.labels]
        assert masks == given["assistant_masks"][: len(masks)]
        assert not any(given["assistant_masks"][len(masks) :])

    def test_roles_are_learned_without_their_header(self) -> None:
        messages = (Message("system", "Be kind."), *CONVERSATION)
        tokenizer, (example,) = encode(CHATML, record(*messages), learn=["system", "user"])
        users = [message.content + "<|im_end|>" for message in messages if message.role != "assistant"]
        assert learned(tokenizer, example) == users
        tokenizer, (example,) = encode(MISTRAL, record(*CONVERSATION), learn=["user"])
        assert learned(tokenizer, example) == [CONVERSATION[0].content, CONVERSATION[2].content]

    def test_a_messages_own_word_comes_first(self) -> None:
        asked, answered, again, last = CONVERSATION
        silent = Message("assistant", answered.content, train=False)
        tokenizer, (example,) = encode(CHATML, record(asked, silent, again, last), learn="assistant")
        assert learned(tokenizer, example) == ["yes\n\n\nno  <|im_end|>"]
        loud = Message("user", "How?", train=True)
        tokenizer, (example,) = encode(CHATML, record(loud, Message("assistant", "yes", train=False)))
        assert learned(tokenizer, example) == ["How?<|im_end|>"]
        tokenizer, (example,) = encode(CHATML, record(asked, silent, again, last), learn="all")
        whole = spell(tokenizer, example.input_ids)
        assert learned(tokenizer, example) == whole.split(silent.content + "<|im_end|>")

    def test_nothing_to_learn_is_dropped(self) -> None:
        encoder = Encoder(byte_tokenizer(CHATML))
        row = record(CONVERSATION[0], Message("assistant", "yes", train=False))
        assert [encoded.dropped for encoded in encoder.encode_all([row])] == ["no_target"]

    def test_all_is_the_templates_text_too(self) -> None:
        _, (example,) = encode(LLAMA_3, record(*CONVERSATION), learn="all")
        assert example.spans == ((0, len(example.input_ids)),)

    def test_a_conversation_may_begin_with_the_assistant(self) -> None:
        messages = (Message("assistant", "yes"), *CONVERSATION)
        tokenizer, (example,) = encode(QWEN_2.replace("messages[0]['role'] != 'system'", "true"), record(*messages),
                                       learn="assistant")  # fmt: skip
        answers = [message.content + "<|im_end|>" for message in messages if message.role == "assistant"]
        assert learned(tokenizer, example) == answers


class TestMerging:
    def test_a_turn_whose_beginning_would_merge_keeps_the_prompt(self) -> None:
        """One tokenisation would make one token of the template's line feed and the answer's."""
        messages = (Message("user", "How?"), Message("assistant", "\n\nyes"), *CONVERSATION)
        for learn in ("last", "assistant"):
            tokenizer, (example,) = encode(CHATML, record(*messages[:2]), learn=learn)
            assert learned(tokenizer, example) == ["\n\nyes<|im_end|>"]
            assert [example.input_ids[: example.spans[0][0]]] == Encoder(tokenizer).prompts_ids([record(*messages[:2])])
        tokenizer, (example,) = encode(CHATML, record(*messages), learn="assistant")
        assert learned(tokenizer, example)[0] == "\n\nyes<|im_end|>"

    def test_so_does_one_that_writes_a_space_before_every_text(self) -> None:
        """As Llama 2's: by itself the turn would begin with a space that the text has not."""
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
        tokenizer.decoder = decoders.Metaspace(prepend_scheme="always", split=False)
        special = ["<unk>", *SPECIAL]
        trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, show_progress=False)
        tokenizer.train_from_iterator([*CORPUS, CHATML], trainer)
        made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")
        made.chat_template = CHATML
        row = pair("How?", ("\nyes  no",), "a:1")
        encoder = Encoder(made)
        ((example,),) = (encoded.examples for encoded in encoder.encode_all([row]))
        prompt = example.input_ids[: example.spans[0][0]]
        assert encoder.prompts_ids([row]) == [prompt]
        rest = example.input_ids[len(prompt) :]
        assert "".join(map(str, made.convert_ids_to_tokens(rest))).replace("\u2581", " ") == "\nyes  no<|im_end|>"

    def test_a_slow_tokenizer_is_as_exact(self) -> None:
        fast = byte_tokenizer(CHATML)
        (of_fast,) = Encoder(fast, Encoding(learn="assistant")).encode_all([record(*CONVERSATION)])
        slow = byte_tokenizer(CHATML)
        slow.__class__ = type("Slow", (type(slow),), {"is_fast": False})
        (of_slow,) = Encoder(slow, Encoding(learn="assistant")).encode_all([record(*CONVERSATION)])
        assert of_slow == of_fast


class TestRewrittenTurns:
    """A template that renders a turn otherwise once the conversation has gone on."""

    def test_each_turn_is_an_example_as_generation_sees_it(self) -> None:
        tokenizer, examples = encode(QWEN_3, record(*CONVERSATION), learn="assistant")
        empty = "<think>\n\n</think>\n\n"
        assert [learned(tokenizer, example) for example in examples] == [
            [f"{empty}I am fine, thanks.<|im_end|>"],
            [f"{empty}yes\n\n\nno  <|im_end|>"],
        ]
        records = [record(*CONVERSATION[:2]), record(*CONVERSATION)]
        prompts = Encoder(tokenizer).prompts_ids(records)
        assert [example.input_ids[: example.spans[0][0]] for example in examples] == prompts

    def test_the_last_alone_needs_no_others(self) -> None:
        answer = Message("assistant", "no", fields={"reasoning_content": "hm"})
        tokenizer, (example,) = encode(QWEN_3, record(*CONVERSATION[:3], answer))
        assert learned(tokenizer, example) == ["<think>\nhm\n</think>\n\nno<|im_end|>"]

    def test_where_no_example_would_be_exact_it_is_refused(self) -> None:
        row = record(*CONVERSATION, rejected=Message("assistant", "I"))
        with pytest.raises(Malformed, match=r"a:1: the chat template .* renders earlier turns otherwise.*data\.learn"):
            encode(QWEN_3, row, learn="assistant")
        prompt = "<|im_start|>assistant\n<think>"
        with pytest.raises(UserError, match="does not begin with its own prompt"):
            Encoder(byte_tokenizer(CHATML.replace("<|im_start|>assistant\n", prompt)))


class TestTools:
    TOOL: ClassVar = {"name": "weather", "parameters": {}}
    CALL = Message("assistant", "", fields={"tool_calls": [{"name": "weather", "arguments": {"city": "Ulm"}}]})
    TURNS = (Message("user", "How is it?"), CALL, Message("tool", "fine"), Message("assistant", "It is fine."))

    def test_calls_are_learned(self) -> None:
        tokenizer, (example,) = encode(TOOLS, record(*self.TURNS, tools=(self.TOOL,)), learn="assistant")
        call = json.dumps(self.CALL.fields["tool_calls"][0])
        assert learned(tokenizer, example) == [f"<tool_call>{call}</tool_call><|im_end|>", "It is fine.<|im_end|>"]
        assert "parameters" in spell(tokenizer, example.input_ids)
        tokenizer, (example,) = encode(TOOLS, record(*self.TURNS[:2]))
        assert learned(tokenizer, example) == [f"<tool_call>{call}</tool_call><|im_end|>"]

    def test_a_template_that_leaves_them_out_is_refused(self) -> None:
        with pytest.raises(UserError, match=r"a:1 has tools, but the chat template .* leaves them out"):
            encode(CHATML, record(*CONVERSATION, tools=(self.TOOL,)))
        with pytest.raises(UserError, match=r"a:1 has tool_calls, but the chat template"):
            encode(CHATML, record(*self.TURNS))

    def test_a_tokenizers_own_template_for_tools_is_taken(self) -> None:
        tokenizer, (example,) = encode({"default": CHATML, "tool_use": TOOLS}, record(*self.TURNS, tools=(self.TOOL,)))
        assert "parameters" in spell(tokenizer, example.input_ids)


class TestChoice:
    def test_one_of_several_by_name(self) -> None:
        several = {"default": CHATML, "rag": ZEPHYR}
        for name, stop in (("auto", "<|im_end|>"), ("chat", "<|im_end|>"), ("rag", "</s>")):
            tokenizer = byte_tokenizer(several)
            assert Encoder(tokenizer, Encoding(name)).stop_ids[0] == tokenizer.convert_tokens_to_ids(stop)
        with pytest.raises(UserError, match=r"data\.template: rug is neither .* default, rag, auto, chat, plain"):
            Encoder(tokenizer, Encoding("rug"))
        with pytest.raises(UserError, match="has several chat templates; name one of one, two"):
            Encoder(byte_tokenizer({"one": CHATML, "two": ZEPHYR}))

    def test_a_jinja_file(self, tmp_path: Path) -> None:
        path = tmp_path / "ours.jinja"
        path.write_text(CHATML + "\n")
        tokenizer, (example,) = encode(None, record(*CONVERSATION), template=str(path))
        assert learned(tokenizer, example) == ["yes\n\n\nno  <|im_end|>"]


class TestFailures:
    @pytest.mark.parametrize(
        ("template", "messages", "sentence"),
        [
            (
                MISTRAL,
                (CONVERSATION[0], *CONVERSATION),
                r"a:1: the chat template .* \(Conversation roles must alternate",
            ),
            (MISTRAL, (*CONVERSATION[:2], Message("odd", "x")), r"a:1: .*roles must alternate"),
            (GEMMA, (Message("system", "s"), *CONVERSATION[:2]), r"a:1: .*System role not supported"),
            (QWEN_3, (Message("system", "s"), Message("assistant", "yes")), "a:1: .*No user query found"),
            (CHATML, (Message("user", "x"), Message("assistant", " ")), "a:1: the response is empty"),
            (
                CHATML.replace(
                    "{{ message.content }}", "{% if message.content != 'no' %}{{ message.content }}{% endif %}"
                ),
                (Message("user", "x"), Message("assistant", "no")),
                "a:1: .* renders nothing of this answer",
            ),
        ],
    )
    def test_the_record_is_named(self, template: str, messages: tuple[Message, ...], sentence: str) -> None:
        with pytest.raises(Malformed, match=sentence):
            encode(template, record(*messages))


TEXT = st.text(st.one_of(st.sampled_from("ab \n<|"), st.characters(exclude_categories=["Cs"])), max_size=12)
TOKENIZERS = {family: byte_tokenizer(template) for family, (template, _, trims) in FAMILIES.items() if not trims}


@settings(max_examples=60)
@given(st.sampled_from(list(TOKENIZERS)), st.lists(st.tuples(TEXT, TEXT.filter(str.strip)), min_size=1, max_size=3))
def test_no_token_is_lost_and_none_of_a_prompt_learned(family: str, turns: list[tuple[str, str]]) -> None:
    tokenizer = TOKENIZERS[family]
    messages = [Message(role, text) for turn in turns for role, text in zip(("user", "assistant"), turn, strict=True)]
    encoder = Encoder(tokenizer, Encoding(learn="assistant"))
    (encoded,) = encoder.encode_all([record(*messages)])
    (example,) = encoded.examples
    chat = [{"role": message.role, "content": message.content} for message in messages]
    whole = str(tokenizer.apply_chat_template(chat, tokenize=False))
    text = spell(tokenizer, example.input_ids)
    assert whole.startswith(text)
    assert whole[len(text) :] in ("", "\n", "\n</s>")
    spelt = [spell(tokenizer, example.input_ids[start:end]) for start, end in example.spans]
    stop = str(tokenizer.convert_ids_to_tokens(encoder.stop_ids[0]))
    assert spelt == [answer + stop for _, answer in turns]
    assert sorted(example.spans) == list(example.spans)
    if len(turns) == 1:
        (prompt,) = encoder.prompts_ids([pair(turns[0][0], (), "a:1")])
        assert example.input_ids[: example.spans[0][0]] == prompt


KNOWS_TWO = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ '<|im_start|>' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}{{ '<|im_start|>' + message['content'] + '<|im_end|>' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>' }}{% endif %}"
)


@pytest.mark.parametrize(
    ("roles", "lost"),
    [
        (["human"], r"messages\[0\], of the role 'human'"),
        (["system", "user"], r"messages\[0\], of the role 'system'"),
        (["user", "assistant", "tool"], r"messages\[2\], of the role 'tool'"),
    ],
)
def test_a_turn_that_the_template_goes_over_is_refused(
    chat_tokenizer: PreTrainedTokenizerFast, roles: list[str], lost: str
) -> None:
    """Or an answer would be learned to a question that the network never sees."""
    chat_tokenizer.chat_template = KNOWS_TWO
    encoder = Encoder(chat_tokenizer)
    context = tuple(Message(role, f"said {place}") for place, role in enumerate(roles))
    record = Record(context, (Message("assistant", "yes"),), "a.jsonl:3")
    with pytest.raises(Malformed, match=rf"a\.jsonl:3: the chat template .* leaves out {lost}"):
        encoder.encode_all([record])
    with pytest.raises(Malformed, match=lost):
        encoder.prompts_ids([record])
    encoder.encode_all([pair("a", ("b",), "a.jsonl:4")])
