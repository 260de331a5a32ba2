"""advnas_ext: fused one-path forward and backward with the advantage of every edge, and the estimators of AdvantageNAS.

Needs torch only. See the README for the drop-in example.
"""

from advnas_ext import _load  # first: says why the compiled part cannot be loaded, where it cannot
from advnas_ext.budget import Budget, PathCost
from advnas_ext.cell import OnePathCell
from advnas_ext.choice import OnePathChoice
from advnas_ext.estimators import (
    ESTIMATORS,
    AdvantageEstimator,
    CriticEstimator,
    DartsEstimator,
    Estimator,
    GdasEstimator,
    NaspEstimator,
    ParsecEstimator,
    ProxylessEstimator,
    RandomEstimator,
    ReinforceEstimator,
    RlooEstimator,
    SnasEstimator,
    SwapEstimator,
)
from advnas_ext.explain import explain
from advnas_ext.gate import gate
from advnas_ext.knapsack import best_paths
from advnas_ext.operations import NAS_BENCH_201
from advnas_ext.path import Path
from advnas_ext.recurrent import DartsRecurrentCell, OnePathRecurrentCell
from advnas_ext.search import Search

__version__ = _load.VERSION

__all__ = [
    "ESTIMATORS",
    "NAS_BENCH_201",
    "AdvantageEstimator",
    "Budget",
    "CriticEstimator",
    "DartsEstimator",
    "DartsRecurrentCell",
    "Estimator",
    "GdasEstimator",
    "NaspEstimator",
    "OnePathCell",
    "OnePathChoice",
    "OnePathRecurrentCell",
    "ParsecEstimator",
    "Path",
    "PathCost",
    "ProxylessEstimator",
    "RandomEstimator",
    "ReinforceEstimator",
    "RlooEstimator",
    "Search",
    "SnasEstimator",
    "SwapEstimator",
    "best_paths",
    "explain",
    "gate",
]
