"""Inputs of the kernel suite: matrices as raw bytes, laid between guard bytes, and what they hold in float64.

Codes are decoded here by torch's own conversions and summed by math.fsum, so that nothing is shared with a backend.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from weightprint_kernels.layout import ITEMSIZE, UINT8

FLOAT64 = npt.NDArray[np.float64]

TORCH_DTYPES = {
    "bf16": torch.bfloat16,
    "f16": torch.float16,
    "f32": torch.float32,
    "f8_e4m3": torch.float8_e4m3fn,
    "f8_e5m2": torch.float8_e5m2,
}
GUARDS = (0xFF, 0x43)
"""Fills of the bytes that do not belong to the matrix: NaN in every format at every alignment, and a finite value."""
GUARD_BYTES = 64


@dataclass(frozen=True)
class Case:
    """A matrix: codes as bytes [rows, columns * itemsize], ``lead`` bytes off alignment, ``gap`` bytes between rows."""

    name: str
    dtype: str
    raw: UINT8
    lead: int = 0
    gap: int = 0

    @property
    def rows(self) -> int:
        return self.raw.shape[0]

    @property
    def columns(self) -> int:
        return self.raw.shape[1] // ITEMSIZE[self.dtype]

    @property
    def offset(self) -> int:
        return GUARD_BYTES + self.lead

    @property
    def stride(self) -> int:
        return self.raw.shape[1] + self.gap

    def values(self) -> FLOAT64:
        """The elements, float64 [rows, columns]."""
        typed = torch.from_numpy(self.raw.reshape(-1).copy()).view(TORCH_DTYPES[self.dtype])
        values: FLOAT64 = typed.double().numpy().reshape(self.rows, self.columns)
        return values

    def guarded(self, guard: int) -> UINT8:
        """The bytes of a buffer that starts at a multiple of 64, read-only like a memory map."""
        length = self.offset + self.rows * self.stride + GUARD_BYTES
        room = np.full(length + 64, guard, np.uint8)
        start = -room.ctypes.data % 64
        data: UINT8 = room[start : start + length]
        body = data[self.offset : self.offset + self.rows * self.stride].reshape(self.rows, self.stride)
        body[:, : self.raw.shape[1]] = self.raw
        data.setflags(write=False)
        return data


@dataclass(frozen=True)
class Truth:
    """Moments of the finite elements, correctly rounded sums of float64 terms."""

    n_finite: int
    zeros: int
    abs_max: float
    mean: float
    m2: float
    m3: float
    m4: float


def truth(values: FLOAT64) -> Truth:
    finite = values[np.isfinite(values)]
    n = len(finite)
    if not n:
        return Truth(0, 0, 0.0, 0.0, 0.0, 0.0, 0.0)
    mean = math.fsum(finite) / n
    d = finite - mean
    powers = (math.fsum(d * d), math.fsum(d * d * d), math.fsum(d * d * d * d))
    if finite.min() == finite.max():
        powers = (0.0, 0.0, 0.0)
    return Truth(n, int((finite == 0).sum()), float(np.abs(finite).max()), mean, *powers)


def encode(values: npt.ArrayLike, dtype: str) -> UINT8:
    """Rounded to ``dtype``, as bytes [rows, columns * itemsize]. Finite values beyond the range are clamped."""
    wide = torch.from_numpy(np.atleast_2d(np.array(values, np.float64)))
    limit = torch.finfo(TORCH_DTYPES[dtype]).max
    clamped = torch.where(torch.isinf(wide), wide, wide.clamp(-limit, limit))
    raw: UINT8 = clamped.to(TORCH_DTYPES[dtype]).view(torch.uint8).numpy()
    return raw


SIZES = (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 127, 255, 257, 1023, 1024, 1025, 4095, 4097, 8191, 8192, 8193, 65_537)
LEADS = (1, 2, 3, 4, 7, 8, 13)
GAPS = (0, 1, 2, 6, 16)


def normal(shape: tuple[int, int], seed: int = 0, mean: float = 0.0, spread: float = 0.02) -> FLOAT64:
    return np.random.default_rng(seed).normal(mean, spread, shape)


def size_cases(dtype: str) -> list[Case]:
    """One row of every awkward length."""
    return [Case(f"size-{size}", dtype, encode(normal((1, size), size), dtype)) for size in SIZES]


def placement_cases(dtype: str) -> list[Case]:
    """Starts and strides that are not multiples of the element, of 16 bytes, or of anything."""
    cases = [Case(f"lead-{lead}", dtype, encode(normal((3, 65)), dtype), lead=lead) for lead in LEADS]
    cases += [Case(f"gap-{gap}", dtype, encode(normal((4, 64)), dtype), gap=gap) for gap in GAPS]
    # Rows of one full chunk and a rest, as wide matrices have.
    return [*cases, Case("two-chunks-a-row", dtype, encode(normal((2, 8192 + 48)), dtype), gap=16)]


def value_cases(dtype: str) -> list[Case]:
    """Distributions that float32 sums hold, special values included."""
    generator = np.random.default_rng(7)
    base = normal((2, 3000), 3)
    smallest = np.array([1, 2, 3, 5]) * float(torch.finfo(TORCH_DTYPES[dtype]).smallest_normal) / 8
    values = {
        "mean-100": normal((2, 5000), 1, mean=100, spread=10),
        "mean-100-narrow": normal((2, 5000), 2, mean=100, spread=0.5),
        "mean-minus-1": normal((1, 9000), 3, mean=-1, spread=0.02),
        "heavy-tails": 0.02 * generator.standard_t(3, (2, 5000)),
        "one-outlier": np.where(np.arange(6000).reshape(1, -1) == 4321, 20.0, normal((1, 6000), 4)),
        "sorted": np.sort(normal((1, 8192), 5)),
        "step": np.repeat([[100.0, 0.01]], 2500, axis=1).reshape(1, -1),
        "constants": np.repeat(normal((16, 1), 10, spread=1e-4), 777, axis=1),
        "constant-third": np.full((1, 8191), -1 / 3),
        "zeros": np.zeros((2, 700)),
        "minus-zeros": np.full((2, 700), -0.0),
        "sparse": base * (generator.random(base.shape) < 0.3),
        "one-nan": np.where(np.arange(base.size).reshape(base.shape) == 17, np.nan, base),
        "last-nan": np.where(np.arange(base.size).reshape(base.shape) == base.size - 1, np.nan, base),
        "mean-100-nan": np.where(generator.random((2, 3000)) < 0.01, np.nan, normal((2, 3000), 6, 100, 5)),
        "all-nan": np.full((2, 33), np.nan),
        "one-finite": np.where(np.arange(100).reshape(1, -1) == 50, 3.0, np.nan),
    }
    if dtype != "f8_e4m3":
        values["infinities"] = np.where(generator.random(base.shape) < 0.01, np.inf * np.sign(base), base)
        values["minus-infinity"] = np.where(np.arange(base.size).reshape(base.shape) == 3001, -np.inf, base)
    if dtype == "f32":
        values["far-from-zero"] = normal((2, 4000), 8, mean=1e4, spread=0.01)
    if dtype not in ("bf16", "f32"):
        values["subnormals"] = generator.choice(np.concatenate([smallest, -smallest]), (2, 3000))
    return [Case(name, dtype, encode(matrix, dtype)) for name, matrix in values.items()]


def extreme_cases(dtype: str) -> list[Case]:
    """Values whose powers float32 cannot hold; the float64 path must step in."""
    generator = np.random.default_rng(9)
    signs = generator.choice([-1.0, 1.0], (2, 1500))
    values = {
        "largest": signs * 3e38 * generator.random((2, 1500)),
        "largest-constant": np.full((2, 1500), 3e38),
        "largest-alternating": np.tile([3.3e38, -3.3e38], (2, 750)),
        "1e10": signs * 1e10 * generator.random((2, 1500)),
        "smallest": signs * 1e-40 * generator.random((2, 1500)),
        "smallest-constant": np.full((2, 1500), 1e-40),
        "1e-12": 1e-12 * generator.normal(size=(2, 1500)),
        "1e-22": 1e-22 * generator.normal(size=(2, 1500)),
        "1e-25": 1e-25 * generator.normal(size=(2, 1500)),
        "mixed-scales": generator.normal(size=(2, 1500)) * 10.0 ** generator.integers(-38, 38, (2, 1500)),
        "largest-and-nan": np.where(generator.random((2, 1500)) < 0.01, np.nan, signs * 3e38),
    }
    return [Case(name, dtype, encode(matrix, dtype)) for name, matrix in values.items()] if dtype in WIDE else []


WIDE = ("bf16", "f32")
"""Formats with the exponent range of float32."""


def tile_cases(dtype: str) -> list[Case]:
    """Matrices whose sizes sit at the edges of tiles and of what one program reads."""
    shapes = ((1, 1), (31, 129), (32, 128), (33, 512), (256, 80), (257, 513), (520, 24))
    cases = [Case(f"{rows}x{columns}", dtype, encode(normal((rows, columns), rows), dtype)) for rows, columns in shapes]
    cases += [Case(f"lead-{lead}", dtype, encode(normal((40, 70)), dtype), lead=lead) for lead in (1, 2, 3, 4, 8)]
    cases += [Case(f"gap-{gap}", dtype, encode(normal((40, 64)), dtype), gap=gap) for gap in GAPS]
    holed = normal((50, 60))
    holed[3, 5] = holed[49, 59] = np.nan
    holed[:, 7] = 0.0
    if dtype != "f8_e4m3":
        holed[0, 0], holed[20, 30] = np.inf, -np.inf
    return [*cases, Case("special", dtype, encode(holed, dtype))]


def rectangle_cases(dtype: str) -> list[Case]:
    """Matrices of more rows than are summed in float32 at a time, than a tile has, of more columns than a chunk; of
    whole cache lines and not; with and without a gap between rows."""
    itemsize = ITEMSIZE[dtype]
    line = 64 // itemsize
    shapes = ((1, 1), (2, line), (63, line + 1), (64, 2 * line), (65, 2 * line - 1), (129, 3), (257, line + 7))
    cases = [Case(f"{rows}x{columns}", dtype, encode(normal((rows, columns), rows), dtype)) for rows, columns in shapes]
    cases.append(Case("wider-than-a-chunk", dtype, encode(normal((3, 8192 + 2 * line + 5), 3), dtype), gap=itemsize))
    for lead, gap in ((1, 0), (3, 1), (0, 64 + itemsize), (itemsize, 13)):
        name = f"lead-{lead}-gap-{gap}"
        cases.append(Case(name, dtype, encode(normal((70, line + 9), 14), dtype), lead=lead, gap=gap))
    cases += [Case(case.name, dtype, case.raw, gap=itemsize) for case in _banded(dtype)]
    return cases


def _banded(dtype: str) -> list[Case]:
    """Of 150 rows the first band of 64 is healthy, the second holds what is special, and the last is healthy."""
    itemsize = ITEMSIZE[dtype]
    columns = 64 // itemsize + 3
    base = normal((150, columns), 15)
    holed, zeros, outlier, far = base.copy(), base.copy(), base.copy(), base.copy()
    holed[70, 1] = holed[127, columns - 1] = np.nan
    zeros[64:128] = 0
    zeros[:, 2] = -0.0
    outlier[100, 5] = 200.0
    far[64:128] += 30
    values = {"nan": holed, "zero": zeros, "outlier": outlier, "far": far}
    if dtype != "f8_e4m3":
        values["infinite"] = base.copy()
        values["infinite"][64, 0], values["infinite"][99, columns - 2] = np.inf, -np.inf
    if dtype in WIDE:
        # Squares and fourth powers that leave float32, and columns whose squares vanish beside those that do not.
        values["huge"], values["tiny"] = base.copy(), base.copy()
        values["huge"][64:128] *= 1e25
        values["tiny"][64:128, ::2] *= 1e-24
        values["tiny"][:, 3] = 1e-30
    return [Case(f"band-{name}", dtype, encode(matrix, dtype)) for name, matrix in values.items()]


def codes_moved(dtype: str, by: int) -> Case:
    """Every code in rows of 128, ``by`` elements further on than in code_case."""
    case = code_case(dtype, columns=128)
    itemsize = ITEMSIZE[dtype]
    return Case(f"codes-moved-{by}", dtype, np.roll(case.raw.reshape(-1), by * itemsize).reshape(case.raw.shape))


def negatives_case(dtype: str) -> Case:
    """A row for each magnitude: the code and its negative in turn, over two cache lines; of f32 the
    magnitudes of bf16."""
    itemsize = ITEMSIZE[dtype]
    bits = 8 * itemsize
    codes = np.arange(2 ** min(bits - 1, 15), dtype=np.int64) << max(bits - 16, 0)
    rows = np.repeat(codes[:, None], 128 // itemsize, axis=1)
    rows[:, 1::2] |= 1 << (bits - 1)
    return Case("negatives", dtype, rows.astype(f"<u{itemsize}").view(np.uint8))


def code_case(dtype: str, columns: int = 64) -> Case:
    """Every code of a 16-bit or 8-bit format, in order; of f32 those of bf16 with a lower half."""
    codes = np.arange(256, dtype=np.uint8) if ITEMSIZE[dtype] == 1 else np.arange(65_536, dtype="<u2")
    if ITEMSIZE[dtype] == 4:
        codes = (codes.astype("<u4") << 16) | np.random.default_rng(1).integers(0, 65_536, 65_536).astype("<u4")
    return Case("all-codes", dtype, codes.view(np.uint8).reshape(-1, columns * ITEMSIZE[dtype]))
