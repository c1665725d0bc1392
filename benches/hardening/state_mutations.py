"""Random mutations of JSON values: wrong types, lengths, ranges and names at a random place."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Iterator
from typing import Any

ODD: tuple[Any, ...] = (
    None,
    True,
    False,
    "",
    "web",
    "1",
    "\ud800",
    0,
    1,
    -1,
    0.5,
    -0.0,
    5e-324,
    1e-308,
    1e-9,
    1e6,
    1e300,
    -1e300,
    math.nan,
    math.inf,
    -math.inf,
    2**63,
    10**400,
    [],
    [[]],
    [None],
    {},
    {"a": 1},
)


def mutate(value: Any, generator: random.Random) -> Any:
    """Return a copy of ``value`` with one to three mutations at random places."""
    mutated = [copy.deepcopy(value)]  # in a list, so that the whole value has a place as well
    for _ in range(generator.randint(1, 3)):
        holder, key = generator.choice(list(places(mutated)))
        if holder is mutated:
            mutated[0] = copy.deepcopy(generator.choice(ODD))
        else:
            change(holder, key, generator)
    return mutated[0]


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the container and the key of every value in ``value``."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from places(value[key])


def change(holder: Any, key: Any, generator: random.Random) -> None:
    """Replace, scale, remove, repeat or rename the value at ``key``."""
    value = holder[key]
    kind = generator.randrange(6)
    if kind == 0 and isinstance(value, int):
        holder[key] = generator.choice([-value, value + 1, value - 1, value // 3, 2 * value])
    elif kind == 0 and isinstance(value, float):
        holder[key] = generator.choice([-value, value + 1, value / 3, value * 1.5, value + 1e-7])
    elif kind == 1:
        del holder[key]
    elif kind == 2 and isinstance(holder, list):
        holder.insert(key, copy.deepcopy(value))
    elif kind == 2:
        holder[generator.choice(["", "extra", str(key).upper()])] = value
    elif kind == 3:
        holder[key] = copy.deepcopy(generator.choice([other[at] for other, at in places(holder)]))
    else:
        holder[key] = copy.deepcopy(generator.choice(ODD))
