"""A running fit of durations to two counts, for what has a price a call and a price a pixel."""

from __future__ import annotations

#: Weight of the past at each new measurement: some twenty count.
_KEPT = 0.95
#: Below it the counts have always been in one proportion.
_LEAST_DETERMINANT = 1e-6


class DurationFit:
    """Least squares of relative errors: seconds ≈ a · first + b · second, neither negative."""

    def __init__(self) -> None:
        self._first_first = self._first_second = self._second_second = 0.0
        self._first_s = self._second_s = 0.0

    def add(self, first: float, second: float, seconds: float) -> None:
        """``seconds``: more than 0."""
        x, y = first / seconds, second / seconds
        self._first_first = _KEPT * self._first_first + x * x
        self._first_second = _KEPT * self._first_second + x * y
        self._second_second = _KEPT * self._second_second + y * y
        self._first_s = _KEPT * self._first_s + x
        self._second_s = _KEPT * self._second_s + y

    def prices(self) -> tuple[float, float]:
        """Return the seconds of each count; (0, 0) before any measurement."""
        if not self._second_second:
            return 0.0, 0.0
        product = self._first_first * self._second_second
        determinant = product - self._first_second**2
        if determinant > _LEAST_DETERMINANT * product:
            first = self._first_s * self._second_second - self._second_s * self._first_second
            second = self._second_s * self._first_first - self._first_s * self._first_second
            if first >= 0 and second >= 0:
                return first / determinant, second / determinant
            if second < 0:
                return self._first_s / self._first_first, 0.0
        return 0.0, self._second_s / self._second_second
