"""Products of matrices in several versions, the simulated cache, tf32 and convolutions as products,
of notebooks/matmul.py.
"""

import functools
import importlib
import inspect
import linecache
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import loader
from loader import NOTEBOOKS, definitions

net = definitions("matmul")


def integers(*size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-8, 9, size).astype(np.float32)


def whole(*size: int) -> torch.Tensor:
    return torch.from_numpy(integers(*size))


# ---- products --------------------------------------------------------------------------------------


def test_three_loops_on_a_case_by_hand():
    assert net.three_loops([[1, 2], [3, 4], [5, 6]], [[1, 0, 2], [0, 1, 3]]) == [
        [1, 2, 8],
        [3, 4, 18],
        [5, 6, 28],
    ]


@pytest.mark.parametrize("name", ["ijk", "ikj", "blocked", "packed", "torch_product"])
@pytest.mark.parametrize(
    "size", [(1, 1, 1), (5, 3, 2), (6, 16, 32), (65, 70, 130), (101, 300, 67), (193, 257, 33)]
)
def test_each_version_is_exact_on_integers(name, size):
    n, p, m = size
    a, b = integers(n, p), integers(p, m, seed=1)
    expected = a.astype(np.int64) @ b.astype(np.int64)
    assert np.array_equal(net.product(getattr(net, name), a, b), expected)


@pytest.mark.parametrize("name", ["ijk", "ikj", "blocked", "packed"])
def test_a_version_adds_to_what_c_holds(name):
    a, b = integers(7, 9), integers(9, 20, seed=1)
    c = np.ones((7, 20), np.float32)
    getattr(net, name)(a, b, c)
    assert np.array_equal(c, a @ b + 1)


def test_a_product_starts_from_zeros_of_its_shape():
    a, b = integers(3, 2), integers(2, 4)
    seen = []
    c = net.product(lambda a, b, c: seen.append(c.copy()), a, b)
    assert c.shape == (3, 4) and c.dtype == np.float32
    assert not seen[0].any()


def test_the_micro_kernel_is_a_sum_of_outer_products():
    column_panel, row_panel = integers(11, net.MR), integers(11, net.NR, seed=1)
    out = np.full((net.MR, net.NR), 99, np.float32)
    net.micro_kernel(column_panel, row_panel, out)
    assert np.array_equal(out, column_panel.T @ row_panel)


def test_the_micro_kernel_takes_panels_that_begin_anywhere():
    def shifted(rows: int, columns: int) -> np.ndarray:
        return integers(rows * columns + 1)[1:].reshape(rows, columns)

    column_panel, row_panel = shifted(3, net.MR), shifted(3, net.NR)
    out = shifted(net.MR, net.NR)
    net.micro_kernel(column_panel, row_panel, out)
    assert np.array_equal(out, column_panel.T @ row_panel)


def test_the_micro_kernel_without_depth_gives_zeros():
    out = np.full((net.MR, net.NR), 99, np.float32)
    net.micro_kernel(integers(0, net.MR), integers(0, net.NR), out)
    assert not out.any()


def test_the_tile_of_the_micro_kernel():
    lanes = 16 if "AVX512" in torch.backends.cpu.get_cpu_capability() else 8
    assert lanes == net.LANES
    assert (net.MR, net.NR) == (6, 2 * net.LANES)
    assert net.MC % net.MR == 0, "a block of rows ends with a panel"


def test_panels_by_hand():
    x = np.arange(8, dtype=np.float32).reshape(4, 2)[:3]
    panels = np.full((2, 4, 2), 9, np.float32)
    net.pack(x, panels)
    assert panels.tolist() == [
        [[0, 2], [1, 3], [9, 9], [9, 9]],
        [[4, 0], [5, 0], [9, 9], [9, 9]],
    ]


def test_panels_of_a_transposed_matrix():
    x = integers(5, 7)
    panels = np.empty((3, 5, 3), np.float32)
    net.pack(x.T, panels)
    for p in range(3):
        rows = x.T[3 * p : 3 * p + 3]
        assert np.array_equal(panels[p, :, : len(rows)], rows.T)


def test_the_peak_is_made_of_as_many_products_as_it_says():
    column, row = np.full(net.MR, 2, np.float32), np.arange(net.NR, dtype=np.float32)
    out = np.empty((net.MR, net.NR), np.float32)
    net.multiply_adds(5, column, row, out)
    assert np.array_equal(out, np.tile(10 * row, (net.MR, 1)))


