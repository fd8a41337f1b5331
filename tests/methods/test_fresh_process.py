"""What `Method.save` writes opens with transformers and peft alone, in a process that never heard of ftlab."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ftlab.methods import Full, LoRA, Method, QLoRA
from ftlab.networks import Network

READER = """
import sys
from pathlib import Path
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

root = Path(sys.argv[1])
ids = torch.load(root / "ids.pt")
bits = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=torch.float32,
)
answers = {
    "full": AutoModelForCausalLM.from_pretrained(root / "full"),
    "lora": AutoPeftModelForCausalLM.from_pretrained(root / "lora"),
    "pissa": AutoPeftModelForCausalLM.from_pretrained(root / "pissa"),
    # in train mode: in evaluation bitsandbytes computes in bfloat16 on some processors, whatever is asked for
    "qlora": AutoPeftModelForCausalLM.from_pretrained(
        root / "qlora", quantization_config=bits, dtype=torch.float32
    ).train(),
}
assert "ftlab" not in sys.modules
with torch.no_grad():
    torch.save({name: network(ids).logits for name, network in answers.items()}, root / "answers.pt")
"""


def test_same_logits_in_a_fresh_process(
    network: Network,
    adapt: Callable[..., nn.Module],
    train: Callable[..., set[str]],
    batches: list[dict[str, Tensor]],
    tmp_path: Path,
) -> None:
    ids = batches[0]["input_ids"]
    methods: dict[str, Method] = {
        "full": Full(),
        "lora": LoRA(r=4),
        "pissa": LoRA(r=4, init="pissa"),
        "qlora": QLoRA(r=4, compute_dtype="float32"),
    }
    expected = {}
    for name, method in methods.items():
        adapted = adapt(method, network)
        train(method, adapted)
        method.save(adapted, tmp_path / name)
        with torch.no_grad():
            expected[name] = adapted.eval()(ids).logits
    torch.save(ids, tmp_path / "ids.pt")
    subprocess.run([sys.executable, "-c", READER, str(tmp_path)], check=True, capture_output=True, cwd=tmp_path)
    answers = torch.load(tmp_path / "answers.pt")
    for name, answer in expected.items():
        torch.testing.assert_close(answers[name], answer, rtol=1e-5, atol=1e-5)
