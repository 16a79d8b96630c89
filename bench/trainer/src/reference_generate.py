"""BDH by its published equations (arXiv 2509.26507) in eager PyTorch, as public code generates with it: each new byte
takes the whole context through the model again. What `hatchery-trainer bench generate` measures itself against.
Arguments: layers width heads multiplier, then pairs of context and new bytes."""

import json
import math
import sys
import time

import torch

layers, width, heads, multiplier = map(int, sys.argv[1:5])
contexts = list(map(int, sys.argv[5:]))
torch.set_num_threads(1)
torch.manual_seed(0)
neurons = width * multiplier // heads


def weight(*shape):
    return torch.randn(*shape) * 0.02


embed, encoder, encoder_v = weight(256, width), weight(heads, width, neurons), weight(heads, width, neurons)
decoder, lm_head = weight(heads * neurons, width), weight(width, 256)
frequency = (2**16) ** -((torch.arange(neurons) // 2 * 2) / neurons) / math.tau


def norm(x):
    return torch.nn.functional.layer_norm(x, (width,))


def rope(q):
    phase = ((torch.arange(q.shape[-2])[:, None] * frequency) % 1) * math.tau
    turned = torch.stack((-q[..., 1::2], q[..., ::2]), -1).view(q.shape)
    return q * phase.cos() + turned * phase.sin()


def logits(tokens):
    x = norm(embed[tokens]).unsqueeze(1)
    for _ in range(layers):
        q = torch.relu(x @ encoder)
        r = rope(q)
        a = norm((r @ r.mT).tril(-1) @ x)
        g = q * torch.relu(a @ encoder_v)
        x = norm(x + norm(g.transpose(1, 2).reshape(1, 1, tokens.shape[1], heads * neurons) @ decoder))
    return x.squeeze(1) @ lm_head


with torch.no_grad():
    for context, new_bytes in zip(contexts[::2], contexts[1::2]):
        tokens = torch.randint(256, (1, context))
        seconds = []
        for _ in range(new_bytes):
            begun = time.perf_counter()
            chosen = torch.multinomial(torch.softmax(logits(tokens)[:, -1], -1), 1)
            tokens = torch.cat((tokens, chosen), 1)
            seconds.append(time.perf_counter() - begun)
        print(json.dumps({"context": context, "secs": min(seconds)}), flush=True)
