"""Make what the demo runs on: a small pretrained network, its tokenizer, and a downstream task it has never seen.

    python scripts/make_demo_assets.py                    # everything, into ftlab/assets
    python scripts/make_demo_assets.py --only data        # data and tokenizer are the same bytes for the same seed
    python scripts/make_demo_assets.py --only network --tokens 2e6 --out trial

Corpus and task come from `small_world.py`; the corpus is generated while it is read, and all that is stored of it are
documents that nothing was trained on, by which forgetting is measured. The weights are
not the same to the bit: how far `--minutes` goes and the order of sums depend on the machine. Those that ship are one
run of it at its defaults (`ftlab/assets/README.md`).
"""

import argparse
import itertools
import json
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from small_world import Messages, documents, later_documents, summary_splits
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import distributed, multiprocessing
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

ASSETS = Path(__file__).resolve().parents[1] / "ftlab" / "assets"
SPLIT_SIZES = {"train": 3000, "dev": 300, "test": 300}
HELD_OUT = 100  # documents of each part of the corpus
TOKENIZER_DOCUMENTS = 20_000
CONTEXT = 512

# Processes of one thread each meet once a step. The threads of one process meet hundreds of times, and whenever another
# program holds a core, each of those times waits for it.
WORKERS = 2
BATCH_TOKENS = 3072  # of one worker
MUON_LR, ADAM_LR = 0.02, 6e-3
LATER = 0.3  # the share of the run after which the second part of the corpus begins, with a warm-up of its own
WARMUP, DECAY = 0.02, 0.4  # shares of the run

