"""Fitted experts: an editor for any backbone, without training."""

from .calibration import Calibration, calibrate
from .config import FittedConfig
from .editor import FittedExperts

__all__ = ["Calibration", "FittedConfig", "FittedExperts", "calibrate"]
