"""BDH by its published equations (arXiv 2509.26507) in eager PyTorch: what `hatchery-trainer bench train` measures
itself against. Arguments: layers width heads multiplier block batch threads steps."""

import json
import math
import resource
import sys
import time

import torch

layers, width, heads, multiplier, block, batch, threads, steps = map(int, sys.argv[1:])
torch.set_num_threads(threads)
torch.manual_seed(0)
neurons = width * multiplier // heads


def weight(*shape):
    return torch.nn.Parameter(torch.randn(*shape) * 0.02)


embed, encoder, encoder_v = weight(256, width), weight(heads, width, neurons), weight(heads, width, neurons)
decoder, lm_head = weight(heads * neurons, width), weight(width, 256)
frequency = (2**16) ** -((torch.arange(neurons) // 2 * 2) / neurons) / math.tau
phase = ((torch.arange(block)[:, None] * frequency) % 1) * math.tau
cos, sin = phase.cos(), phase.sin()


def norm(x):
    return torch.nn.functional.layer_norm(x, (width,))


def rope(q):
    turned = torch.stack((-q[..., 1::2], q[..., ::2]), -1).view(q.shape)
    return q * cos + turned * sin


def logits(tokens):
    x = norm(embed[tokens]).unsqueeze(1)
    for _ in range(layers):
        q = torch.relu(x @ encoder)
        r = rope(q)
        a = norm((r @ r.mT).tril(-1) @ x)
        g = torch.nn.functional.dropout(q * torch.relu(a @ encoder_v), 0.1)
        x = norm(x + norm(g.transpose(1, 2).reshape(batch, 1, block, heads * neurons) @ decoder))
    return x.squeeze(1) @ lm_head


optimizer = torch.optim.AdamW([embed, encoder, encoder_v, decoder, lm_head], lr=1e-3, weight_decay=0.1)
seconds, page_faults = [], []
for _ in range(steps):
    begun = time.perf_counter()
    window = torch.randint(256, (batch, block + 1))
    found = logits(window[:, :-1]).reshape(-1, 256)
    loss = torch.nn.functional.cross_entropy(found, window[:, 1:].reshape(-1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    seconds.append(time.perf_counter() - begun)
    page_faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
if sys.platform == "linux":  # not getrusage, whose figure survives an exec
    memory_bytes = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
else:
    memory_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"step_secs": seconds, "memory_bytes": memory_bytes, "page_faults": page_faults[-1] - page_faults[0]}))
