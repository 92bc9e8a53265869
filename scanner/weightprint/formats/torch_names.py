"""What the names in a PyTorch pickle stand for: encodings and their sizes, storage classes, dtype objects."""

from __future__ import annotations

DTYPE_SIZES: dict[str, int] = {
    **{"f32": 4, "f16": 2, "bf16": 2, "f64": 8, "c32": 4, "c64": 8, "c128": 16},
    **{"f8_e4m3": 1, "f8_e5m2": 1, "f8_e4m3fnuz": 1, "f8_e5m2fnuz": 1, "f8_e8m0": 1, "f4_e2m1x2": 1},
    **{"i8": 1, "u8": 1, "i16": 2, "u16": 2, "i32": 4, "u32": 4, "i64": 8, "u64": 8, "bool": 1},
    **{"qint8": 1, "quint8": 1, "qint32": 4, "quint4x2": 1, "quint2x4": 1, "bytes": 1},
    **{"bits8": 1, "bits16": 2, "bits1x8": 1, "bits2x4": 1, "bits4x2": 1},
    **{f"{sign}int{bits}": 1 for sign in ("", "u") for bits in range(1, 8)},
}
"""Bytes per element of every dtype that a PyTorch storage can have; packed kinds count bytes, as PyTorch does."""

STORAGE_DTYPES: dict[str, str] = {
    "FloatStorage": "f32",
    "HalfStorage": "f16",
    "BFloat16Storage": "bf16",
    "DoubleStorage": "f64",
    "CharStorage": "i8",
    "ByteStorage": "u8",
    "ShortStorage": "i16",
    "IntStorage": "i32",
    "LongStorage": "i64",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "c64",
    "ComplexDoubleStorage": "c128",
    "QInt8Storage": "qint8",
    "QUInt8Storage": "quint8",
    "QInt32Storage": "qint32",
    "QUInt4x2Storage": "quint4x2",
    "QUInt2x4Storage": "quint2x4",
}
"""Storage classes of ``torch`` and ``torch.cuda`` -> dtype."""

TORCH_DTYPES: dict[str, str] = {
    "float32": "f32",
    "float16": "f16",
    "bfloat16": "bf16",
    "float64": "f64",
    "float8_e4m3fn": "f8_e4m3",
    "float8_e5m2": "f8_e5m2",
    "float8_e4m3fnuz": "f8_e4m3fnuz",
    "float8_e5m2fnuz": "f8_e5m2fnuz",
    "float8_e8m0fnu": "f8_e8m0",
    "float4_e2m1fn_x2": "f4_e2m1x2",
    "int8": "i8",
    "uint8": "u8",
    "int16": "i16",
    "uint16": "u16",
    "int32": "i32",
    "uint32": "u32",
    "int64": "i64",
    "uint64": "u64",
    "complex32": "c32",
    "complex64": "c64",
    "complex128": "c128",
    # the others keep PyTorch's own name
    **{name: name for name in ("bool", "qint8", "quint8", "qint32", "quint4x2", "quint2x4")},
    **{name: name for name in ("bits8", "bits16", "bits1x8", "bits2x4", "bits4x2")},
    **{name: name for name in (f"{sign}int{bits}" for sign in ("", "u") for bits in range(1, 8))},
}
"""Names of ``torch.dtype`` objects -> dtype."""
