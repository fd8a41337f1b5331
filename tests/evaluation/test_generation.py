"""Batched, cached decoding against a loop by hand, and what it must leave untouched."""

import copy
import warnings

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from ftlab.errors import UserError
from ftlab.evaluation.generation import Decoding, generate, generate_all, left_pad

PAD = 0
CONTEXT = 48
PROMPTS = [[5, 9, 3], [7], [11, 4, 4, 8, 30, 2], [6, 6, 21, 17, 3, 12, 9, 10, 13]]


@pytest.fixture(autouse=True)
def one_thread():
    """Networks this small only wait for a second thread, for seconds where the machine is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def network():
    """A tiny Llama in float64, wide enough in its logits that rounding decides nothing."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.6,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config).double()


def lora(network):
    adapted = get_peft_model(
        network, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear", lora_dropout=0.5)
    )
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return adapted.double()


@torch.no_grad()
def greedy_by_hand(network, prompt, new_tokens, stop_ids=()):
    """The likeliest token, one at a time, from the whole text so far: no batch, no padding, no cache."""
    modes = [module.training for module in network.modules()]
    network.eval()
    tokens = list(prompt)
    for _ in range(new_tokens):
        token = network(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax().item()
        if token in stop_ids:
            break
        tokens.append(token)
    for module, mode in zip(network.modules(), modes, strict=True):
        module.training = mode
    return tokens[len(prompt) :]


def answers(network, decoding=None, stop_ids=(), prompts=PROMPTS):
    return generate(network, *left_pad(prompts, PAD), decoding or Decoding(max_new_tokens=12), stop_ids, PAD)


def test_left_pad():
    input_ids, attention_mask = left_pad([[5, 9], [7, 8, 6]], pad_id=3)
    assert input_ids.tolist() == [[3, 5, 9], [7, 8, 6]]
    assert attention_mask.tolist() == [[0, 1, 1], [1, 1, 1]]


@pytest.mark.parametrize("adapt", [lambda network: network, lora], ids=["base", "peft"])
def test_a_padded_batch_answers_as_each_prompt_alone(network, adapt):
    network = adapt(network)
    expected = [greedy_by_hand(network, prompt, 12) for prompt in PROMPTS]
    assert answers(network) == expected
    assert len({tuple(answer) for answer in expected}) == len(PROMPTS)  # or the comparison would say little


def test_an_adapter_changes_the_answers(network):
    without = answers(network)
    assert answers(lora(network)) != without


def test_learned_positions_count_from_the_first_token_of_the_prompt():
    torch.manual_seed(0)
    network = GPT2LMHeadModel(
        GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=32, initializer_range=0.6)
    ).double()
    expected = [greedy_by_hand(network, prompt, 12) for prompt in PROMPTS]
    assert answers(network) == expected


def test_each_answer_ends_before_its_stop_token(network):
    full = [greedy_by_hand(network, prompt, 12) for prompt in PROMPTS]
    stop_ids = [full[0][3], full[2][0]]
    expected = [greedy_by_hand(network, prompt, 12, stop_ids) for prompt in PROMPTS]
    assert answers(network, stop_ids=stop_ids) == expected
    assert expected[2] == []
    assert len(expected[0]) <= 3


def test_a_stop_token_that_also_pads(network):
    stop = greedy_by_hand(network, PROMPTS[0], 12)[3]
    expected = [greedy_by_hand(network, prompt, 12, [stop]) for prompt in PROMPTS]
    assert generate(network, *left_pad(PROMPTS, stop), Decoding(max_new_tokens=12), [stop], stop) == expected


