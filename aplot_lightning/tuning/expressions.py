"""Arithmetic over a search space's parameters, such as ``1 - share``: read by Python's parser, never run by it."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

from aplot_lightning.errors import UserError

BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


class Expression:
    """Numbers, parameters' names, ``+ - * / // %`` and parentheses; a name alone may hold a value of any kind.

    Args:
        text: the expression, or a number.
        where: the key that holds it, for messages.

    Raises:
        UserError: anything else stands in it.
    """

    def __init__(self, text: str | float, where: str) -> None:
        self.text, self.where = str(text), where
        try:
            self._tree = ast.parse(self.text, mode="eval").body
        except (SyntaxError, ValueError) as error:
            raise UserError(f"{where}: {self.text!r} is no arithmetic; write such as 1 - share") from error
        self.names = {node.id for node in ast.walk(self._tree) if isinstance(node, ast.Name)}
        self._check(self._tree)

    @property
    def is_name(self) -> bool:
        """Whether it is a parameter's name and nothing else."""
        return isinstance(self._tree, ast.Name)

    def __call__(self, values: Mapping[str, Any]) -> Any:
        """Its value where names have these values. Raises UserError where they cannot be reckoned with."""
        try:
            return self._value(self._tree, values)
        except (TypeError, ZeroDivisionError, OverflowError) as error:
            raise UserError(f"{self.where}: {self.text!r} cannot be reckoned: {error}") from error

    def _check(self, node: ast.expr) -> None:
        if isinstance(node, ast.BinOp) and type(node.op) in BINARY:
            self._check(node.left)
            self._check(node.right)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
            self._check(node.operand)
        elif not (isinstance(node, ast.Name) or (isinstance(node, ast.Constant) and type(node.value) in (int, float))):
            raise UserError(
                f"{self.where}: {ast.unparse(node)!r} may not stand in {self.text!r}: only numbers, parameters' names, "
                "+ - * / // % and parentheses"
            )

    def _value(self, node: ast.expr, values: Mapping[str, Any]) -> Any:
        if isinstance(node, ast.BinOp):
            left, right = self._value(node.left, values), self._value(node.right, values)
            if isinstance(left, str) or isinstance(right, str):
                raise TypeError("a text is no number")
            return BINARY[type(node.op)](left, right)
        if isinstance(node, ast.UnaryOp):
            value = self._value(node.operand, values)
            return -value if isinstance(node.op, ast.USub) else +value
        if isinstance(node, ast.Name):
            return values[node.id]
        assert isinstance(node, ast.Constant)
        return node.value
