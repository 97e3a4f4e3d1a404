"""Networks that several threads run side by side, and that compute several shards in one call.

Both give each shard its own gradient: threads must not meet in `parameter.grad`.
"""

import copy
from collections.abc import Sequence
from functools import partial

import torch
from torch import nn

from dist_mnist.distributed.tree_sum import Tensors
from dist_mnist.distributed.world import all_reduce_max
from dist_mnist.models.purity import changing_buffers
from dist_mnist.training.state import TrainingState
from dist_mnist.training.step import forward, loss_gradients


class Replica:
    """A network that one thread runs. All replicas share their parameters, but not their buffers.

    Args:
        is_stacked: Whether a call computes several shards. Then each shard has its own views of the
            linear layers' weights, and so gets its own gradients: a layer is one batched product.
            The rest of the network must treat each sample alone.
    """

    def __init__(self, network: nn.Module, is_stacked: bool) -> None:
        self.network = network
        self._parameters = [p for p in network.parameters() if p.requires_grad]
        self._buffers = changing_buffers(network)
        self._views: dict[torch.Tensor, torch.Tensor] = {}
        self._is_stacked = is_stacked
        for layer in network.modules() if is_stacked else ():
            if type(layer) is nn.Linear:
                layer.forward = partial(self._linear, layer)  # type: ignore[method-assign]

    @property
    def buffers(self) -> list[torch.Tensor]:
        """The buffers that training may change."""
        return [holder[name] for holder, name in self._buffers]

    def views(self, shards: int) -> Sequence[torch.Tensor]:
        """Return what to differentiate by: the parameters, or their views for each shard."""
        if not self._is_stacked:
            return self._parameters
        for p in self._parameters:
            self._views[p] = p.detach().expand(shards, *p.shape).requires_grad_()
        return [*self._views.values()]

    def split(self, gradients: Tensors) -> list[Tensors]:
        """Return the gradients of each shard, from those by the views."""
        if not self._is_stacked:
            return [gradients]
        return [*zip(*(gradient.unbind() for gradient in gradients), strict=True)]

    def _linear(self, layer: nn.Linear, inputs: torch.Tensor) -> torch.Tensor:
        weights = self._views[layer.weight]
        rows = inputs.reshape(len(weights), -1, layer.in_features)
        if layer.bias is None:
            products = torch.bmm(rows, weights.transpose(1, 2))
        else:
            biases = self._views[layer.bias].unsqueeze(1)
            products = torch.baddbmm(biases, rows, weights.transpose(1, 2))
        return products.view(*inputs.shape[:-1], layer.out_features)


def replicate(network: nn.Module) -> nn.Module:
    """Return a copy of a network that shares its parameters and constants, but not its buffers."""
    changing = {id(holder[name]) for holder, name in changing_buffers(network)}
    tensors = (*network.parameters(), *network.buffers())
    return copy.deepcopy(network, {id(t): t for t in tensors if id(t) not in changing})


def shard_gradients(
    state: TrainingState,
    replica: Replica,
    images: torch.Tensor,
    labels: torch.Tensor,
    shards: int,
    batch_size: int,
) -> tuple[list[Tensors], torch.Tensor, torch.Tensor]:
    """Compute the gradients of one or more shards of the same size.

    Args:
        images: uint8 of shape (shards * B, C, H, W).
        labels: int64 of shape (shards * B,).
        batch_size: The number of samples in the global batch, of whose mean loss it is a part.

    Returns:
        The gradient of each shard, by each parameter; the losses (shards * B,) and the outputs
        (shards * B, classes), without gradients.
    """
    views = replica.views(shards)
    losses, outputs = forward(state, replica.network, images, labels)
    gradients = torch.autograd.grad(
        *(state.scaler.scale(losses), views, loss_gradients(losses, 1 / batch_size)),
        materialize_grads=True,  # zeros, if a shard does not use a parameter
    )
    return replica.split(gradients), losses.detach(), outputs.detach()


def can_be_stacked(state: TrainingState, shards: int) -> bool:
    """Return whether calls of any number of shards compute the same gradients, to the bit.

    It is tried with random images. The answer is the same on every rank.

    Args:
        shards: Of a batch.
    """
    network = replicate(state.model).train()
    linear = [layer for layer in network.modules() if type(layer) is nn.Linear]
    weights = {id(p) for layer in linear for p in layer.parameters()}
    whole = Replica(network, is_stacked=False)
    is_good = not whole.buffers and all(id(p) in weights for p in whole.views(1))
    if is_good:
        stacked = Replica(replicate(network), is_stacked=True)
        sizes = {
            rounded for b in state.order.batch_sizes for rounded in (b // shards, -(-b // shards))
        }
        for samples in sizes - {0}:
            is_good = is_good and _gives_same_bits(state, whole, stacked, samples, shards)
    (is_bad,) = all_reduce_max(state.world, [not is_good])
    return not is_bad


def _gives_same_bits(
    state: TrainingState, whole: Replica, stacked: Replica, samples: int, shards: int
) -> bool:
    """Try shards of one size in calls of one shard and of more, and without stacking."""
    shape, classes = state.config.data.image_shape, len(state.splits.classes)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (shards * samples, *shape), generator=generator, dtype=torch.uint8)
    labels = torch.randint(classes, (shards * samples,), generator=generator)

    def gradients(replica: Replica, first: int, count: int) -> torch.Tensor:
        part = slice(first * samples, (first + count) * samples)
        found, *_ = shard_gradients(state, replica, images[part], labels[part], count, samples)
        return torch.stack([torch.cat([t.flatten() for t in term]) for term in found])

    try:
        alone = torch.cat([gradients(stacked, shard, 1) for shard in range(shards)])
        plain = torch.cat([gradients(whole, shard, 1) for shard in range(shards)])
        are_equal = all(
            torch.equal(gradients(stacked, first, count), alone[first : first + count])
            for count in range(2, shards + 1)
            for first in range(0, shards - count + 1, count)
        )
    except Exception:  # it counts its samples, for example
        return False
    return are_equal and bool((alone - plain).norm() <= 1e-3 * plain.norm())
