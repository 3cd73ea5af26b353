"""What every communicator must do. Run by each worker of a job: `comm_conformance.py BACKEND SIZE`.

Prints `conforms` on rank 0; the first wrong value raises.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from ddp_gd.comm import agree, open_communicator
from ddp_gd.comm.base import Communicator
from ddp_gd.errors import MismatchError

SUMMED = ["float32", "float64", "float16", "bfloat16", "int32", "int64", "uint8", "int8"]
SUMMED += ["int16", "uint16", "uint32", "uint64", "bool"]
MOVED = [*SUMMED, "complex64"]


def same(actual: tf.Tensor, expected: object, dtype: str | None = None) -> None:
    """Equal values, shape and dtype, exactly."""
    values = tf.convert_to_tensor(expected, dtype or actual.dtype)
    assert actual.dtype == values.dtype, (actual.dtype, values.dtype)
    assert actual.shape == values.shape, (actual.shape, values.shape)
    assert np.array_equal(actual.numpy(), values.numpy()), (actual, values)


def ways(function: Callable) -> list[Callable]:
    """The function as it is, and as a graph."""
    return [function, tf.function(function)]


def allreduce_adds_in_every_dtype(comm: Communicator) -> None:
    """Sums are exact in every dtype, together and alone, empty tensors included."""
    n, r = comm.size, comm.rank
    for call in ways(lambda *tensors: comm.allreduce_sum(tensors)):
        values = [tf.cast(tf.constant([[r, 1], [2, 3]]), dtype) for dtype in SUMMED]
        for total, dtype in zip(call(*values), SUMMED, strict=True):
            summed = tf.constant([[n * (n - 1) // 2, n], [2 * n, 3 * n]])
            same(total, tf.cast(summed, dtype), dtype)
    assert comm.allreduce_sum([]) == []
    scalar, empty, row = comm.allreduce_sum(
        [tf.constant(1.5), tf.zeros([0, 3]), tf.ones([2], tf.float32)]
    )
    same(scalar, 1.5 * n)
    same(empty, np.zeros([0, 3]))
    same(row, [n, n])
    same(comm.allreduce_sum([tf.zeros([0], tf.int64)])[0], np.zeros([0]))
    # Unsigned sums wrap around, as they do in TensorFlow.
    same(comm.allreduce_sum([tf.constant([200], tf.uint8)])[0], [200 * n % 256])
    big = 2**63 + 5
    total = comm.allreduce_sum([np.array([big], np.uint64)])[0]
    same(total, np.array([big * n % 2**64], np.uint64))


def float_sums_have_the_same_bits_on_every_worker(comm: Communicator) -> None:
    """Float sums differ by rounding from the exact ones, and not at all between workers."""
    for shape in [(3,), (1000,), (300_001,)]:
        mine = np.random.default_rng(comm.rank).normal(size=shape).astype("float32")
        total = comm.allreduce_sum([mine])[0]
        bits = tf.bitcast(total, tf.int32)[None]
        everyone = comm.allgather(bits)
        assert everyone.shape[0] == comm.size
        assert (everyone.numpy() == everyone.numpy()[0]).all()
        exact = sum(
            np.random.default_rng(r).normal(size=shape).astype("float32").astype("float64")
            for r in range(comm.size)
        )
        np.testing.assert_allclose(total, exact, rtol=0, atol=1e-5)


def large_tensors_travel_beside_small_ones(comm: Communicator) -> None:
    """A buffer of one large tensor, and one of several small ones, end where they belong."""
    n, r = comm.size, comm.rank
    shapes = [(5,), (600, 500), (3, 2), (300_000,), (1,), (2**17,)]
    dtypes = ["float32", "float32", "float32", "float16", "int64", "int64"]
    mine = [
        tf.cast(tf.reshape(tf.range(np.prod(shape)) % 7 + 100 * r, shape), dtype)
        for shape, dtype in zip(shapes, dtypes, strict=True)
    ]
    for call in ways(lambda *tensors: comm.allreduce_sum(tensors)):
        for total, shape, dtype in zip(call(*mine), shapes, dtypes, strict=True):
            expected = np.arange(np.prod(shape)).reshape(shape) % 7 * n + 50 * n * (n - 1)
            same(total, expected, dtype)
    for call in ways(lambda *tensors: comm.broadcast(tensors)):
        for value, shape, dtype in zip(call(*mine), shapes, dtypes, strict=True):
            same(value, np.arange(np.prod(shape)).reshape(shape) % 7, dtype)


def allgather_keeps_the_order_of_ranks(comm: Communicator) -> None:
    """Rows arrive in the order of ranks, also where a worker has none."""
    n, r = comm.size, comm.rank
    for call in ways(comm.allgather):
        for dtype in MOVED:
            # rank r brings r rows, so rank 0 none
            mine = tf.cast(tf.fill([r, 2], r), dtype)
            rows = [[q, q] for q in range(n) for _ in range(q)]
            same(call(mine), tf.cast(tf.reshape(tf.constant(rows, tf.int32), [-1, 2]), dtype))
    same(comm.allgather(tf.constant([r], tf.int64)), list(range(n)))
    same(comm.allgather(tf.zeros([0, 4])), np.zeros([0, 4]))
    same(comm.allgather(tf.zeros([r + 1, 0])), np.zeros([n * (n + 1) // 2, 0]))


def alltoall_delivers_each_slice(comm: Communicator) -> None:
    """Each slice arrives where it was sent, also where there is nothing to send."""
    n, r = comm.size, comm.rank
    for call in ways(comm.alltoall):
        for dtype in MOVED:
            # rank r sends (r + q) % 3 rows to rank q, each holding (r, q)
            counts = [(r + q) % 3 for q in range(n)]
            sent = [[r, q] for q in range(n) for _ in range(counts[q])]
            mine = tf.cast(tf.reshape(tf.constant(sent, tf.int32), [-1, 2]), dtype)
            rows = [[q, r] for q in range(n) for _ in range((q + r) % 3)]
            same(
                call(mine, tf.constant(counts, tf.int32)),
                tf.cast(tf.reshape(tf.constant(rows, tf.int32), [-1, 2]), dtype),
            )
    nothing = comm.alltoall(tf.zeros([0, 2]), tf.zeros([n], tf.int32))
    same(nothing, np.zeros([0, 2]))


def another_thread_exchanges_beside(comm: Communicator) -> None:
    """What another thread exchanges meanwhile arrives, and neither waits for the other."""
    beside = comm.beside()
    assert beside is not None
    assert (beside.rank, beside.size) == (comm.rank, comm.size)
    n, r = comm.size, comm.rank
    together = threading.Event()
    found: list[Any] = []

    def exchange() -> None:
        if r % 2:  # while the others are in it already, and in the one below
            together.wait(60)
        for number in range(3):
            texts = agree.gather_json(beside, "x" * (r + number))
            assert texts == ["x" * (rank + number) for rank in range(n)]
            rows = beside.allgather(tf.zeros([r + number, 3], tf.uint8))
            assert rows.shape == (sum(range(n)) + n * number, 3)
            splits = [number + rank for rank in range(n)]
            arrived = beside.alltoall(tf.fill([sum(splits)], r), tf.constant(splits))
            found.append(arrived.numpy().tolist())

    thread = threading.Thread(target=exchange)
    thread.start()
    for _ in range(3):
        same(comm.allreduce_sum([tf.ones([])])[0], float(n))
        same(comm.allgather(tf.fill([1], r)), list(range(n)))
    together.set()
    thread.join(60)
    assert found == [[s for s in range(n) for _ in range(i + r)] for i in range(3)]


def broadcast_gives_rank_0s(comm: Communicator) -> None:
    """Every worker gets rank 0's bytes."""
    for call in ways(lambda *tensors: comm.broadcast(tensors)):
        mine = [tf.cast(tf.constant([[comm.rank, 1]]), dtype) for dtype in MOVED]
        for value, dtype in zip(call(*mine), MOVED, strict=True):
            same(value, tf.cast(tf.constant([[0, 1]]), dtype))
    text = np.frombuffer(b"any bytes" if comm.rank == 0 else b"ANY BYTES", np.uint8)
    assert comm.broadcast([text])[0].numpy().tobytes() == b"any bytes"
    nan = np.array([0x7FC12345], np.uint32).view("float32")
    assert comm.broadcast([nan])[0].numpy().tobytes() == nan.tobytes()