def test_operations_a_second_take_the_fastest_of_three(monkeypatch):
    clock = iter([0, 4, 10, 12, 20, 25])
    monkeypatch.setattr(net.time, "thread_time", lambda: next(clock))
    called = []
    assert net.operations_a_second(lambda: called.append(1), 100, calls=3) == 150
    assert len(called) == 9


def test_the_peak_counts_two_operations_for_each_number_of_the_tile(monkeypatch):
    clock = iter([0, 1, 1, 2, 2, 3])
    monkeypatch.setattr(net.time, "thread_time", lambda: next(clock))
    assert net.peak(10) == 2 * net.MR * net.NR * 10


def test_the_share_of_the_bound_by_hand():
    a = b = np.ones((1, 1), np.float32)
    u = Fraction(1, 2**24)
    bound = u / (1 - u)
    c = np.array([[1 + 2.0**-23]], np.float32)
    assert net.share_of_bound(c, a, b) == pytest.approx(float(2 * u / bound))
    assert net.share_of_bound(c, -a, -b) == pytest.approx(float(2 * u / bound))
    assert net.share_of_bound(np.ones((1, 1), np.float32), a, b) == 0


def test_the_bound_grows_with_the_number_of_products():
    a, b = np.ones((1, 4), np.float32), np.ones((4, 1), np.float32)
    c = np.array([[4 + 2.0**-21]], np.float32)
    u = 2.0**-24
    assert net.share_of_bound(c, a, b) == pytest.approx(8 * u / (4 * (4 * u / (1 - 4 * u))))


# ---- the cache -------------------------------------------------------------------------------------


def test_a_cache_forgets_what_was_used_longest_ago():
    cache = net.Cache(2)
    for line in (1, 2, 1, 3):  # 2 goes, for 1 was used again
        cache.touch(line)
    assert cache.misses == 3
    cache.touch(1)
    assert cache.misses == 3
    cache.touch(2)
    assert cache.misses == 4
    assert list(cache.held[0]) == [1, 2]


@pytest.mark.parametrize("lines", [1, 3, 8])
def test_a_cache_misses_as_often_as_the_one_of_functools(lines):
    other = functools.lru_cache(maxsize=lines)(lambda line: None)
    cache = net.Cache(lines)
    for line in np.random.default_rng(0).integers(0, 10, 500).tolist():
        cache.touch(line)
        other(line)
        assert cache.misses == other.cache_info().misses


def test_a_cache_of_sets_looks_in_one_of_them():
    cache = net.Cache(4, sets=2)
    for line in (0, 2, 4, 0):  # three lines for a set of two
        cache.touch(line)
    assert cache.misses == 4
    cache.touch(1)
    cache.touch(1)
    assert cache.misses == 5
    with pytest.raises(AssertionError, match="as many lines"):
        net.Cache(5, sets=2)


def test_the_steps_of_each_order():
    assert list(net.steps(2, "ijk"))[:3] == [(0, 0, 0), (0, 0, 1), (0, 1, 0)]
    assert list(net.steps(2, "ikj"))[:3] == [(0, 0, 0), (0, 1, 0), (0, 0, 1)]
    assert list(net.steps(2, "kji"))[:3] == [(0, 0, 0), (1, 0, 0), (0, 1, 0)]
    assert list(net.steps(2, "jki"))[:5:2] == [(0, 0, 0), (0, 0, 1), (0, 1, 0)]


@pytest.mark.parametrize("order", ["ijk", "kij"])
@pytest.mark.parametrize("tile", [0, 2, 3, 5])
def test_all_orders_take_each_step_once(order, tile):
    taken = Counter(net.steps(5, order, tile))
    assert len(taken) == 125 and set(taken.values()) == {1}


def test_tiles_are_finished_one_after_the_other():
    first = list(net.steps(4, "ijk", 2))[:8]
    assert set(first) == {(i, j, k) for i in (0, 1) for j in (0, 1) for k in (0, 1)}
    assert list(net.steps(4, "ijk", 2))[8] == (0, 0, 2)


def touched(n: int, order: str, tile: int = 0, compute=None) -> list[int]:
    """The lines that a run touches, in their order."""

    class Notes:
        misses = 0
        lines = []

        def touch(self, line):
            self.lines.append(line)

    notes = Notes()
    notes.lines = []
    if compute:
        compute(n, notes)
    else:
        net.misses(n, order, tile, notes)
    return notes.lines


