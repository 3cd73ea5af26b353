"""One model on every worker: built, compared with rank 0's, given rank 0's values, checked."""

import hashlib
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ddp_gd.comm.agree import from_rank_0
from ddp_gd.comm.base import Communicator
from ddp_gd.errors import NumericsError, ReplicaError
from ddp_gd.steps.keras_private import global_seed
from ddp_gd.steps.state import non_trainable_variables, optimizers


def fingerprint(model: keras.Model) -> str:
    """SHA-256 over the trainable and then the non-trainable variables, in model order.

    Each enters with its dtype, its shape and its little-endian bytes, so equal fingerprints mean
    equal bits.

    Args:
        model: built.

    Returns:
        64 hexadecimal digits.
    """
    return _digest([*model.trainable_variables, *model.non_trainable_variables]).hex()


def synchronize(
    communicator: Communicator, model: keras.Model, with_optimizer: bool = True
) -> None:
    """Give every worker rank 0's weights, other state and optimizer state."""
    if communicator.size == 1:
        return
    mine = variables(model, with_optimizer)
    if from_rank_0(communicator, global_seed() is not None):  # something may have drawn there alone
        mine.append(global_seed(make=True))
    values = [tf.convert_to_tensor(v.value) for v in mine]
    for variable, value in zip(mine, communicator.broadcast(values), strict=True):
        variable.assign(value)


def check(
    communicator: Communicator, model: keras.Model, draws_globally: bool, since: str, now: str
) -> None:
    """Compare the workers' copies of the model and the optimizer, bit for bit.

    Args:
        communicator: the workers.
        model: its copy on this worker.
        draws_globally: whether it draws from Keras's global generator. Otherwise that is the
            user's, who may draw from it on some workers only.
        since: when they were last found the same, "epoch 2".
        now: what has just been made, "epoch 3".

    Raises:
        ReplicaError: on every worker, naming the ranks that differ from the others.
    """
    if communicator.size == 1:
        return
    compared = [*variables(model), *([global_seed()] if draws_globally else [])]
    own = np.frombuffer(_digest(compared), np.uint8)
    digests = communicator.allgather(tf.constant(own[None])).numpy()  # (workers, 32)
    ranks: dict[bytes, list[int]] = {}
    for rank, row in enumerate(digests):
        ranks.setdefault(row.tobytes(), []).append(rank)
    if len(ranks) == 1:
        return
    *few, most = sorted(ranks.values(), key=len)
    if 2 * len(most) > len(digests):
        parted = ", ".join(str(rank) for group in few for rank in group)
        text = f"rank {parted} no longer has the same bits as the others'"
    else:
        groups = " and ".join(", ".join(map(str, group)) for group in sorted(ranks.values()))
        text = f"ranks {groups} are no longer the same bits, and no majority tells which are right"
    raise ReplicaError(
        f"After {now} the model or optimizer of {text}: a callback that changes weights on some "
        f"workers only, or a memory error. They were the same after {since}. Remove the "
        "checkpoints that were saved later, and go on from the last one before."
    )


def require_finite(model: keras.Model, now: str) -> None:
    """Refuse to go on with, or to save, weights that are not numbers.

    Raises:
        NumericsError: quoting `now`, what has just been made.
    """
    for weight in model.trainable_variables:
        if not bool(tf.reduce_all(tf.math.is_finite(weight.value))):
            raise NumericsError(
                f"After {now} the weight {weight.path} is NaN or infinite: a gradient was, or the "
                "learning rate is too high. Lower it, or clip the gradient (global_clipnorm); a "
                "checkpoint that was saved before can be gone on with."
            )


def variables(model: keras.Model, with_optimizer: bool = True) -> list[Any]:
    """What training changes and all workers agree on, in a fixed order: weights to optimizer.

    Keras's global seed isn't among them: it may come into being at any time.
    """
    found = [*model.trainable_variables, *non_trainable_variables(model)]
    for optimizer in optimizers(model) if with_optimizer else ():
        found += optimizer.variables
    return found


def _digest(variables: list[Any]) -> bytes:
    digest = hashlib.sha256()
    for variable in variables:
        value = np.ascontiguousarray(variable.value.numpy())
        digest.update(f"{value.dtype.name}{list(value.shape)}".encode())
        value = value.astype(value.dtype.newbyteorder("<"), copy=False)
        digest.update(value.reshape(-1).view(np.uint8).data)  # bfloat16 has no buffer of its own
    return digest.digest()
