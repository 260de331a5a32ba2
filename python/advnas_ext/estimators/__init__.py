"""Estimators of the gradient of the expected loss with respect to the logits. A new one is one file and one line of ESTIMATORS."""

from advnas_ext.estimators.advantage import AdvantageEstimator
from advnas_ext.estimators.base import Estimator
from advnas_ext.estimators.critic import CriticEstimator
from advnas_ext.estimators.darts import DartsEstimator
from advnas_ext.estimators.gdas import GdasEstimator
from advnas_ext.estimators.nasp import NaspEstimator
from advnas_ext.estimators.parsec import ParsecEstimator
from advnas_ext.estimators.proxyless import ProxylessEstimator
from advnas_ext.estimators.random import RandomEstimator
from advnas_ext.estimators.reinforce import ReinforceEstimator
from advnas_ext.estimators.relaxed import RelaxedPath
from advnas_ext.estimators.rloo import RlooEstimator
from advnas_ext.estimators.snas import SnasEstimator
from advnas_ext.estimators.swap import SwapEstimator

ESTIMATORS: dict[str, type[Estimator]] = {
    "advantage": AdvantageEstimator,
    "reinforce": ReinforceEstimator,
    "parsec": ParsecEstimator,
    "gdas": GdasEstimator,
    "proxyless": ProxylessEstimator,
    "darts": DartsEstimator,
    "snas": SnasEstimator,
    "nasp": NaspEstimator,
    "random": RandomEstimator,
    "rloo": RlooEstimator,
    "swap": SwapEstimator,
    "critic": CriticEstimator,
}

__all__ = [
    "ESTIMATORS",
    "AdvantageEstimator",
    "CriticEstimator",
    "DartsEstimator",
    "Estimator",
    "GdasEstimator",
    "NaspEstimator",
    "ParsecEstimator",
    "ProxylessEstimator",
    "RandomEstimator",
    "ReinforceEstimator",
    "RelaxedPath",
    "RlooEstimator",
    "SnasEstimator",
    "SwapEstimator",
]
