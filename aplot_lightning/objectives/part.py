"""What every part of an objective says of itself, so that training can plan and refuse before it starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from aplot_lightning.errors import UserError


class Part(nn.Module):
    """A part of an objective: a coupling, a link, a margin, a target, a weighting, a regularizer.

    Attributes:
        separable: what the part gives for a pair depends on that pair alone. The loss is then a plain weighted mean
            over pairs, and training needs one pass over the micro-batches.
        columns: the pair columns that the part cannot do without.
        tensors: the named tensors of `Scores`, beside rewards and embeddings, that the part cannot do without; a head
            or another option of the model gives them.
        linear_head: the part's formula holds only for rewards that are a linear function of the embeddings.
    """

    separable: bool = True
    columns: tuple[str, ...] = ()
    tensors: tuple[str, ...] = ()
    linear_head: bool = False

    def describe(self) -> str:
        """A few words for logs and tables; empty where there is nothing to say."""
        return type(self).__name__

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Part:
        # `module.to(torch.bfloat16)`, and Lightning's bf16-true with it, would narrow what a part keeps between steps:
        # a running mean in bfloat16 stands still. Only its move is taken.
        def keep_width(tensor: Tensor) -> Tensor:
            result = fn(tensor)
            narrower = result.is_floating_point() and result.element_size() < tensor.element_size()
            return tensor.to(result.device) if narrower else result

        super()._apply(keep_width, recurse)
        return self


def missing_tensor(tensor: str, part: str) -> UserError:
    """The error for a tensor that the model does not give and `part` (its class's name) needs."""
    return UserError(
        f'{part} needs "{tensor}" from the model, which does not give it: choose a model.head or option that does (the '
        f"file of {part} in conf/objective/ names it) or another part in place of {part}"
    )


def missing_linear_head(part: str) -> UserError:
    """The error for a model whose head is not linear where `part` (its class's name) needs one."""
    return UserError(
        f"{part} needs a linear reward head, which the model does not have: leave model.head at null or choose another "
        f"part in place of {part}"
    )


def missing_column(column: str, part: str) -> UserError:
    """The error for a pair column that the data lacks and `part` (its class's name) needs."""
    return UserError(
        f'{part} needs the column "{column}", which the data does not have: '
        f'add "{column}" to the rows of data.train or choose another part in place of {part}'
    )


def required_column(columns: Mapping[str, Tensor], column: str, part: str) -> Tensor:
    """The column (n,) by its name; UserError where it is absent."""
    if column not in columns:
        raise missing_column(column, part)
    return columns[column]
