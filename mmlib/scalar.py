"""A scalar that remembers how it was made: backpropagation from nothing but the chain rule."""

import math
from collections.abc import Callable
from numbers import Real
from typing import Any


class Value:
    """A number that remembers its parents, the values it was computed from, and its derivatives with respect to them.

    `data` is the number. `grad` is d result / d self, summed over all calls of `result.backward()`, and 0 before.
    Operands may be plain numbers.

    Raises TypeError for an operand that is not a real number; ValueError, ZeroDivisionError or OverflowError where a
    value or a derivative would not be a finite number, such as log 0, 1 / 0, 0 ** -1 or exp 1000.
    Rumelhart et al. (1986).

    >>> x = Value(3.0)
    >>> y = x * x + 2 * x
    >>> y.backward()
    >>> y.data, x.grad
    (15.0, 8.0)
    """

    __slots__ = ("_parents", "data", "grad")

    def __init__(self, data: float) -> None:
        if not isinstance(data, Real):
            raise TypeError(f"Value: a real number is needed, got {data!r} of type {type(data).__name__}")
        self.data: float = float(data)
        self.grad: float = 0.0
        self._parents: tuple[tuple[Value, float], ...] = ()

    def __repr__(self) -> str:
        return f"Value(data={self.data:g}, grad={self.grad:g})"

    # Each operation in one line: its value, then its derivative with respect to every operand.

    def __add__(self, other: "Operand") -> "Value":
        return _made("sum", lambda a, b: (a + b, 1, 1), self, other)

    def __sub__(self, other: "Operand") -> "Value":
        return _made("difference", lambda a, b: (a - b, 1, -1), self, other)

    def __mul__(self, other: "Operand") -> "Value":
        return _made("product", lambda a, b: (a * b, b, a), self, other)

    def __truediv__(self, other: "Operand") -> "Value":
        return _made("quotient", lambda a, b: (a / b, 1 / b, -a / b / b), self, other)

    def __pow__(self, other: "Operand") -> "Value":
        """a^k for a number k; for a Value b, a^b = exp(b log a), which needs a > 0."""
        if isinstance(other, Value):
            return (other * self.log()).exp()
        k = Value(other).data
        return _made(f"power {k:g}", lambda a: (math.pow(a, k), k * math.pow(a, k - 1) if k else 0), self)

    def __neg__(self) -> "Value":
        return _made("negative", lambda a: (-a, -1), self)

    def exp(self) -> "Value":
        """e to the power of this value."""
        return _made("exponential", lambda a: (math.exp(a), math.exp(a)), self)

    def log(self) -> "Value":
        """The natural logarithm; it needs a positive value."""
        return _made("logarithm", lambda a: (math.log(a), 1 / a), self)

    def tanh(self) -> "Value":
        """The hyperbolic tangent."""
        return _made("tanh", lambda a: (math.tanh(a), 1 - math.tanh(a) ** 2), self)

    def relu(self) -> "Value":
        """max(self, 0), with derivative 0 at the kink."""
        return _made("ReLU", lambda a: (max(a, 0), a > 0), self)

    __radd__, __rmul__ = __add__, __mul__

    def __rsub__(self, other: float) -> "Value":
        return Value(other) - self

    def __rtruediv__(self, other: float) -> "Value":
        return Value(other) / self

    def __rpow__(self, other: float) -> "Value":
        return Value(other) ** self

    def __deepcopy__(self, memo: dict[int, Any]) -> "Value":
        """A copy of this value and of all it was made from, however long the chain."""
        for value in _parents_first(self):
            if id(value) not in memo:
                memo[id(value)] = twin = Value(value.data)
                twin.grad = value.grad
                twin._parents = tuple((memo[id(parent)], local) for parent, local in value._parents)
        copied: Value = memo[id(self)]
        return copied

    def backward(self) -> None:
        """Adds d self / d value to the `grad` of every value that self was made from, and 1 to that of self.

        The chain rule: a value hands derivative * local derivative to each parent, once everything that was made from
        the value has handed over its share.
        """
        derivative = {self: 1.0}
        for value in reversed(_parents_first(self)):
            value.grad += derivative[value]
            for parent, local in value._parents:
                derivative[parent] = derivative.get(parent, 0.0) + derivative[value] * local


Operand = Value | float


def _made(name: str, f: Callable[..., tuple[float, ...]], *operands: Operand) -> Value:
    parents = [v if isinstance(v, Value) else Value(v) for v in operands]
    numbers = [p.data for p in parents]
    try:
        data, *local = f(*numbers)
        if not all(map(math.isfinite, (data, *local))):
            raise OverflowError
    except (ValueError, ArithmeticError) as error:
        what = f"the {name} of {' and '.join(map(str, numbers))}"
        raise type(error)(f"{what}: its value or its derivative is not a finite number") from None
    value = Value(data)
    value._parents = tuple(zip(parents, local, strict=True))
    return value


def _parents_first(result: Value) -> list[Value]:
    """All values behind `result`, and itself, each after its parents.

    Depth first, with a stack instead of recursion, so that a chain may be longer than Python's recursion limit.
    """
    order, seen, stack = [], set(), [(result, False)]
    while stack:
        value, parents_done = stack.pop()
        if parents_done:
            order.append(value)
        elif value not in seen:
            seen.add(value)
            stack.append((value, True))
            stack.extend((parent, False) for parent, _ in value._parents)
    return order