def test_modes_checkpointing_cache_and_generation_config_are_restored(network):
    network = lora(network)
    network.train()
    network.base_model.model.model.layers[0].eval()
    network.base_model.model.gradient_checkpointing_enable()  # its newer name is missing in older releases of 5
    network.enable_input_require_grads()
    network.config.use_cache = False
    network.base_model.model.generation_config.max_length = 7
    before = state(network)
    expected = [greedy_by_hand(network, prompt, 12) for prompt in PROMPTS]
    seen = set()
    layer = network.base_model.model.model.layers[1]
    hook = layer.register_forward_pre_hook(lambda *_: seen.add((layer.training, layer.gradient_checkpointing)))
    assert answers(network) == expected
    hook.remove()
    assert seen == {(False, False)}
    assert state(network) == before
    assert network.config.use_cache is False
    # Training goes on: nothing of inference mode stays behind in the network.
    network(input_ids=torch.tensor([PROMPTS[3]]), labels=torch.tensor([PROMPTS[3]])).loss.backward()


def test_modes_are_restored_after_an_error(network):
    network.train()
    before = state(network)
    with pytest.raises(IndexError):
        answers(network, prompts=[[1000]])  # outside the vocabulary
    assert state(network) == before


def state(network):
    names = ("training", "gradient_checkpointing", "generation_config")
    return copy.deepcopy([[vars(module).get(name) for name in names] for module in network.modules()])


def test_the_cache_is_used(network, monkeypatch):
    lengths = []
    forward = LlamaForCausalLM.forward

    def spy(self, input_ids=None, **options):
        lengths.append(input_ids.shape[1])
        return forward(self, input_ids=input_ids, **options)

    monkeypatch.setattr(LlamaForCausalLM, "forward", spy)
    network.config.use_cache = False
    answers(network)
    assert lengths == [len(PROMPTS[3])] + [1] * 11


def test_nothing_of_the_networks_own_generation_config_leaks_in(network, capfd):
    expected = answers(network)
    sampled = answers(network, Decoding(max_new_tokens=12, temperature=1.0))
    network.generation_config = GenerationConfig(
        max_length=3,
        min_new_tokens=5,
        do_sample=True,
        temperature=0.3,
        top_k=2,
        repetition_penalty=9.0,
        no_repeat_ngram_size=1,
        suppress_tokens=[expected[0][0]],
        num_beams=3,
        eos_token_id=expected[0][1],
    )
    capfd.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert answers(network) == expected
        assert answers(network, Decoding(max_new_tokens=12, temperature=1.0)) == sampled
    assert capfd.readouterr() == ("", "")


def test_sampling_is_repeatable_and_leaves_the_process_random_state_alone(network):
    sampling = Decoding(max_new_tokens=12, temperature=1.0, seed=3)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = answers(network, sampling)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert answers(network, sampling) == first
    assert answers(network, Decoding(max_new_tokens=12, temperature=1.0, seed=4)) != first


def test_sampling_follows_the_networks_probabilities(network):
    prompt, draws = PROMPTS[0], 4000
    with torch.no_grad():
        probabilities = (network(torch.tensor([prompt])).logits[0, -1] / 3.0).softmax(-1)
    tokens = answers(network, Decoding(max_new_tokens=1, temperature=3.0), prompts=[prompt] * draws)
    counts = torch.bincount(torch.tensor(tokens)[:, 0], minlength=40)
    # Four standard deviations of a binomial, for the tokens common enough to be near a normal distribution.
    common = probabilities * draws >= 20
    assert common.sum() >= 10
    deviation = (draws * probabilities * (1 - probabilities)).sqrt()
    assert ((counts - draws * probabilities).abs() <= 4 * deviation)[common].all()


def test_top_k_and_top_p_keep_the_likeliest(network):
    with torch.no_grad():
        ranked = network(torch.tensor([PROMPTS[0]])).logits[0, -1].argsort(descending=True).tolist()
    for decoding, kept in ((Decoding(1, temperature=5.0, top_k=3), 3), (Decoding(1, temperature=5.0, top_p=1e-6), 1)):
        tokens = {answer[0] for answer in answers(network, decoding, prompts=[PROMPTS[0]] * 300)}
        assert tokens == set(ranked[:kept])


