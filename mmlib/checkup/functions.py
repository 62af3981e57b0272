"""The names of the functions that a watch looks out for."""

from typing import Any

from mmlib.checkup.row import BOUNDED

FROM_OUTPUT = BOUNDED | {"relu"}  # whose output tells the slope
ENDS = frozenset(
    {"softmax", "log_softmax", "softplus", "exp", "leaky_relu", "hardsigmoid", "logsigmoid", "abs", "square"}
)
DROPOUT = frozenset({"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"})
DROPOUT |= {"scaled_dot_product_attention"}
MOVES = frozenset(
    [
        "view",
        "reshape",
        "flatten",
        "permute",
        "transpose",
        "t",
        "unsqueeze",
        "squeeze",
        "movedim",
        "swapaxes",
        "contiguous",
        "to",
        "float",
        "double",
        "half",
        "clone",
        "cat",
        "concat",
        "concatenate",
        "stack",
        "hstack",
        "__getitem__",
        "expand",
        "__get__",
        "unflatten",
    ]
)
ELEMENTWISE = frozenset(
    [
        "add",
        "sub",
        "rsub",
        "mul",
        "div",
        "pow",
        "__radd__",
        "__rsub__",
        "__rmul__",
        "__rtruediv__",
        "maximum",
        "minimum",
    ]
)
ELEMENTWISE |= {"true_divide", "subtract", "multiply", "divide", "eq", "ne", "__eq__", "__sub__", "__add__", "__mul__"}


def dropout_share(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    """The share that a call of a dropout function drops, 0 if it drops none."""
    if name == "scaled_dot_product_attention":
        return float(kwargs.get("dropout_p", args[4] if len(args) > 4 else 0.0))
    if name not in DROPOUT or not kwargs.get("training", args[2] if len(args) > 2 else True):
        return 0.0
    return float(kwargs.get("p", args[1] if len(args) > 1 else 0.5))