BOS, END, PAD = "<|bos|>", "<|end|>", "<|pad|>"
SYSTEM, USER, ASSISTANT = "<|system|>", "<|user|>", "<|assistant|>"
CHAT_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role not in ['system', 'user', 'assistant'] %}
        {{- raise_exception('The role ' + message.role + ' is none of system, user, assistant') }}
    {%- endif %}
    {{- '<|' + message.role + '|>' }}
    {%- if message.role == 'assistant' %}
        {%- generation %}{{- message.content + eos_token }}{%- endgeneration %}
    {%- else %}
        {{- message.content + eos_token }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"""


def write_data(directory: Path, seed: int) -> None:
    for split, records in summary_splits(seed, **SPLIT_SIZES).items():
        with written_whole(directory) as unfinished:
            lines = "".join(json.dumps(record) + "\n" for record in records)
            (unfinished / f"{split}.jsonl").write_text(lines, encoding="utf-8")


def write_held_out(directory: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Documents of both parts of the corpus as the network read others like them: rendered, with special tokens."""
    parts = (part("held out for retention") for part in (documents, later_documents))
    texts = [_rendered(tokenizer, document) for part in parts for document in itertools.islice(part, HELD_OUT)]
    with written_whole(directory) as unfinished:
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (unfinished / "corpus.jsonl").write_text(lines, encoding="utf-8")


def train_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE with as many merges as it takes for every word of the small world to be one token."""
    sample = itertools.islice(documents(seed), TOKENIZER_DOCUMENTS)
    texts = (text for d in sample for text in ([d] if isinstance(d, str) else [m["content"] for m in d]))
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2048,
        special_tokens=[BOS, END, PAD, SYSTEM, USER, ASSISTANT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, bpe.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        extra_special_tokens=[SYSTEM, USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def write_tokenizer(directory: Path, seed: int) -> None:
    with written_whole(directory) as unfinished:
        train_tokenizer(seed).save_pretrained(unfinished, save_jinja_files=False)


def new_network(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        **special,
    )
    torch.manual_seed(seed)
    network = LlamaForCausalLM(config)
    # From the usual 0.02, words that the corpus draws at random from one kind (morning, evening; frozen, wet) grow into
    # all but one vector (cosine 0.97 after 19 M tokens), and a network that cannot tell them apart cannot copy them.
    torch.nn.init.normal_(network.get_input_embeddings().weight, std=0.2)
    network.generation_config = GenerationConfig(do_sample=False, max_new_tokens=64, **special)
    return network


def batches(
    tokenizer: PreTrainedTokenizerFast, corpus: Iterator[Messages | str], tokens: int
) -> Iterator[torch.Tensor]:
    """Token ids (batch, length) of a corpus, at most `tokens` of them with padding.

    A row is one document, so that nothing is read across documents; rows of like length go together, and long batches
    come at the same time for every worker.
    """
    order = random.Random("batches")
    while True:
        pool = [_rendered(tokenizer, document) for document in itertools.islice(corpus, 1024)]
        rows = sorted((torch.tensor(ids) for ids in tokenizer(pool, add_special_tokens=False).input_ids), key=len)
        groups: list[list[torch.Tensor]] = [[]]
        for row in rows:
            if (len(groups[-1]) + 1) * len(row) > tokens:
                groups.append([])
            groups[-1].append(row)
        order.shuffle(groups)
        for group in groups:
            yield pad_sequence(group, batch_first=True, padding_value=tokenizer.pad_token_id)


def _rendered(tokenizer: PreTrainedTokenizerFast, document: Messages | str) -> str:
    if isinstance(document, str):
        return tokenizer.bos_token + document + tokenizer.eos_token
    return tokenizer.apply_chat_template(document, tokenize=False)


def next_token_losses(network: torch.nn.Module, ids: torch.Tensor, pad: int) -> torch.Tensor:
    """The loss of every token that is no padding, flat; matrices in bfloat16, which newer CPUs do twice as fast."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(input_ids=ids, use_cache=False).logits[:, :-1]
    targets = ids[:, 1:]
    real = targets != pad
    return cross_entropy(logits[real].float(), targets[real], reduction="none")


def answer_accuracy(network: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, conversations: int = 100) -> float:
    """The share of tokens in held-out answers that come out right: about 0.74 with every fact wrong."""
    held_out = (d for d in documents("held out") if not isinstance(d, str))
    right, total = 0, 0
    for document in itertools.islice(held_out, conversations):
        encoded = tokenizer.apply_chat_template(
            document, return_dict=True, return_assistant_tokens_mask=True, return_tensors="pt"
        )
        ids, answers = encoded["input_ids"], torch.as_tensor(encoded["assistant_masks"]).view(1, -1)[:, 1:].bool()
        with torch.no_grad():
            guesses = network(input_ids=ids, use_cache=False).logits[:, :-1].argmax(-1)
        right += int((guesses == ids[:, 1:])[answers].sum())
        total += int(answers.sum())
    return right / total


def pretrain(rank: int, out: Path, seed: int, tokens: float, minutes: float, rendezvous: str) -> None:
    """One of `WORKERS` processes that train together; the first writes `out / "network"` at every tenth of the way.

    Next-token loss on everything; Muon for the matrices, AdamW for embeddings and norms. Both rates rise, stay, and
    fall to 0; where the second part of the corpus begins they rise once more. Progress is the larger of tokens seen
    and minutes passed as shares of their budgets, so that a run that runs out of time has decayed all the same.
    """
    disable_progress_bar()
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=WORKERS)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(out / "network")
    network = new_network(tokenizer, seed)
    parallel = DistributedDataParallel(network)
    matrices = [p for name, p in network.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in network.named_parameters() if p.ndim == 1 or "embed" in name]
    muon = torch.optim.Muon(matrices, lr=MUON_LR, weight_decay=0.01)
    adam = torch.optim.AdamW(others, lr=ADAM_LR, betas=(0.9, 0.98), weight_decay=0.0)

    first, second = (
        batches(tokenizer, part(f"{seed} worker {rank}"), BATCH_TOKENS) for part in (documents, later_documents)
    )

    start, seen, tenth = time.monotonic(), 0, 0
    for step in itertools.count():
        elapsed = (time.monotonic() - start) / 60
        clock = torch.tensor(max(seen / tokens, elapsed / minutes))
        distributed.broadcast(clock, 0)
        progress = clock.item()
        if rank == 0 and 10 * progress >= tenth:
            accuracy = answer_accuracy(network, tokenizer)
            print(f"{elapsed:5.1f} min {step:6d} steps {seen / 1e6:6.2f} M tokens answers {accuracy:.3f}", flush=True)
            save_network(network, out / "network")
            tenth = int(10 * progress) + 1
        if progress >= 1:
            break
        later = progress >= LATER
        ids = next(second if later else first)
        rate = min(1.0, (progress - LATER * later + 1e-4) / WARMUP, (1 - progress) / DECAY)
        muon.param_groups[0]["lr"], adam.param_groups[0]["lr"] = rate * MUON_LR, rate * ADAM_LR
        next_token_losses(parallel, ids, tokenizer.pad_token_id).mean().backward()
        clip_grad_norm_(network.parameters(), 1.0)
        for optimizer in (muon, adam):
            optimizer.step()
            optimizer.zero_grad()
        seen += WORKERS * int((ids != tokenizer.pad_token_id).sum())
    distributed.destroy_process_group()


def save_network(network: LlamaForCausalLM, directory: Path) -> None:
    with written_whole(directory) as unfinished:
        network.save_pretrained(unfinished)


@contextmanager
def written_whole(directory: Path) -> Iterator[Path]:
    """A directory beside `directory` whose files move into it when the block ends without an error."""
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent) as unfinished:
        yield Path(unfinished)
        for file in Path(unfinished).iterdir():
            file.replace(directory / file.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ASSETS, help="directory to write network/ and data/ into")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=["data", "tokenizer", "retention", "network"], help="the one part to make")
    parser.add_argument("--tokens", type=float, default=40e6, help="tokens to pretrain on")
    parser.add_argument("--minutes", type=float, default=50, help="time to pretrain for, where it ends sooner")
    args = parser.parse_args()

    if args.only in (None, "data"):
        write_data(args.out / "data", args.seed)
    if args.only in (None, "tokenizer"):
        write_tokenizer(args.out / "network", args.seed)
    if args.only in (None, "retention"):
        write_held_out(args.out / "retention", PreTrainedTokenizerFast.from_pretrained(args.out / "network"))
    if args.only in (None, "network"):
        with tempfile.TemporaryDirectory() as scratch:
            rendezvous = f"file://{scratch}/rendezvous"
            work = (args.out, args.seed, args.tokens, args.minutes, rendezvous)
            multiprocessing.spawn(pretrain, args=work, nprocs=WORKERS)


if __name__ == "__main__":
    main()