def test_beam_search_finds_the_likeliest_text(network):
    prompt = [26]  # from which the likeliest first token does not lead to the likeliest text
    pairs = torch.cartesian_prod(torch.arange(40), torch.arange(40))
    with torch.no_grad():
        scores = network(torch.cat([torch.tensor([prompt] * len(pairs)), pairs], dim=1)).logits.log_softmax(-1)
    likelihood = sum(scores[range(1600), len(prompt) - 1 + i, pairs[:, i]] for i in range(2))
    best = pairs[likelihood.argmax()].tolist()
    (beam,) = answers(network, Decoding(max_new_tokens=2, num_beams=40), prompts=[prompt])
    assert beam == best
    assert beam != greedy_by_hand(network, prompt, 2)


def test_repetition_penalty_changes_the_answers(network):
    assert answers(network, Decoding(max_new_tokens=12, repetition_penalty=5.0)) != answers(network)


def test_a_long_prompt_gets_as_many_tokens_as_fit_and_its_neighbours_all_of_theirs(network):
    long = [3 + i % 30 for i in range(CONTEXT - 4)]
    prompts = [*PROMPTS, long]
    expected = [greedy_by_hand(network, prompt, 12) for prompt in PROMPTS] + [greedy_by_hand(network, long, 4)]
    assert answers(network, prompts=prompts) == expected


def test_a_prompt_that_fills_the_context_is_refused(network):
    with pytest.raises(UserError, match=f"{CONTEXT} tokens leaves no room"):
        answers(network, prompts=[[3] * CONTEXT])


@pytest.mark.parametrize("method", [PromptTuningConfig, PrefixTuningConfig], ids=["prompt", "prefix"])
def test_virtual_tokens_stand_next_to_the_prompt_whatever_the_padding(network, method):
    network = get_peft_model(network, method(task_type="CAUSAL_LM", num_virtual_tokens=8)).double()
    torch.nn.init.normal_(network.prompt_encoder["default"].embedding.weight)
    expected = [greedy_by_hand(network, prompt, 12) for prompt in PROMPTS]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert answers(network) == expected


def test_virtual_tokens_take_room_in_the_context(network):
    network = get_peft_model(network, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=8)).double()
    (answer,) = answers(network, prompts=[[3] * (CONTEXT - 10)])
    assert len(answer) == 2
    with pytest.raises(UserError, match=f"context of {CONTEXT - 8} tokens"):
        answers(network, prompts=[[3] * (CONTEXT - 8)])


def test_right_padded_and_empty_prompts_are_refused(network):
    input_ids, attention_mask = left_pad(PROMPTS, PAD)
    with pytest.raises(ValueError, match="left-padded"):
        generate(network, input_ids.flip(1), attention_mask.flip(1), Decoding(), [], PAD)
    with pytest.raises(ValueError, match="at least one token"):
        answers(network, prompts=[[], [3]])


def test_a_network_that_cannot_generate_is_refused():
    with pytest.raises(UserError, match="Linear has no generate"):
        answers(torch.nn.Linear(2, 2))


def test_generate_all_answers_in_the_prompts_order(network):
    torch.manual_seed(5)
    prompts = [torch.randint(3, 40, (length,)).tolist() for length in (4, 11, 1, 7, 7, 2, 20)]
    decoding = Decoding(max_new_tokens=6)
    expected = [greedy_by_hand(network, prompt, 6) for prompt in prompts]
    for batch_size in (1, 3, 7, 100):
        assert generate_all(network, prompts, decoding, [], PAD, batch_size) == expected
    assert generate_all(network, [], decoding, [], PAD, 4) == []


def test_generate_all_samples_each_batch_anew(network):
    sampling = Decoding(max_new_tokens=12, temperature=1.0)
    first = generate_all(network, [PROMPTS[0]] * 4, sampling, [], PAD, batch_size=1)
    assert len({tuple(answer) for answer in first}) == 4
    assert generate_all(network, [PROMPTS[0]] * 4, sampling, [], PAD, batch_size=1) == first


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0: it must be at least 1"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0.0, "temperature": 1.0}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"num_beams": 0}, "num_beams"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"top_p": 0.9}, "only act on sampling"),
    ],
)
def test_decoding_that_makes_no_sense_is_refused(options, sentence):
    with pytest.raises(UserError, match=sentence):
        Decoding(**options)
