"""What passes ask of a node."""

from __future__ import annotations

import torch.fx

from tsc.graph import op_of


def is_op(node: torch.fx.Node, op: str) -> bool:
    return node.op == "call_function" and op_of(node) == op


def is_result(node: torch.fx.Node) -> bool:
    """It has a place of its own, which a view has not."""
    return any(user.op == "output" for user in node.users)