def test_the_lines_of_the_three_matrices():
    lines = touched(32, "ijk")
    step = (5 * 32 + 20) * 32 + 17  # i = 5, j = 20, k = 17
    assert lines[3 * step : 3 * step + 3] == [5 * 2 + 1, (32 + 17) * 2 + 1, (64 + 5) * 2 + 1]
    assert max(lines) == 3 * 64 - 1 and len(set(lines)) == 3 * 64


def test_a_cache_has_64_lines_if_none_is_given():
    assert net.misses(64, "ijk") == net.misses(64, "ijk", cache=net.Cache(64))


def test_a_row_that_fills_no_whole_line_takes_one_more():
    assert len(set(touched(17, "ijk"))) == 3 * 17 * 2


def test_a_large_cache_fetches_each_line_once():
    assert net.misses(32, "ijk", cache=net.Cache(1000)) == 3 * 32 * 32 // 16


@pytest.mark.parametrize("n", [80, 96])
def test_the_formulas_by_hand(n):
    assert net.formula(n, "ijk") == n**3 + n**3 // 16 + n**2 // 16
    assert net.formula(n, "ikj") == n**3 // 16 + n**2 // 8
    assert net.formula(n, "tiles of 16") == n**3 // 128 + n**2 // 16


@pytest.mark.parametrize("name", ["ijk", "ikj", "tiles of 16"])
def test_the_simulation_finds_what_the_formula_says(name):
    order, tile = net.ORDERS[name]
    assert net.misses(80, order, tile) == net.formula(80, name)


def test_a_packed_tile_lies_in_lines_that_follow_each_other():
    lines = touched(32, "ikj", compute=net.packed_misses)
    assert len(set(lines)) == max(lines) + 1 == 3 * 64
    first = lines[: 3 * 16**3]
    assert set(first[::3]) == set(range(16))
    assert set(first[1::3]) == set(range(64, 80))
    assert set(first[2::3]) == set(range(128, 144))
    second = lines[3 * 16**3 : 6 * 16**3]  # the order ikj: the next tiles along j
    assert set(second[::3]) == set(range(16))
    assert set(second[1::3]) == set(range(80, 96))
    assert set(second[2::3]) == set(range(144, 160))
    below = lines[3 * 4 * 16**3 : 3 * 5 * 16**3]
    assert set(below[::3]) == set(range(32, 48))


def test_packed_tiles_need_no_more_than_the_formula_in_a_cache_of_sets():
    assert net.packed_misses(64, net.Cache(64, 8)) <= 1.1 * net.formula(64, "tiles of 16")


# ---- tiles in a fast memory -------------------------------------------------------------------------


