"""Makes NAME-f64.safetensors from NAME.safetensors: the published equations (arXiv 2509.26507) in PyTorch, rebuilt in
f64 from the same start weights and batches. Of each tensor every 7th number is kept. Usage: exact.py NAME..."""

import math
import sys

import torch
from safetensors import safe_open
from safetensors.torch import save_file

KEPT = 7
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)

for name in sys.argv[1:]:
    file = safe_open(f"{name}.safetensors", "pt")
    info = file.metadata()
    layers, width, heads = (int(info[key]) for key in ("n_layer", "n_embd", "n_head"))
    neurons = width * int(info["mlp_internal_dim_multiplier"]) // heads
    names = ["embed.weight", "encoder", "encoder_v", "decoder", "lm_head"]
    weights = [torch.nn.Parameter(file.get_tensor(f"weights.{key}").double()) for key in names]
    embed, encoder, encoder_v, decoder, lm_head = weights
    tokens, targets = file.get_tensor("tokens"), file.get_tensor("targets")
    batch, block = tokens.shape[1:]
    frequency = (2**16) ** -((torch.arange(neurons) // 2 * 2) / neurons) / math.tau
    phase = ((torch.arange(block)[:, None] * frequency) % 1) * math.tau
    cos, sin = phase.cos(), phase.sin()

    def norm(x):
        return torch.nn.functional.layer_norm(x, (width,))

    def rope(q):
        turned = torch.stack((-q[..., 1::2], q[..., ::2]), -1).view(q.shape)
        return q * cos + turned * sin

    def logits_of(tokens):
        x = norm(embed[tokens]).unsqueeze(1)
        for _ in range(layers):
            q = torch.relu(x @ encoder)
            r = rope(q)
            a = norm((r @ r.mT).tril(-1) @ x)
            g = q * torch.relu(a @ encoder_v)
            x = norm(x + norm(g.transpose(1, 2).reshape(batch, 1, block, heads * neurons) @ decoder))
        return x.squeeze(1) @ lm_head

    kept = {"logits": logits_of(tokens[0])}
    beta1, beta2 = (float(beta) for beta in info["betas"].split(","))
    optimizer = torch.optim.AdamW(
        weights, lr=float(info["lr"]), betas=(beta1, beta2), eps=float(info["eps"]),
        weight_decay=float(info["weight_decay"]), foreach=False,
    )
    losses = []
    for step in range(int(info["steps"])):
        loss = torch.nn.functional.cross_entropy(logits_of(tokens[step]).reshape(-1, 256), targets[step].reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            kept |= {f"grad.{key}": weight.grad.clone() for key, weight in zip(names, weights)}
        losses.append(loss.item())
        optimizer.step()
    kept |= {f"after.{key}": weight for key, weight in zip(names, weights)}
    kept = {key: tensor.detach().flatten()[::KEPT].contiguous() for key, tensor in kept.items()}
    save_file(kept | {"losses": torch.tensor(losses)}, f"{name}-f64.safetensors", {"kept": str(KEPT)})
