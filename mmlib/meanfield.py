"""What theory predicts for the numbers that are measured at the start: expectations over random weights."""

import math

import torch

_SPACING = 0.25  # the trapezoidal rule's error is exp(-pi^2 / spacing), 1e-17, for integrands this smooth
_TAIL = 10.0  # standard deviations; the mass beyond is 2e-23


def expected_first_loss(std: float, classes: int) -> float:
    """The cross-entropy, in nats, to expect of logits that are independent draws from N(0, std^2): E logsumexp(std Z).

    Logits that know nothing of the target contribute E[-logit of the target] = 0. The expectation over all classes
    V is two nested integrals over one variable each: if S = sum_i exp(std Z_i) and G has the Gumbel distribution
    P(G <= u) = exp(-exp(-u)), then log S + G <= u has the probability F(u)^V with F(u) = E exp(-exp(std Z - u)), so

        E log S = int [exp(-exp(-u)) - F(u)^V] du.

    log V for std = 0; log V + (1 - 1/V) std^2 / 2 for small std; std * E max_i Z_i for large. The error is below 1e-9
    up to std = 30. Raises ValueError for a std that is negative or not finite, or fewer than one class.
    """
    if not (math.isfinite(std) and std >= 0):
        raise ValueError(f"std: a finite number, 0 or more, is needed, got {std}")
    if classes < 1:
        raise ValueError(f"classes: at least 1 is needed, got {classes}")
    spacing = _SPACING / max(1.0, std)
    z = torch.arange(-_TAIL, _TAIL + spacing, spacing, dtype=torch.float64)
    weight = spacing * torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    u = torch.arange(-_TAIL * std - 5, _TAIL * std + 40, _SPACING, dtype=torch.float64)  # from log V on
    below = torch.exp(-torch.exp(std * z - u[:, None]) / classes) @ weight
    return math.log(classes) + _SPACING * float((torch.exp(-torch.exp(-u)) - below**classes).sum())
