"""Makes the files of this folder by PyTorch's own torch.save, and prints the figures that tests/import.rs keeps.

    python3 make.py      # torch 2.11, numpy; writes beside itself

The model is written down from the published equations.
"""

import dataclasses
import math
import pathlib
import sys
import types

import torch
from torch import nn

FOLDER = pathlib.Path(__file__).parent
PROMPT = b"To be"


@dataclasses.dataclass
class BDHConfig:
    n_layer: int = 6
    n_embd: int = 256
    dropout: float = 0.1
    n_head: int = 4
    mlp_internal_dim_multiplier: int = 128
    vocab_size: int = 256


# The class as the public code has it, in a module of that name.
sys.modules["bdh"] = types.ModuleType("bdh")
sys.modules["bdh"].BDHConfig = BDHConfig
BDHConfig.__module__ = "bdh"

CONFIG = BDHConfig(n_layer=2, n_embd=8, dropout=0.1, n_head=2, mlp_internal_dim_multiplier=4)
V, D, H = CONFIG.vocab_size, CONFIG.n_embd, CONFIG.n_head
M = CONFIG.mlp_internal_dim_multiplier * D // H


class BDH(nn.Module):
    def __init__(self):
        super().__init__()
        draw = lambda *shape: nn.Parameter(torch.randn(shape) * 0.3)
        self.encoder, self.encoder_v = draw(H, D, M), draw(H, D, M)
        self.decoder, self.lm_head = draw(H * M, D), draw(D, V)
        self.embed = nn.Embedding(V, D)
        self.attn = nn.Module()
        pairs = torch.arange(M).div(2, rounding_mode="floor") * 2
        self.attn.register_buffer("freqs", (1 / 65536 ** (pairs / M) / (2 * math.pi)).view(1, 1, 1, M))

    def forward(self, tokens):
        norm = lambda x: nn.functional.layer_norm(x, (D,))
        turns = torch.arange(len(tokens)).view(-1, 1) * self.attn.freqs
        cos, sin = torch.cos(turns % 1 * 2 * math.pi), torch.sin(turns % 1 * 2 * math.pi)
        x = norm(self.embed(tokens)).view(1, 1, -1, D)
        for _ in range(CONFIG.n_layer):
            neurons = (x @ self.encoder).relu()
            turned = torch.stack((-neurons[..., 1::2], neurons[..., ::2]), -1).flatten(-2)
            r = neurons * cos + turned * sin
            read = norm((r @ r.mT).tril(-1) @ x)
            gated = neurons * (read @ self.encoder_v).relu()
            y = norm(gated.transpose(1, 2).reshape(1, 1, -1, H * M) @ self.decoder)
            x = norm(x + y)
        return (x @ self.lm_head)[0, 0]


torch.manual_seed(1)
model = BDH()
state = model.state_dict()
save = lambda thing, name, **more: torch.save(thing, FOLDER / name, **more)
save({"model": state, "config": dataclasses.asdict(CONFIG), "step": 300}, "dict-config.pt")
# As torch.compile names them, in bf16, with the configuration as an object of its class.
compiled = {f"_orig_mod.{name}": tensor.bfloat16() for name, tensor in state.items()}
save({"model": compiled, "config": CONFIG, "step": 300}, "class-config.pt")
# A state dict alone: one weight a parameter, one a transposed view.
bare = dict(state, encoder=nn.Parameter(state["encoder"]), decoder=state["decoder"].t().contiguous().t())
save(bare, "bare.pt")
save({"model": {}}, "old-form.pt", _use_new_zipfile_serialization=False)
with torch.no_grad():
    print(model(torch.tensor(list(PROMPT)))[-1, :8].tolist())