@pytest.mark.parametrize("tile", [(1, 1), (2, 3), (4, 4), (6, 6), (7, 9)])
def test_tiles_give_the_product_and_count_their_loads(tile):
    a, b = whole(6, 5), whole(5, 8)
    c, loads = net.tiled(a, b, *tile)
    assert torch.equal(c, a @ b)
    high, wide = -(-6 // tile[0]), -(-8 // tile[1])
    assert loads == 5 * (6 * wide + 8 * high)


def test_an_expression_waits_and_is_one_loop():
    net.Vector.moved = Counter()
    a, b = net.Vector([1.0, 2.0]), net.Vector([10.0, 20.0])
    waits = a + b + a
    assert net.Vector.moved == {}
    assert isinstance(waits, net.Sum) and not hasattr(waits, "values")
    assert net.evaluate(waits, 2).values == [12.0, 24.0]
    assert net.Vector.moved == {"read": 6, "written": 2}
    net.Vector.moved = Counter()


# ---- Triton ----------------------------------------------------------------------------------------


@pytest.fixture
def triton(monkeypatch):
    """The package; the interpreter reads the source of a kernel, so it gets what was loaded."""
    package = pytest.importorskip("triton")
    net.tile_kernel.__globals__["tl"] = importlib.import_module("triton.language")
    name = inspect.getfile(net.tile_kernel)
    lines = loader.source(NOTEBOOKS / "matmul.py").splitlines(True)
    monkeypatch.setitem(linecache.cache, name, (0, None, lines, name))
    return package


@pytest.mark.parametrize("size", [(1, 1, 1), (16, 16, 16), (33, 20, 50)])
def test_the_kernel_of_triton_is_exact_on_integers(triton, size):
    n, p, m = size
    a, b = whole(n, p), whole(p, m)
    kernel = net.as_kernel(net.tile_kernel, interpret=True)
    assert torch.equal(net.launch(kernel, a, b), a @ b)


def test_the_kernel_of_triton_writes_within_its_matrix(triton):
    kernel = net.as_kernel(net.tile_kernel, interpret=True)
    a, b = whole(5, 3), whole(3, 7)
    room = torch.full((8, 7), 99.0)
    kernel[(1, 1)](a, b, room, 5, 7, 3, T=16)
    assert torch.equal(room[:5], a @ b)
    assert torch.equal(room[5:], torch.full((3, 7), 99.0))


def test_the_switch_of_triton_is_as_it_was(triton):
    for before in (False, True):
        triton.knobs.runtime.interpret = before
        try:
            kernel = net.as_kernel(net.tile_kernel, interpret=not before)
            assert triton.knobs.runtime.interpret is before
            assert (type(kernel).__name__ == "InterpretedFunction") is not before
        finally:
            triton.knobs.runtime.interpret = False


# ---- tf32 ------------------------------------------------------------------------------------------


def test_tf32_by_hand():
    step = 2.0**-10
    x = torch.tensor([1, 1 + step, 1 + step / 2, 1 + 3 * step / 2, 1 + step / 2 + 2.0**-23])
    expected = torch.tensor([1, 1 + step, 1 + step, 1 + 2 * step, 1 + step])
    assert torch.equal(net.to_tf32(x), expected)
    assert torch.equal(net.to_tf32(-x), -expected)
    below = torch.tensor([1 + step / 2 - 2.0**-23, 2 - 2.0**-23, 0.0])
    assert torch.equal(net.to_tf32(below), torch.tensor([1.0, 2.0, 0.0]))


def test_tf32_has_ten_bits_and_is_the_nearest():
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    short = net.to_tf32(x)
    mantissa, _ = torch.frexp(short)
    assert torch.equal(mantissa * 2**11, (mantissa * 2**11).round())
    assert ((short - x).abs() <= x.abs() * 2.0**-11).all()
    assert torch.equal(net.to_tf32(short), short)


def test_the_relative_error_by_hand():
    a, b = torch.tensor([[1.0, 2.0]]), torch.tensor([[2.0, 0.0], [1.0, 4.0]])
    c = torch.tensor([[4.0, 7.0]])  # 8 is exact
    assert net.relative_error(c, a, b) == 1 / 8
    assert net.relative_error(-c, a, b) == 15 / 8


# ---- convolutions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 3])
def test_windows_as_columns_are_conv2d(k):
    x, weight = whole(3, 6, 8), whole(4, 3, k, k)
    assert torch.equal(net.im2col(x, weight), F.conv2d(x[None], weight)[0])


@pytest.mark.parametrize("m", [2, 4])
def test_winograd_is_conv2d(m):
    x, weight = whole(3, 2 * m + 2, 3 * m + 2).double(), whole(4, 3, 3, 3).double()
    expected = F.conv2d(x[None], weight)[0]
    torch.testing.assert_close(net.winograd(x, weight, m), expected, rtol=0, atol=1e-9)


def test_winograd_with_halves_is_exact_on_integers():
    x, weight = whole(3, 6, 8), whole(4, 3, 3, 3)
    assert torch.equal(net.winograd(x, weight, 2), F.conv2d(x[None], weight)[0])


@pytest.mark.parametrize("size", [(7, 8), (8, 7)])
def test_winograd_wants_whole_tiles(size):
    with pytest.raises(AssertionError, match="outputs in tiles of 2"):
        net.winograd(torch.zeros(1, *size), torch.zeros(1, 1, 3, 3), 2)


@pytest.mark.parametrize("m", [2, 4])
def test_a_tile_takes_a_product_for_each_of_its_numbers(m):
    kernels, tiles = torch.zeros(5, 3, m + 2, m + 2), torch.zeros(3, 2, 7, m + 2, m + 2)
    assert net.products_of(net.multiply, kernels, tiles) == 5 * 3 * 2 * 7 * (m + 2) ** 2


# ---- Strassen --------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 4, 8])
def test_strassen_takes_seven_products_for_each_halving(n):
    a, b = whole(n, n), torch.from_numpy(integers(n, n, seed=1))
    c, count = net.strassen(a, b)
    assert torch.equal(c, a @ b)
    assert count == {1: 1, 2: 7, 4: 49, 8: 343}[n]
