"""From a trained network to plans, a gate and its margins: search, targets, fit, calibration."""
