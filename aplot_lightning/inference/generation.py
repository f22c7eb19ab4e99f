"""A local causal language model that continues text in steps: what sampling and steering need of a generator."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from aplot_lightning.errors import UserError
from aplot_lightning.model.configuration import quiet_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Prompt = str | Sequence[Mapping[str, str]]
BLANK_LINE = "\n\n"


@dataclass
class Generator:
    """A causal language model with its tokenizer.

    Attributes:
        model: from AutoModelForCausalLM, on the device where it is to run.
        tokenizer: its own; its chat template renders prompts, and without one a prompt is plain text.
        temperature: 0 takes the likeliest token.
        top_p: share of the probability that is sampled from.
    """

    model: PreTrainedModel
    tokenizer: Any
    temperature: float = 0.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise UserError(
                f"temperature is {self.temperature} and top_p {self.top_p}: at least 0, and above 0 to 1, are meant"
            )
        self.model.eval()

    @classmethod
    def load(cls, name: str, *, dtype: str = "float32", temperature: float = 0.0, top_p: float = 1.0) -> Self:
        """Loads a folder or hub name, onto a GPU if there is one.

        Raises:
            UserError: it is no causal language model that Transformers can load.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        try:
            with quiet_transformers():
                tokenizer = AutoTokenizer.from_pretrained(name)
                model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype)
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"{name!r} is no causal language model that can be loaded: {reason}") from error
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.nn.Module.to(model, device)
        return cls(model, tokenizer, temperature, top_p)

    @property
    def ends(self) -> frozenset[int]:
        """The tokens that end a response."""
        ids = self.model.generation_config.eos_token_id
        ids = self.tokenizer.eos_token_id if ids is None else ids
        return frozenset([] if ids is None else ids if isinstance(ids, list) else [ids])

    def encode_prompt(self, prompt: Prompt) -> list[int]:
        """Token ids up to where the response begins. Raises UserError where messages meet no chat template."""
        if self.tokenizer.chat_template is None:
            if not isinstance(prompt, str):
                raise UserError("the generator's tokenizer has no chat template: give the prompt as text")
            return list(self.tokenizer(prompt)["input_ids"])
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        rendered = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return list(self.tokenizer(rendered, add_special_tokens=False)["input_ids"])

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def continue_tokens(
        self, tokens: Sequence[int], limit: int, *, step: bool = False, count: int = 1, memory: Memory | None = None
    ) -> list[list[int]]:
        """New tokens after `tokens`, in `count` rows: up to an end token, which is among them, or `limit` of them.

        Args:
            tokens: token ids to continue.
            limit: most new tokens, at least 1.
            step: ends after the token that completes a blank line too; only for a single row.
            count: rows; more than one wants a temperature above 0.
            memory: what this generator has computed before, which is used where it fits and brought up to date; only
                for a single row.
        """
        from transformers import StoppingCriteriaList

        ids = torch.tensor([list(tokens)], device=self.model.device)
        chosen: dict[str, Any] = {"do_sample": self.temperature > 0}
        if self.temperature > 0:
            chosen |= {"temperature": self.temperature, "top_p": self.top_p, "top_k": 0}
        pad = self.tokenizer.pad_token_id
        ends = sorted(self.ends)
        generate: Any = self.model.generate
        with torch.inference_mode():
            output = generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=limit,
                num_return_sequences=count,
                eos_token_id=ends or None,
                pad_token_id=pad if pad is not None else (ends or [0])[0],
                stopping_criteria=StoppingCriteriaList([_EndOfStep(self, len(tokens))] if step else []),
                past_key_values=None if memory is None else memory.up_to(tokens),
                return_dict_in_generate=True,
                **chosen,
            )
        if memory is not None:
            memory.keep(output.sequences[0].tolist(), output.past_key_values)
        return [_until_end(row[len(tokens) :].tolist(), self.ends) for row in output.sequences]


@dataclass
class Memory:
    """The keys and values that a generator has computed of one text, to be gone on with.

    Attributes:
        tokens: those that `cache` stands for.
        cache: of a kind that can be cut anywhere (a plain DynamicCache); None for nothing, as with sliding windows or
            recurrent states.
    """

    tokens: list[int] = field(default_factory=list)
    cache: Any = None

    def up_to(self, tokens: Sequence[int]) -> Any:
        """The cache cut to where its tokens and `tokens` part, but for the last of them, which is to be computed."""
        if self.cache is None:
            return None
        pairs = zip(self.tokens, tokens[:-1], strict=False)
        common = next((place for place, (one, other) in enumerate(pairs) if one != other), None)
        if common is None:
            common = min(len(self.tokens), len(tokens) - 1)
        if common == 0:
            return None
        if common < len(self.tokens):
            self.cache.crop(common - len(self.tokens))  # negative: how many go
            self.tokens = self.tokens[:common]
        return self.cache

    def keep(self, tokens: list[int], cache: Any) -> None:
        """Remembers what a generation leaves: the cache of all of `tokens` but the last, which was not computed."""
        from transformers import DynamicCache

        plain = type(cache) is DynamicCache and not any(cache.is_sliding)
        self.cache = cache if plain else None
        self.tokens = tokens[: cache.get_seq_length()] if plain else []


class _EndOfStep:
    """Stops generation after the token that completes a blank line, new lines before the step's text apart."""

    def __init__(self, generator: Generator, start: int) -> None:
        self.generator = generator
        self.start = start

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        done = [ends_step(self.generator.decode(row[self.start :].tolist())) for row in input_ids]
        return torch.tensor(done, dtype=torch.bool, device=input_ids.device)


def ends_step(text: str) -> bool:
    """Whether the text of a step is whole: it holds a blank line behind something."""
    return BLANK_LINE in text.lstrip("\n")


def _until_end(tokens: list[int], ends: frozenset[int]) -> list[int]:
    """The tokens up to the first end token, and that one; padding follows it."""
    place = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[: place + 1]


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Torch's random numbers from `seed` for a while, and as they were behind it; None leaves them alone."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
