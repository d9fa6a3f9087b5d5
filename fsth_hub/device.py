"""Where and in which numbers a pipeline computes, when nobody says."""

import torch


def default_device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def default_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device has instructions for it: float16 overflows to black on some GPUs."""
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        native = capabilities.get("avx512_bf16", False) or capabilities.get("amx_bf16", False)
        native = native and torch.backends.cpu.get_cpu_capability() != "AVX2"  # asked for (ATEN_CPU_CAPABILITY)
    else:
        native = False
    return torch.bfloat16 if native else torch.float32