def loops_may_hold_several_collectives(comm: Communicator) -> None:
    """Two independent collectives an iteration; neither needs the iteration before."""
    n, r, steps = comm.size, comm.rank, 300

    @tf.function
    def run(steps: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        def body(i, sums, rows, products):
            # of another shape on every worker
            gathered = comm.allgather(tf.fill([(i + r) % 3, 2], i + r))
            # mixed dtypes
            a, b = comm.allreduce_sum([tf.fill([5], i), tf.cast(tf.fill([2, 2], i + r), "float32")])
            got = comm.alltoall(tf.fill([n], i * 10 + r), tf.ones([n], tf.int32))
            return (
                i + 1,
                sums + tf.reduce_sum(a) + tf.cast(tf.reduce_sum(b), tf.int32),
                rows + tf.reduce_sum(gathered),
                products + tf.reduce_sum(got),
            )

        zero = tf.constant(0)
        _, sums, rows, products = tf.while_loop(
            lambda i, *_: i < steps, body, (zero, zero, zero, zero), parallel_iterations=10
        )
        after = comm.allreduce_sum([sums])[0]
        return sums, rows, products, after

    sums, rows, products, after = run(tf.constant(steps))
    each = [5 * n * i + 4 * sum(i + q for q in range(n)) for i in range(steps)]
    same(sums, sum(each))
    same(rows, sum(2 * ((i + q) % 3) * (i + q) for i in range(steps) for q in range(n)))
    same(products, sum(10 * i + q for i in range(steps) for q in range(n)))
    same(after, n * sum(each))


def graphs_that_differ_between_workers_still_meet(comm: Communicator) -> None:
    """Unused results, constant inputs and equal calls are neither dropped, folded nor merged."""

    @tf.function
    def run(x: tf.Tensor) -> tf.Tensor:
        unused = comm.allreduce_sum([x * 2])[0]
        if comm.rank == 0:
            x += 0.0 * unused[0]
        # A constant here on one worker, and equal constants on some.
        mine = tf.constant([1.0, 1.0]) if comm.rank == 0 else x
        a = comm.allreduce_sum([mine])[0]
        b = comm.allreduce_sum([tf.constant([1.0, 1.0]) if comm.rank < 2 else mine])[0]
        c = comm.allgather(tf.zeros([0, 2]) if comm.rank == 0 else mine[None])
        d = tf.cond(x[0] > 0, lambda: comm.allreduce_sum([x])[0], lambda: x)
        return tf.concat([a, b, d, c[:, 0]], axis=0)

    for _ in range(3):
        n = comm.size
        same(run(tf.ones([2])), [n] * 6 + [1] * (n - 1))


def slow_workers_are_waited_for(comm: Communicator) -> None:
    """The barrier opens when the last worker has come."""
    comm.barrier()
    start = time.monotonic()
    if comm.rank == comm.size - 1:
        time.sleep(0.5)
    comm.barrier()
    assert time.monotonic() - start > 0.45


def time_in_collectives_is_waiting_not_computing(comm: Communicator) -> None:
    """A worker's own slowness is not measured, waiting for a slower worker is."""
    seconds = comm.measure()

    def slow(value: np.ndarray) -> np.ndarray:
        time.sleep(0.2 if comm.rank == 0 else 0.0)
        return value

    @tf.function
    def run() -> tf.Tensor:
        value = tf.ones([3])
        for _ in tf.range(3):
            rows = tf.ensure_shape(tf.numpy_function(slow, [value], tf.float32), [3])
            rows = comm.alltoall(rows[: comm.size], tf.ones([comm.size], tf.int32))
            value = comm.allreduce_sum([tf.ones([3]) * tf.reduce_sum(rows) * 0 + 1])[0]
        return value

    comm.barrier()
    same(run(), [comm.size] * 3)
    if comm.size == 1:
        assert seconds() == 0
    elif comm.rank == 0:
        assert 0 < seconds() < 0.5
    else:
        assert 0.3 < seconds() < 10


def values_of_any_kind_are_gathered(comm: Communicator) -> None:
    """Whatever JSON can hold arrives, in the order of ranks, however long each one's is."""
    n, r = comm.size, comm.rank
    for value in ({"rank": r, "text": "ä" * r}, [r, None, True, 0.5], "x" * r):
        everyone = agree.gather_json(comm, value)
        assert len(everyone) == n
        assert everyone[r] == value
    assert agree.gather_json(comm, {"rank": r, "text": "ä" * r}) == [
        {"rank": q, "text": "ä" * q} for q in range(n)
    ]


def one_says_so_for_all(comm: Communicator) -> None:
    """A flag of any worker, a number of rank 0, and a seed that nobody gave are known to all."""
    n, r = comm.size, comm.rank
    assert agree.any_worker(comm, r == n - 1)
    assert not agree.any_worker(comm, False)
    assert agree.from_rank_0(comm, 2**40 + r) == 2**40
    np.random.seed(r)
    seed = agree.shared_seed(comm, None)
    assert agree.gather_json(comm, seed) == [seed] * n
    np.random.seed(0)
    assert seed == np.random.randint(2**31)
    assert agree.shared_seed(comm, 7 + r) == 7 + r


def what_was_given_must_be_the_same(comm: Communicator) -> None:
    """Who differs from rank 0, in what, and both values are told alike on every worker."""
    n, r = comm.size, comm.rank
    agree.require_same_facts(comm, {"rows": "10"})
    if n == 1:
        return
    facts = {"rows": "10", "model": f"{min(r, 1)}" * 1000} | ({"new": "a"} if r == 1 else {})
    try:
        agree.require_same_facts(comm, facts)
        raise AssertionError("a difference was not noticed")
    except MismatchError as error:
        text = str(error)
    others = "rank 1" if n == 2 else f"ranks {', '.join(map(str, range(1, n)))}"
    assert "model: rank 0 has '000" in text, text
    assert f"{others} '111" in text, text
    assert "new: rank 0 has nothing, rank 1 'a'" in text, text
    assert "rows" not in text, text
    assert len(text) < 700, text
    assert agree.gather_json(comm, text) == [text] * n


def main(backend: str, size: int) -> None:
    """Run every check."""
    comm = open_communicator(backend)
    tf.get_logger().setLevel("ERROR")  # it warns about tracing, which is half of the point here
    assert isinstance(comm, Communicator)
    assert (comm.size, comm.local_size, comm.local_rank) == (size, size, comm.rank), vars(comm)
    for check in (
        allreduce_adds_in_every_dtype,
        float_sums_have_the_same_bits_on_every_worker,
        large_tensors_travel_beside_small_ones,
        allgather_keeps_the_order_of_ranks,
        alltoall_delivers_each_slice,
        another_thread_exchanges_beside,
        broadcast_gives_rank_0s,
        loops_may_hold_several_collectives,
        graphs_that_differ_between_workers_still_meet,
        slow_workers_are_waited_for,
        time_in_collectives_is_waiting_not_computing,
        values_of_any_kind_are_gathered,
        one_says_so_for_all,
        what_was_given_must_be_the_same,
    ):
        check(comm)
        if "-v" in sys.argv:
            print(comm.rank, check.__name__, file=sys.stderr, flush=True)
    comm.barrier()
    if comm.rank == 0:
        print(f"conforms: {comm.name}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
