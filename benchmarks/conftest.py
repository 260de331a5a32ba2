"""Settings of the micro-benchmarks, and their modules on the path."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(2)


def pytest_report_header() -> str:
    return f"threads of every side: {torch.get_num_threads()}; torch {torch.__version__}"
