"""``python -m advnas_ext.info``: what was built, and what this machine offers."""

import platform

import torch

from advnas_ext import _C, _load


def report() -> str:
    """A line a fact: versions, compiler, instruction sets, CUDA targets, threads."""
    build = _load.BUILD
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    facts = {
        "advnas-ext": _load.VERSION,
        "torch": f"{torch.__version__} (built for {build['torch']})",
        "Python": platform.python_version(),
        "compiler": build["compiler"],
        "instruction set": f"{_C.isa()} (compiled: {_C.isas()}; ADVNAS_ISA chooses)",
        "CUDA kernels": f"CUDA {build['cuda']}: {' '.join(build['cuda_targets'])}" if build["cuda"] else "not built",
        "GPU": gpu,
        "threads": str(torch.get_num_threads()),
    }
    width = max(map(len, facts))
    return "\n".join(f"{name:<{width}}  {fact}" for name, fact in facts.items())


if __name__ == "__main__":
    print(report())
