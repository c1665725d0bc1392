"""Types of the compiled part."""

from typing import Literal

from numpy import bool_, float64
from numpy.typing import NDArray

__version__: str

_Status = Literal["center", "interior", "boundary", "face"]
_Solution = tuple[NDArray[float64], float, _Status, float, float, NDArray[float64], NDArray[bool_]]

def worst_case(losses: NDArray[float64], p: NDArray[float64], rho: float, floor: float) -> _Solution: ...
def project(y: NDArray[float64], p: NDArray[float64], rho: float, floor: float) -> _Solution: ...
