"""Published figures of GPUs: what an SM holds, from the table of compute capabilities in NVIDIA's CUDA programming guide; bandwidth
and peaks from NVIDIA's data sheets, without sparsity."""

from __future__ import annotations

from dataclasses import dataclass

WARP = 32


@dataclass(frozen=True)
class Limits:
    """Of a streaming multiprocessor. Registers are given to a warp in units of 256, warps of a block come in fours."""

    warps: int
    blocks: int
    shared: int
    """Bytes, all blocks together."""
    shared_unit: int
    reserved: int
    """Bytes of shared memory that each block loses to the system."""
    registers: int = 65536

    def occupancy(self, threads: int, registers: int, shared: int) -> float:
        """The part of the SM's warps that run, with ``threads``, ``shared`` bytes a block and ``registers`` a thread."""
        warps = -(-threads // WARP)
        registers_of_warp = -(-registers * WARP // 256) * 256
        by_registers = self.registers // registers_of_warp // 4 * 4 // warps
        bytes_of_block = -(-(shared + self.reserved) // self.shared_unit) * self.shared_unit
        by_shared = self.shared // bytes_of_block if bytes_of_block else self.blocks
        return min(self.blocks, self.warps // warps, by_registers, by_shared) * warps / self.warps


LIMITS = {
    75: Limits(32, 16, 64 << 10, 256, 0),
    80: Limits(64, 32, 164 << 10, 128, 1024),
    86: Limits(48, 16, 100 << 10, 128, 1024),
    89: Limits(48, 24, 100 << 10, 128, 1024),
    90: Limits(64, 32, 228 << 10, 128, 1024),
    100: Limits(64, 32, 228 << 10, 128, 1024),
    120: Limits(48, 24, 100 << 10, 128, 1024),
}


@dataclass(frozen=True)
class Gpu:
    """``target``: its compute capability, 80 for 8.0. Rates: GB/s, and TFLOP/s of multiply-adds that count as two.

    Attributes:
        fp32: multiply-adds outside of tensor cores.
        tf32, bf16: of the library's convolutions; where tensor cores do not take the type, ``fp32``.
    """

    name: str
    target: int
    bandwidth: float
    fp32: float
    tf32: float
    bf16: float


GPUS = (
    Gpu("T4", 75, 320, 8.1, 8.1, 8.1),
    Gpu("A100 80GB", 80, 2039, 19.5, 156, 312),
    Gpu("RTX 4090", 89, 1008, 82.6, 82.6, 165.2),
    Gpu("H100 SXM", 90, 3350, 67, 494.7, 989.4),
)
"""Of the tables that are made without a GPU."""
H200 = Gpu("H200", 90, 4800, 67, 494.7, 989.4)  # the arithmetic of an H100, and more memory
CARDS = (*GPUS, H200)
