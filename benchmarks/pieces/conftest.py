"""Settings of the micro-benchmarks."""

import torch

torch.set_num_threads(2)


def pytest_report_header() -> str:
    return f"threads of every side: {torch.get_num_threads()}; torch {torch.__version__}"
