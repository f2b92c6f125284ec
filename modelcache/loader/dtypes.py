"""The element types of safetensors, and what NumPy and PyTorch call them. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Dtype:
    """One element type.

    name: as headers spell it. bits: of one element; types below 8 are packed. numpy: its name in
    NumPy, or in `ml_dtypes` where `extra`. torch: its name there. Empty where there is none.
    """

    name: str
    bits: int
    numpy: str = ""
    torch: str = ""
    extra: bool = False
    floating: bool = False

    @property
    def item_bytes(self) -> int:
        """Bytes of an element; 0 for types that share bytes."""
        return self.bits // 8


_ALL: Final = (
    Dtype("BOOL", 8, "bool", "bool"),
    Dtype("U8", 8, "uint8", "uint8"),
    Dtype("I8", 8, "int8", "int8"),
    Dtype("U16", 16, "uint16", "uint16"),
    Dtype("I16", 16, "int16", "int16"),
    Dtype("U32", 32, "uint32", "uint32"),
    Dtype("I32", 32, "int32", "int32"),
    Dtype("U64", 64, "uint64", "uint64"),
    Dtype("I64", 64, "int64", "int64"),
    Dtype("F16", 16, "float16", "float16", floating=True),
    Dtype("BF16", 16, "bfloat16", "bfloat16", extra=True, floating=True),
    Dtype("F32", 32, "float32", "float32", floating=True),
    Dtype("F64", 64, "float64", "float64", floating=True),
    Dtype("C64", 64, "complex64", "complex64"),
    # Scaled types: what they hold means something only with their scales, so none is `floating`
    # in the sense that a caller's dtype replaces it.
    Dtype("F8_E4M3", 8, "float8_e4m3fn", "float8_e4m3fn", extra=True),
    Dtype("F8_E5M2", 8, "float8_e5m2", "float8_e5m2", extra=True),
    Dtype("F8_E8M0", 8, "float8_e8m0fnu", "float8_e8m0fnu", extra=True),
    Dtype("F8_E4M3FNUZ", 8, "float8_e4m3fnuz", "float8_e4m3fnuz", extra=True),
    Dtype("F8_E5M2FNUZ", 8, "float8_e5m2fnuz", "float8_e5m2fnuz", extra=True),
    Dtype("F6_E2M3", 6),
    Dtype("F6_E3M2", 6),
    Dtype("F4", 4),
)
DTYPES: Final = {dtype.name: dtype for dtype in _ALL}
