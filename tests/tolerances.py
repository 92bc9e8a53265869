"""The one table of tolerances, the same for every backend and every machine.

Loosening a figure is a commit of its own that says why.
"""

VARIANCE_RELATIVE = 1e-6
MEAN_IN_STANDARD_DEVIATIONS = 1e-6
SKEWNESS_ABSOLUTE = 1e-5
KURTOSIS_RELATIVE = 1e-5
ENERGY_RELATIVE = 1e-6
