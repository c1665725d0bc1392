"""Types of the compiled part."""

from collections.abc import Callable
from typing import Literal

from numpy import bool_, float64
from numpy.typing import NDArray

__version__: str

_Status = Literal["center", "interior", "boundary", "face"]
_Solution = tuple[NDArray[float64], float, _Status, float, float, NDArray[float64], NDArray[bool_]]
Solver = Callable[[NDArray[float64], NDArray[float64], float, float], _Solution]

def worst_case(losses: NDArray[float64], p: NDArray[float64], rho: float, floor: float) -> _Solution: ...
def project(y: NDArray[float64], p: NDArray[float64], rho: float, floor: float) -> _Solution: ...
