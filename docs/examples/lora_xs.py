"""LoRA-XS: W + A R B with A and B frozen, and only the small R trained (Bałazy et al. 2024, arXiv 2405.17604)."""

import torch
from peft import LoraConfig, utils
from safetensors.torch import load_file, save_file

from ftlab.methods import Method


class LoRAXS(Method):
    """LoRA-XS: r * r numbers for each layer. R starts at zero (the paper: at noise of 1e-5): the start is the base.

    Args:
        r: Side of R.
        targets: Last parts of the names of the linear layers to adapt.
    """

    bases = frozenset({"full", "nf4", "fp4", "int8"})

    def __init__(self, r: int = 16, targets: tuple[str, ...] = ("q_proj", "v_proj")) -> None:
        self.r, self.targets = r, targets

    def layers(self, network):
        return [(name, layer) for name, layer in network.named_modules() if name.endswith(self.targets)]

    def add_update(self, layer, inputs, output):
        return output + (inputs[0].to(layer.b.dtype) @ layer.b.T @ layer.r.T @ layer.a.T).to(output.dtype)

    def adapt(self, network, batches=None):
        for _, layer in self.layers(network.requires_grad_(False)):
            u, s, v = torch.linalg.svd(utils.integrations.dequantize_module_weight(layer).float(), full_matrices=False)
            s, v = s * v.sum(1).sign(), v * v.sum(1, keepdim=True).sign()  # or each machine may choose other signs
            layer.a, layer.b = torch.nn.Buffer((u * s)[:, : self.r].contiguous()), torch.nn.Buffer(v[: self.r])
            layer.r = torch.nn.Parameter(torch.zeros(self.r, self.r, device=s.device))
            layer.update = layer.register_forward_hook(self.add_update)
        return network

    def save(self, network, directory):
        config = LoraConfig(r=self.r, lora_alpha=self.r, target_modules=list(self.targets), task_type="CAUSAL_LM")
        config.save_pretrained(directory)  # as a plain LoRA, which peft opens alone: its A is our R B, its B our A
        b = {f"base_model.model.{name}.lora_A.weight": layer.r.data @ layer.b for name, layer in self.layers(network)}
        a = {f"base_model.model.{name}.lora_B.weight": layer.a for name, layer in self.layers(network)}
        save_file(a | b, directory / "adapter_model.safetensors")

    def load(self, network, directory):
        factors = load_file(directory / "adapter_model.safetensors", str(network.device))
        for name, layer in self.layers(self.adapt(network)):
            layer.b, layer.a = (factors[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
            layer.r.data = torch.eye(self.r, device=network.device)
        return network

    def merge(self, network):
        updates = {name: layer.a @ layer.r.data @ layer.b for name, layer in self.layers(network)}
        for _, layer in self.layers(network):
            layer.update.remove()
            del layer.a, layer.b, layer.r
        plain = network.dequantize() if self.quantization else network
        for name, update in updates.items():
            plain.get_submodule(name).weight.data += update
        return plain
