"""BDH by its published equations (arXiv 2509.26507) in PyTorch: what `hatchery-trainer bench gpu` measures itself against.
Arguments: the folder of the task, and `eager` or `compiled`. Prints what it found as JSON."""

import contextlib
import json
import math
import resource
import sys
import time
from pathlib import Path

import torch

folder, way = Path(sys.argv[1]), sys.argv[2]
task = json.loads((folder / "task.json").read_text())
model, train, device = task["model"], task["train"], torch.device(task["device"])
is_cuda = device.type == "cuda"
if is_cuda:
    torch.cuda.set_device(device)
layers, width, heads = model["n_layer"], model["n_embd"], model["n_head"]
neurons, vocabulary = width * model["mlp_internal_dim_multiplier"] // heads, model["vocab_size"]
batch, block, dropout = train["batch"], train["block"], model["dropout"]
steps, warm_up, look = task["steps"], task["warm_up_steps"], task["steps_per_look"]
torch.manual_seed(0)
if task["is_bf16"]:
    torch.set_float32_matmul_precision("high")

numbers = torch.frombuffer(bytearray((folder / "weights.bin").read_bytes()), dtype=torch.float32)
windows = torch.frombuffer(bytearray((folder / "windows.bin").read_bytes()), dtype=torch.uint8)
windows = windows.view(warm_up + steps, batch, block + 1)
shapes = [(vocabulary, width), (heads, width, neurons), (heads, width, neurons), (heads * neurons, width), (width, vocabulary)]
weights, first = [], 0
for shape in shapes:
    count = math.prod(shape)
    weights.append(torch.nn.Parameter(numbers[first : first + count].view(shape).to(device)))
    first += count
embed, encoder, encoder_v, decoder, lm_head = weights
frequency = (2**16) ** -((torch.arange(neurons) // 2 * 2) / neurons) / math.tau
phase = ((torch.arange(block)[:, None] * frequency) % 1) * math.tau
cos, sin = phase.cos().to(device), phase.sin().to(device)


def norm(x):
    return torch.nn.functional.layer_norm(x, (width,))


def rope(q):
    turned = torch.stack((-q[..., 1::2], q[..., ::2]), -1).view(q.shape)
    return (q * cos + turned * sin).to(q.dtype)


def loss_of(tokens, targets):
    x = norm(embed[tokens]).unsqueeze(1)
    for _ in range(layers):
        q = torch.relu(x @ encoder)
        r = rope(q)
        a = norm((r @ r.mT).tril(-1) @ x)
        g = torch.nn.functional.dropout(q * torch.relu(a @ encoder_v), dropout)
        x = norm(x + norm(g.transpose(1, 2).reshape(batch, 1, block, heads * neurons) @ decoder))
    found = (x.squeeze(1) @ lm_head).float().view(-1, vocabulary)
    return torch.nn.functional.cross_entropy(found, targets.reshape(-1))


if way == "compiled":
    loss_of = torch.compile(loss_of)
optimizer = torch.optim.AdamW(
    weights, lr=train["lr"], betas=(train["beta1"], train["beta2"]), eps=train["epsilon"], weight_decay=train["weight_decay"],
    fused=is_cuda,
)
autocast = torch.autocast(device.type, dtype=torch.bfloat16) if task["is_bf16"] else contextlib.nullcontext()
step_secs, host_secs, losses, looked = [], [], [], time.perf_counter()
for step in range(warm_up + steps):
    asked = time.perf_counter()
    window = windows[step].to(device, non_blocking=True).long()
    with autocast:
        loss = loss_of(window[:, :-1], window[:, 1:])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.detach())
    if step >= warm_up and (step - warm_up) % look == 0:
        host_secs.append(time.perf_counter() - asked)
    timed = step + 1 - warm_up
    if timed == 0 or timed > 0 and timed % look == 0:
        if is_cuda:
            torch.cuda.synchronize()
        if timed > 0:
            step_secs.append((time.perf_counter() - looked) / look)
        looked = time.perf_counter()
losses = [loss.item() for loss in losses]
memory_bytes = torch.cuda.max_memory_allocated() if is_cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
if not all(math.isfinite(loss) for loss in losses):
    sys.exit("a loss is not a number")
print(json.dumps({"step_secs": step_secs, "host_secs": host_secs, "memory_bytes": memory_bytes, "losses": losses}))
