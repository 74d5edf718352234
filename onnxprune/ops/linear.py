"""Matrix products, with weights and of two activations."""

from __future__ import annotations

from typing import ClassVar

from onnxprune.ops.elementwise import tie_broadcast, zeros_along
from onnxprune.ops.rule import Atoms, Factor, Rule, Ties, Unknown, View, every_axis


def contract(node: Ties, left: Atoms, *others: Atoms) -> None:
    """Tie the axes that operands are summed over.

    What the ops before made of a removed slice must add nothing: one operand, a weight mostly, must be zero there.
    """
    for other in others:
        node.tie(left, other)
    if not any(map(node.is_zero, (left, *others))):
        node.freeze(left, "it multiplies operands none of which is zero for a removed channel")


class Gemm(Rule):
    """Gemm: columns of A meet rows of B, columns of B make the output."""

    ops: ClassVar[tuple[str, ...]] = ("Gemm",)
    right: ClassVar[int] = 1
    bias: ClassVar[int] = 2

    def ties(self, node: Ties) -> None:
        """Tie the contracted axes, and the rest to the output."""
        a, b, y = node.x, node.input(self.right), node.y
        over_a, over_b = self._contracted(node)
        contract(node, a[over_a], b[over_b])
        node.tie(a[1 - over_a], y[0])
        node.tie(b[1 - over_b], y[1])
        if node.has_input(self.bias):
            tie_broadcast(node, [node.input(self.bias)], y)
            for axis, atoms in enumerate((a[1 - over_a], b[1 - over_b])):
                node.set_zero(y[axis], node.zeros(atoms) & zeros_along(node, self.bias, y, axis))

    def macs(self, node: View) -> list[list[Factor]]:
        """Rows times columns times the contracted size."""
        return [[(node.y, 1), (node.y, 0), (node.x, self._contracted(node)[0])]]

    @staticmethod
    def _contracted(node: View) -> tuple[int, int]:
        return (0 if node.attribute("transA", 0) else 1), (1 if node.attribute("transB", 0) else 0)


class MatMul(Rule):
    """MatMul; leading axes broadcast."""

    ops: ClassVar[tuple[str, ...]] = ("MatMul",)
    zero: ClassVar[str] = "any"
    right: ClassVar[int] = 1  # the second operand's place among the inputs

    def ties(self, node: Ties) -> None:
        """Tie the contracted axes, and the rest to the output."""
        a, b, y = node.x, node.input(self.right), node.y
        contract(node, a[-1], b[-2 if len(b) > 1 else 0])
        if len(a) > 1:
            node.tie(a[-2], y[-2 if len(b) > 1 else -1])
        if len(b) > 1:
            node.tie(b[-1], y[-1])
        batch = len(y) - (len(a) > 1) - (len(b) > 1)
        tie_broadcast(node, [a, b], y, axes=range(batch), trailing=2)

    def macs(self, node: View) -> list[list[Factor]]:
        """Every output number sums over the contracted axis."""
        y, x = node.y, node.x
        factors = every_axis(y)
        return [[*factors[-1:], *factors[:-1], (x, len(x) - 1)]]


class Einsum(Rule):
    """Einsum, each label an axis."""

    ops: ClassVar[tuple[str, ...]] = ("Einsum",)
    zero: ClassVar[str] = "any"

    def ties(self, node: Ties) -> None:
        """Tie the axes of equal labels; those that are missing in the output are summed over."""
        terms, result = self._labels(node)
        operands = [node.input(position) for position in range(len(terms))]
        if any(len(set(term)) < len(term) for term in terms):
            raise Unknown("its equation has diagonals")
        for term, operand in zip(terms, operands, strict=True):
            for axis, label in enumerate(term):
                if label in result:
                    made = node.y[result.index(label)]
                    if len(operand[axis]) != len(made):
                        raise Unknown("its unnamed axes are stretched")
                    node.tie(operand[axis], made)
        for label in sorted({label for term in terms for label in term} - set(result)):
            self._sum(node, [o[term.index(label)] for term, o in zip(terms, operands, strict=True) if label in term])

    @staticmethod
    def _sum(node: Ties, summed: list[Atoms]) -> None:
        if len({len(atoms) for atoms in summed}) > 1:
            raise Unknown("an axis that it sums over is stretched")
        if len(summed) > 1:
            contract(node, *summed)
        elif node.is_zero(summed[0]):
            node.free(summed[0])

    def macs(self, node: View) -> list[list[Factor]]:
        """Operands meet one after another; each product sums over the labels that nothing behind it has."""
        terms, result = self._labels(node)
        place = {label: (node.y, axis) for axis, label in reversed(list(enumerate(result)))}
        for position, term in enumerate(terms):
            for axis, label in enumerate(term):
                place.setdefault(label, (node.input(position), axis))
        found, made = list[list[Factor]](), set(terms[0])
        for number, term in enumerate(terms[1:], start=2):
            made |= set(term)
            found.append([factor for label, factor in place.items() if label in made])
            made &= set(result).union(*terms[number:])
        return found

    @staticmethod
    def _labels(node: View) -> tuple[list[str], str]:
        """Read the equation: the labels of each operand, and of the result; unnamed axes are labelled with digits."""
        text = node.attribute("equation", "")
        equation = (text.decode() if isinstance(text, bytes) else str(text)).replace(" ", "")
        left, arrow, right = equation.partition("->")
        if not arrow:
            right = "..." + "".join(sorted(label for label in set(left) - {",", "."} if left.count(label) == 1))
        ranks = [len(axes) for axes in node.inputs if axes is not None]
        terms = left.split(",")
        unnamed = [rank - len(term.replace("...", "")) for term, rank in zip(terms, ranks, strict=False)]
        if len(terms) != len(ranks) or any(
            count < 0 or (count and "..." not in term) for term, count in zip(terms, unnamed, strict=True)
        ):
            raise Unknown("its equation does not fit its inputs")
        digits = "0123456789"[: max(unnamed)]
        named = [t.replace("...", digits[len(digits) - count :]) for t, count in zip(terms, unnamed, strict=True)]
        return named, right.replace("...", digits)
