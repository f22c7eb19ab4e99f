"""Views over the tokens of several sources are what a loop over comparisons gives."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from aplot_lightning.data.comparisons import Comparison, parse_comparison
from aplot_lightning.data.encoded import Builder, EncodedComparisons, Part, TokenRows, common_prefix, pair_arrays
from aplot_lightning.data.preparation.arrays import Arrays, ArrayWriter

Row = tuple[Comparison, list[np.ndarray], list[int]]


@st.composite
def rows(draw: st.DrawFn) -> Row:
    """A comparison with tokens that know nothing of its texts."""
    count = draw(st.integers(2, 4))
    fields: dict[str, Any] = {"responses": [f"r{place}" for place in range(count)], "prompt": "q"}
    fields["scores"] = draw(st.permutations(range(count)))
    fields |= {name: draw(st.sampled_from([None, 0.25])) for name in ("margin", "target")}
    fields["source"] = draw(st.sampled_from("xyz"))
    tokens = draw(
        st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=5), min_size=count, max_size=count, unique_by=tuple)
    )
    starts = [draw(st.integers(0, len(row) - 1)) for row in tokens]
    return parse_comparison(fields, "f:1", "s"), [np.asarray(row, dtype=np.int32) for row in tokens], starts


def part(own: list[Row], refused: int = -1, folder: Path | None = None) -> Part:
    """All rows as one source's arrays, in memory or in files; a row that is refused is one without tokens."""
    tokens = TokenRows()
    for place, (comparison, encoded, starts) in enumerate(own):
        tokens.add(comparison, *([[], []] if place == refused else [encoded, starts]))
    comparisons = [comparison for comparison, _, _ in own]
    names = sorted({comparison.source for comparison in comparisons})
    source = np.asarray([names.index(comparison.source) for comparison in comparisons], dtype=np.int32)
    arrays = {**tokens.arrays(), **pair_arrays(comparisons), "source": source}
    if folder is None:
        return Part(arrays["tokens"], arrays, names)
    with ArrayWriter(folder) as writer:
        writer.append(arrays)
    return Part(Arrays(folder).file("tokens"), Arrays(folder), names)


def same(one: EncodedComparisons, other: EncodedComparisons) -> None:
    assert (len(one), one.pairs, one.sources) == (len(other), other.pairs, other.sources)
    for name in ("winners", "losers", "first_pair", "lengths", "starts", "response_counts", "tree_lengths"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name
        assert getattr(one, name).dtype == getattr(other, name).dtype
    assert set(one.columns) == set(other.columns)
    for name, values in one.columns.items():
        np.testing.assert_array_equal(values, other.columns[name])
        assert values.dtype == (np.int64 if name == "source" else np.float32)
    for place in range(len(one)):
        for mine, theirs in zip(one.segments_of(place), other.segments_of(place), strict=True):
            assert mine.tolist() == theirs.tolist()


@settings(max_examples=60, deadline=None)
@given(own=st.lists(rows(), min_size=1, max_size=6), more=st.lists(rows(), min_size=1, max_size=6), data=st.data())
def test_a_view_of_two_sources_is_what_a_builder_makes_of_its_rows(own: list[Row], more: list[Row], data: Any) -> None:
    chosen = [sorted(data.draw(st.sets(st.sampled_from(range(len(each)))))) for each in (own, more)]
    left = next((place for place in range(len(own)) if place not in chosen[0]), -1)
    view = EncodedComparisons.of(
        [part(own, refused=left), part(more)], [np.asarray(each, dtype=np.int64) for each in chosen]
    )
    builder = Builder()
    for place, row in [(n, own[n]) for n in chosen[0]] + [(len(own) + n, more[n]) for n in chosen[1]]:
        builder.add(place, *row)
    same(view, builder.build())
    assert view.kept.tolist() == chosen[0] + [len(own) + place for place in chosen[1]]
    assert view.origins.tolist() == [0] * len(chosen[0]) + [1] * len(chosen[1])


@settings(max_examples=60, deadline=None)
@given(st.lists(rows(), min_size=1, max_size=6))
def test_a_builder_keeps_rows_pairs_and_what_is_known_of_them(own: list[Row]) -> None:
    builder = Builder()
    for place, row in enumerate(own):
        builder.add(3 * place, *row)
    encoded = builder.build()
    pair = 0
    for place, (comparison, tokens, starts) in enumerate(own):
        assert [row.tolist() for row in encoded.rows(place)] == [row.tolist() for row in tokens]
        prefix, *suffixes = encoded.segments_of(place)
        assert len(prefix) == common_prefix(tokens)
        assert encoded.tree_lengths[place] == len(prefix) + sum(map(len, suffixes))
        assert encoded.response_starts(place).tolist() == starts
        assert (encoded.lengths[place], encoded.kept[place]) == (max(map(len, tokens)), 3 * place)
        for winner, loser in comparison.pairs:
            assert (encoded.winners[pair], encoded.losers[pair]) == (winner, loser)
            shared = 0
            while all(shared < len(tokens[side]) for side in (winner, loser)) and (
                tokens[winner][shared] == tokens[loser][shared]
            ):
                shared += 1
            for name, side in {"chosen": winner, "rejected": loser}.items():
                assert encoded.columns[f"{name}_length"][pair] == len(tokens[side]) - starts[side]
                assert encoded.columns[f"{name}_suffix"][pair] == len(tokens[side]) - shared
                assert encoded.columns[f"{name}_score"][pair] == comparison.scores[side]  # type: ignore[index]
            assert encoded.sources[encoded.columns["source"][pair]] == comparison.source
            assert encoded.columns["weight"][pair] == np.float32(1 / len(comparison.pairs))
            pair += 1
        assert encoded.first_pair[place + 1] == pair
    assert set(encoded.sources) == {comparison.source for comparison, _, _ in own}
    targets = [comparison.target for comparison, _, _ in own for _ in comparison.pairs]
    assert ("target" in encoded.columns) == any(target is not None for target in targets)
    if "target" in encoded.columns:
        assert encoded.columns["target"].tolist() == [1.0 if target is None else target for target in targets]


def made_rows(count: int) -> list[Row]:
    random = np.random.default_rng(count)
    made = []
    for number in range(count):
        comparison = parse_comparison({"prompt": f"{number}", "chosen": "a", "rejected": "b"}, "f:1", "s")
        tokens = [random.integers(0, 9, length).astype(np.int32) for length in random.integers(2, 30, 2)]
        made.append((comparison, tokens, [1, 1]))
    return made


def test_tokens_in_files_are_read_when_asked_for_and_travel_by_path(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    own, more = made_rows(2000), made_rows(30)
    places = [np.arange(0, 2000, 7), np.arange(30)]
    parts = [part(own, folder=tmp_path / "a"), part(more)]
    view = EncodedComparisons.of(parts, places)
    same(view, EncodedComparisons.of([part(own), part(more)], places))
    again = pickle.dumps(EncodedComparisons.of(parts[:1], places[:1]))
    assert len(again) < (tmp_path / "a" / "tokens.bin").stat().st_size / 3
    for place in (0, 100, 285):
        assert pickle.loads(again).rows(place)[1].tolist() == own[7 * place][1][1].tolist()
