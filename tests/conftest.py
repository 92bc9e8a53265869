"""Property-based tests draw the same examples in every run and are not timed: a busy machine is no failure."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "weightprint", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("weightprint")
