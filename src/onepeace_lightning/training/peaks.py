"""Peak arithmetic of known devices, which MFU is a fraction of."""

import re
from typing import NamedTuple

import torch


class Peak(NamedTuple):
    """Dense (not sparse) TFLOP/s of a device's data sheet.

    Attributes:
        half: bfloat16 and float16 on tensor cores.
        tf32: float32 matrices multiplied as TF32.
        single: float32 outside of tensor cores.
    """

    half: float
    tf32: float
    single: float


# Where a data sheet gives the tensor cores' figure with sparsity only, half of it. The pattern is of the driver's whole
# name: cut-down, custom and partitioned devices (H800, A100 64GB, MIG) are other devices.
PEAKS: dict[str, Peak] = {
    r"B200": Peak(2250, 1125, 75),
    r"GH200 (480GB|144G HBM3e)": Peak(989.5, 494.5, 67),
    r"H200": Peak(989.5, 494.5, 67),
    r"H200 NVL": Peak(835.5, 417.5, 60),
    r"H100 80GB HBM3": Peak(989.5, 494.5, 67),  # SXM
    r"H100 NVL": Peak(835.5, 417.5, 60),
    r"H100 PCIe": Peak(756.5, 378, 51),
    r"A100(-SXM4-|-PCIE-| )(40|80)GB( PCIe)?": Peak(312, 156, 19.5),
    r"A40": Peak(149.7, 74.8, 37.4),
    r"A30": Peak(165, 82, 10.3),
    r"A10": Peak(125, 62.5, 31.2),
    r"L40S": Peak(362.05, 183, 91.6),
    r"L40": Peak(181.05, 90.5, 90.5),
    r"L4": Peak(121, 60, 30.3),
}
"""Pattern of the driver's name, without NVIDIA, to the data sheet's peaks."""


def peak_flops(device_name: str, precision: str) -> float | None:
    """FLOP/s of a device at a precision, None where either is not known.

    Args:
        device_name: as ``torch.cuda.get_device_name`` gives it.
        precision: as Lightning's ``Trainer.precision`` gives it; ``32-true`` multiplies as
            ``torch.get_float32_matmul_precision`` says.
    """
    name = re.sub(r"^(NVIDIA|Tesla) ", "", device_name)
    peak = next((peak for pattern, peak in PEAKS.items() if re.fullmatch(pattern, name)), None)
    if peak is None:
        return None
    if precision in ("bf16-mixed", "bf16-true", "16-mixed", "16-true"):
        return peak.half * 1e12
    if precision == "32-true":
        return (peak.single if torch.get_float32_matmul_precision() == "highest" else peak.tf32) * 1e12
    return None
