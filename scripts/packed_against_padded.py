"""Loss and gradients of packed batches beside padded ones, on a real network and real records, in fp32.

    python scripts/packed_against_padded.py NETWORK DATA "{mr}\\n" "{ref}"

Prints the relative difference of the summed loss and, over all weights, of the gradient: packs in the order they come,
and with their samples turned round.
"""

import argparse

import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from ftlab.data import FinetuneData
from ftlab.data.collators import PackCollator, PadCollator
from ftlab.data.packing import best_fit
from ftlab.networks import Network

ROWS = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network")
    parser.add_argument("data")
    parser.add_argument("prompt")
    parser.add_argument("response")
    args = parser.parse_args()
    prompt, response = (text.replace("\\n", "\n") for text in (args.prompt, args.response))
    data = FinetuneData(Network(args.network), args.data, prompt=prompt, response=response, template="plain")
    rows = [data.rows("train")[place] for place in range(ROWS)]
    bins = best_fit(data.rows("train").lengths[:ROWS], data.encoder.max_length)
    packs = [[rows[place] for place in pack] for pack in bins]
    network = AutoModelForCausalLM.from_pretrained(args.network, dtype=torch.float32)
    pad = data.encoder.pad_id
    padded = step(network, PadCollator(pad)(rows))
    print(f"{ROWS} records in {len(packs)} packs of {data.encoder.max_length}; summed loss {padded[0]:.4f}")
    for name, order in {"as they come": packs, "turned round": [pack[::-1] for pack in packs]}.items():
        loss, gradient = step(network, PackCollator(pad)(order))
        print(
            f"{name}: loss differs by {abs(loss - padded[0]) / padded[0]:.1e}, "
            f"gradient by {(gradient - padded[1]).norm() / padded[1].norm():.1e}"
        )


def step(network: torch.nn.Module, batch: dict) -> tuple[float, torch.Tensor]:
    """The summed loss, and the gradient of all weights in one vector."""
    network.zero_grad()
    names = ("input_ids", "attention_mask", "position_ids")
    logits = network(**{name: batch[name] for name in names if name in batch}, use_cache=False).logits
    loss = cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum")
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in network.parameters()]).clone()


if __name__ == "__main__":
    main()
