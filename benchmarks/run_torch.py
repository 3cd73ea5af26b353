"""PyTorch DistributedDataParallel on Gloo: python -m benchmarks.run_torch CONTENDER, by torchrun.

Batches are slices of tensors: no loader's cost is counted against it.
"""

from __future__ import annotations

import itertools
import os
import sys
import time

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from benchmarks.workloads import EPOCHS, Workload, chosen, initial_weights, record


class Attention(nn.Module):
    """Embedding, one attention block, mean over the tokens, classes."""

    def __init__(self, workload: Workload):
        super().__init__()
        self.embedding = nn.Embedding(workload.vocabulary, 64)
        self.attention = nn.MultiheadAttention(64, 4, batch_first=True)
        self.norm = nn.LayerNorm(64, eps=1e-3)
        self.outputs = nn.Linear(64, workload.classes)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits of each row."""
        embedded = self.embedding(tokens)
        attended, _ = self.attention(embedded, embedded, embedded, need_weights=False)
        return self.outputs(self.norm(embedded + attended).mean(dim=1))


def build(name: str, workload: Workload) -> nn.Module:
    """The workload's model; rows as Keras has them, images without their last axis."""
    if name == "attention":
        return Attention(workload)
    if name == "cnn":
        return nn.Sequential(
            nn.Unflatten(1, (1, 28)),
            nn.Conv2d(1, 32, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(1600, workload.classes),
        )
    width = {"linear": [], "mlp": [1024] * 2, "wide": [2048] * 2}[name]
    sizes = [*workload.features, *width, workload.classes or 1]
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def to_torch(name: str, weights: list[np.ndarray]) -> list[np.ndarray]:
    """Keras's weights in the order and layout of the module's parameters."""
    if name == "attention":
        table, *qkv, kernel, bias, scale, shift, last, last_bias = weights
        projections = [w.reshape(64, -1).T for w in qkv[0::2]]
        return [
            table,
            np.concatenate(projections),
            np.concatenate([b.reshape(-1) for b in qkv[1::2]]),
            kernel.reshape(-1, 64).T,
            bias,
            scale,
            shift,
            last.T,
            last_bias,
        ]
    turned = []
    for weight in weights:
        if weight.ndim == 4:
            turned.append(weight.transpose(3, 2, 0, 1))
        elif name == "cnn" and weight.ndim == 2:
            images = weight.reshape(5, 5, 64, -1).transpose(2, 0, 1, 3)  # Flatten: channels last
            turned.append(images.reshape(weight.shape).T)
        else:
            turned.append(weight.T)
    return turned


def to_keras(name: str, parameters: list[np.ndarray]) -> list[np.ndarray]:
    """The other way round."""
    if name == "attention":
        table, kernels, biases, kernel, bias, scale, shift, last, last_bias = parameters
        qkv: list[np.ndarray] = []
        for part, part_bias in zip(np.split(kernels, 3), np.split(biases, 3), strict=True):
            qkv += [part.T.reshape(64, 4, 16), part_bias.reshape(4, 16)]
        out = kernel.T.reshape(4, 16, 64)
        return [table, *qkv, out, bias, scale, shift, last.T, last_bias]
    turned = []
    for parameter in parameters:
        if parameter.ndim == 4:
            turned.append(parameter.transpose(2, 3, 1, 0))
        elif name == "cnn" and parameter.ndim == 2:
            images = parameter.T.reshape(64, 5, 5, -1).transpose(1, 2, 0, 3)
            turned.append(images.reshape(parameter.T.shape))
        else:
            turned.append(parameter.T)
    return turned


def main() -> None:
    """Train every workload."""
    contender = sys.argv[1]
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    for name, workload in chosen().items():
        module = build(name, workload)
        with torch.no_grad():
            values = to_torch(name, initial_weights(name))
            for parameter, value in zip(module.parameters(), values, strict=True):
                parameter.copy_(torch.from_numpy(np.ascontiguousarray(value)))
        model = nn.parallel.DistributedDataParallel(module)
        optimizer = torch.optim.SGD(model.parameters(), lr=workload.rate)
        loss = nn.CrossEntropyLoss() if workload.classes else nn.MSELoss()
        x, y = (torch.from_numpy(array) for array in workload.data())
        x = x[..., 0] if name == "cnn" else x
        share = workload.batch_size // size
        seconds = []
        for _ in range(EPOCHS):
            began = time.perf_counter()
            for step in range(workload.steps):
                first = step * workload.batch_size + rank * share
                optimizer.zero_grad()
                loss(model(x[first : first + share]), y[first : first + share]).backward()
                optimizer.step()
            seconds.append(time.perf_counter() - began)
        if rank == 0:
            parameters = [p.detach().numpy() for p in module.parameters()]
            record(contender, name, seconds[1:], to_keras(name, parameters))
    dist.barrier()
    time.sleep(1)  # the first to leave would cut the connection of one still at work
    # An orderly end now and then aborts in Gloo's threads, with all the work done.
    os._exit(0)


if __name__ == "__main__":
    main()
