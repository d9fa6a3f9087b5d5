"""Training without what enlarges rounding errors, to compare runs that sum in another order."""

from functools import partial

import torch
import torch.nn.functional as F


def softplus(x: torch.Tensor, inplace: bool = False) -> torch.Tensor:
    return F.softplus(x, beta=10)


# of which module, what, and what takes its place
STEADY = (
    # divides by the gradient's size, also where that is almost zero
    (torch.optim, "Adam", partial(torch.optim.Adam, eps=1.0)),
    # of an input near to zero, rounding decides whether the gradient passes
    (F, "relu", softplus),
)
